# SPDX-License-Identifier: Apache-2.0
"""A private memd for the length of a run: starts it, kills it the hard way, starts it again."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time

import memd

START_SECONDS = 20


class Daemon:
    def __init__(self, binary: str):
        self._binary = binary
        self._folder = tempfile.mkdtemp(prefix="memd-")
        self.address = f"unix:{self._folder}/socket"
        self.data = f"{self._folder}/data"
        self._log = open(os.path.join(self._folder, "log"), "w+b")
        self._process: subprocess.Popen | None = None
        self.start()

    def start(self) -> float:
        """Start it and wait until it answers. Returns the seconds that took."""
        began = time.monotonic()
        self._process = subprocess.Popen(
            [self._binary, "--socket", f"{self._folder}/socket", "--data", self.data],
            stdout=self._log, stderr=self._log)
        while True:
            try:
                with memd.connect(self.address, timeout=START_SECONDS) as client:
                    if client.health().ready:
                        return time.monotonic() - began
            except memd.ClosedError:
                pass
            if self._process.poll() is not None or time.monotonic() - began > START_SECONDS:
                self._log.seek(0)
                text = self._log.read().decode(errors="replace")
                raise SystemExit(f"{self._binary} did not start:\n{text[-2000:]}")
            time.sleep(0.01)

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: no handler runs, nothing is flushed."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """A clean end; removes everything."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)
