# SPDX-License-Identifier: Apache-2.0
"""`pip wheel clients/python` gives a wheel that works where there is neither a checkout nor protoc."""
import os
import subprocess
import sys
import tempfile
import unittest
import zipfile

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


class Wheel(unittest.TestCase):
    def test_wheel_brings_its_messages(self):
        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, "source")  # setuptools leaves build/ behind
            for part in ("clients/python", "proto"):
                os.makedirs(os.path.join(copy, os.path.dirname(part)), exist_ok=True)
                subprocess.run(["cp", "-r", os.path.join(ROOT, part), os.path.join(copy, part)],
                               check=True)
            done = subprocess.run(
                [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check",
                 "--no-deps", "--no-build-isolation", "-w", folder,
                 os.path.join(copy, "clients/python")],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            self.assertEqual(done.returncode, 0, done.stdout)
            wheel, = (name for name in os.listdir(folder) if name.endswith(".whl"))
            site = os.path.join(folder, "site")
            with zipfile.ZipFile(os.path.join(folder, wheel)) as file:
                self.assertIn("memd/py.typed", file.namelist())
                file.extractall(site)
            code = ("import memd; from memd import wire; "
                    "print(memd.__file__, wire.Request('attend').message.items.add().layer)")
            out = subprocess.run([sys.executable, "-c", code], cwd=folder, text=True, check=True,
                                 env={"PYTHONPATH": site, "PATH": "/nowhere"},
                                 stdout=subprocess.PIPE).stdout
            self.assertTrue(out.startswith(site) and out.endswith(" 0\n"), out)


if __name__ == "__main__":
    unittest.main()
