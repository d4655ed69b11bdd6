# SPDX-License-Identifier: Apache-2.0
"""A real daemon for tests: MEMD names the binary; each Live has a directory of its own."""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "..", "clients", "python")]

import memd

BINARY = os.environ.get("MEMD", "")
START_SECONDS = 60  # sanitizers and a busy machine included

needs_daemon = unittest.skipUnless(os.access(BINARY, os.X_OK), "MEMD does not name a daemon")


class Live:
    """Starts at once; `client` reconnects by itself when the daemon has been restarted."""

    def __init__(self):
        self._folder = tempfile.mkdtemp(prefix="memd-test-")
        self.address = f"unix:{self._folder}/s"
        self.log = os.path.join(self._folder, "log")
        self.start()
        self.client = memd.connect(self.address, timeout=START_SECONDS)

    def start(self, *options):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [BINARY, "--socket", f"{self._folder}/s", "--data", f"{self._folder}/data", *options],
                stdout=log, stderr=log)
        give_up = time.monotonic() + START_SECONDS
        while True:
            try:
                with memd.connect(self.address, timeout=START_SECONDS) as client:
                    if client.health().ready:
                        return
            except memd.ClosedError:
                pass
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise AssertionError(f"the daemon does not answer:\n{self.read_log()}")
            self.process_pause()

    def process_pause(self):
        """Give the daemon a moment, or notice at once that it has exited."""
        try:
            self.process.wait(0.01)
        except subprocess.TimeoutExpired:
            pass

    def read_log(self):
        with open(self.log, errors="replace") as log:
            return log.read()[-3000:]

    def end(self, how=signal.SIGTERM):
        """End the daemon: SIGTERM drains and syncs, SIGKILL does nothing at all."""
        self.process.send_signal(how)
        return self.process.wait(START_SECONDS)

    def restart(self, how=signal.SIGTERM, *options):
        self.end(how)
        self.start(*options)

    def close(self):
        self.client.close()
        code = self.end() if self.process.poll() is None else self.process.returncode
        text = self.read_log()
        shutil.rmtree(self._folder)
        assert code == 0, f"the daemon exited with {code}:\n{text}"
