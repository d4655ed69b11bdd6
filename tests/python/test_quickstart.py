# SPDX-License-Identifier: Apache-2.0
"""./quickstart says what is wrong with its options before it installs or builds anything."""
import os
import shutil
import subprocess
import tempfile
import unittest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
BEGUN = 77  # status of a bootstrap that only says that it came to it


class Quickstart(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        shutil.copy(os.path.join(ROOT, "quickstart"), self.folder)
        shutil.copytree(os.path.join(ROOT, "examples"), os.path.join(self.folder, "examples"))
        os.mkdir(os.path.join(self.folder, "scripts"))
        with open(os.path.join(self.folder, "scripts", "bootstrap"), "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\nexit {BEGUN}\n")
        os.chmod(file.name, 0o755)

    def run_with(self, *options):
        done = subprocess.run([os.path.join(self.folder, "quickstart"), *options], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, cwd=os.path.join(self.folder, "examples"))
        return done.returncode, done.stdout

    def test_wrong_options_come_first(self):
        for options, text in ((["--tokns", "5"], "unrecognized arguments: --tokns 5"),
                              (["--last", "many"], "invalid int value: 'many'"),
                              (["--chunk", "2"], "--chunk more than --sinks"),
                              (["--tokens", "0"], "--tokens has to be at least 1"),
                              (["--memd", "x", "--connect", "y"], "not allowed with"),
                              (["--text", "none"], "--text none: No such file")):
            status, said = self.run_with(*options)
            self.assertEqual(status, 2, said)
            self.assertIn(text, said)

    def test_right_ones_go_on(self):
        with open(os.path.join(self.folder, "examples", "a text"), "w", encoding="utf-8") as file:
            file.write("what is read")
        for options in ([], ["--text", "a text", "--json"], ["--connect", "unix:/nowhere"]):
            self.assertEqual(self.run_with(*options)[0], BEGUN, options)

    def test_help_shows_the_options(self):
        status, said = self.run_with("--help")
        self.assertEqual(status, 0)
        self.assertIn("--window N", said)


if __name__ == "__main__":
    unittest.main()
