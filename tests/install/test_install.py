# SPDX-License-Identifier: Apache-2.0
"""A staged installation is complete and usable: nothing is missing, nothing more is there, and what is there works.

    test_install.py BUILD       a configured and built folder; installs into a temporary DESTDIR

Programs that a machine may lack (mandoc, systemd-analyze, c++) are named when they are, and not used.
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/daemon"))
from wire import Daemon  # noqa: E402  (its folder is known only now)

# Relative to the prefix; {lib} is libdir, {v} the version.
FILES = {
    "{sbin}/memd", "{bin}/memctl", "{include}/memd.h", "{include}/memd_methods.h", "{include}/memd_region.h",
    "{include}/memd_operation.h",
    "{lib}/libmemd.so", "{lib}/libmemd.so.1", "{lib}/libmemd.so.{v}", "{lib}/pkgconfig/memd.pc",
    "{man}/man1/memctl.1", "{man}/man3/libmemd.3", "{man}/man5/memd.conf.5", "{man}/man8/memd.8",
    "{data}/bash-completion/completions/memctl", "{data}/fish/vendor_completions.d/memctl.fish",
    "{data}/zsh/vendor-completions/_memctl", "{data}/doc/memd/memd.conf.example",
    "{etc}/memd/memd.conf",
}
PLUGIN = {"{lib}/memd/memd-cuda.so"}  # where there is an nvcc
UNITS = {"lib/systemd/system/memd.service", "lib/systemd/system/memd.socket"}
EXPOSURE_MAX = 20  # of systemd-analyze security, in tenths


def run(*line, **options):
    done = subprocess.run(line, capture_output=True, text=True, check=False, **options)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, line))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def have(program):
    if shutil.which(program) is None:
        print(f"{program} is not installed: what it would check is not checked")
        return False
    return True


class Stage:
    """The build's options, and where its files went."""

    def __init__(self, build, destination):
        self.destination = destination
        options = {o["name"]: o["value"] for o in json.loads(run("meson", "introspect", "--buildoptions", build))}
        self.version = json.loads(run("meson", "introspect", "--projectinfo", build))["version"]
        self.systemd = options["systemd"] != "disabled"
        self.cuda = (pathlib.Path(build) / "attention/cuda/memd-cuda.so").exists()
        self.names = {"sbin": options["sbindir"], "bin": options["bindir"], "include": options["includedir"],
                      "lib": options["libdir"], "man": options["mandir"], "data": options["datadir"],
                      "etc": options["sysconfdir"], "v": self.version}
        self.prefix = pathlib.Path(f"{destination}{options['prefix']}")
        run("meson", "install", "-C", build, "--no-rebuild", "--destdir", destination)

    def path(self, pattern):
        return self.prefix / pattern.format(**self.names)


def complete(stage):
    wanted = {str(stage.path(name)) for name in FILES | (UNITS if stage.systemd else set()) |
              (PLUGIN if stage.cuda else set())}
    found = {str(p) for p in pathlib.Path(stage.destination).rglob("*") if not p.is_dir() or p.is_symlink()}
    package = {path for path in found if "-packages/memd/" in path}  # only where NumPy and protobuf are
    if package:
        names = {p.name for p in (ROOT / "clients/python/memd").glob("*.py")} | {"py.typed", "memd.binpb"}
        assert {pathlib.Path(path).name for path in package} == names, sorted(package)
    found -= package
    assert found == wanted, f"missing {sorted(wanted - found)}, unexpected {sorted(found - wanted)}"
    assert os.readlink(stage.path("{lib}/libmemd.so")) == "libmemd.so.1"
    for name in "{sbin}/memd", "{bin}/memctl":
        assert os.access(stage.path(name), os.X_OK), name
        assert stage.version in run(stage.path(name), "--version"), name
    print(f"{len(found)} files")


def configuration_stays(stage, build):
    """Installing again does not overwrite what an operator wrote."""
    path = stage.path("{etc}/memd/memd.conf")
    path.write_text("workers = 3\n", encoding="utf-8")
    run("meson", "install", "-C", build, "--no-rebuild", "--destdir", stage.destination)
    assert path.read_text(encoding="utf-8") == "workers = 3\n"


def library(stage):
    """It exports what the header declares, and the manual names each."""
    header = "".join(stage.path(f"{{include}}/{name}").read_text(encoding="utf-8")
                     for name in ("memd.h", "memd_methods.h", "memd_operation.h", "memd_region.h"))
    declared = set(re.findall(r"^MEMD_API[^;]*?\b(memd_\w+)\(", header, re.M))
    shared = stage.path("{lib}/libmemd.so")
    exported = {line.split()[2].split("@")[0] for line in run("nm", "-D", "--defined-only", shared).splitlines()
                if line.split()[1] in "TDBRVW"}
    assert exported == declared, f"not exported or not declared: {sorted(exported ^ declared)}"
    manual = set(re.findall(r"\bFn (memd_\w+)", stage.path("{man}/man3/libmemd.3").read_text(encoding="utf-8")))
    assert manual == declared, f"libmemd.3 and memd.h: {sorted(manual ^ declared)}"
    assert "SONAME" in run("objdump", "-p", shared) and "libmemd.so.1" in run("objdump", "-p", shared)
    print(f"{len(exported)} functions")


def compiled_program(stage, compiler):
    """A program of somebody else's, as C99 with all pedantry, found through pkg-config."""
    env = {**os.environ, "PKG_CONFIG_SYSROOT_DIR": stage.destination,
           "PKG_CONFIG_LIBDIR": str(stage.path("{lib}/pkgconfig"))}
    flags = run("pkg-config", "--cflags", "--libs", "memd", env=env).split()
    assert run("pkg-config", "--modversion", "memd", env=env).strip() == stage.version
    program = pathlib.Path(stage.destination, "minimal")
    strict = ["-std=c99", "-pedantic-errors", "-Wall", "-Wextra", "-Werror"]
    run(compiler, *strict, str(ROOT / "examples/minimal.c"), "-o", str(program), *flags)
    if have("c++"):
        run("c++", "-std=c++11", "-pedantic-errors", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++",
            "-include", "memd.h", "/dev/null", *[f for f in flags if f.startswith("-I")])
    return program


def usable(stage, program):
    """The installed daemon, the installed memctl, and a program with the installed library."""
    os.environ["MEMD"] = str(stage.path("{sbin}/memd"))
    env = {**os.environ, "LD_LIBRARY_PATH": str(stage.path("{lib}"))}
    with Daemon() as daemon:
        run(program, f"unix:{daemon.address}", env=env)
        status = json.loads(run(stage.path("{bin}/memctl"), "-s", daemon.address, "--json", "status"))
        assert status["build"].endswith(stage.version), status
        daemon.stop()


def configuration(stage):
    """memd.conf(5) has every key, default and asterisk; the example is what the daemon takes."""
    example = stage.path("{data}/doc/memd/memd.conf.example")
    run(stage.path("{sbin}/memd"), "--config", example, "--check-config")
    text = example.read_text(encoding="utf-8")
    keys = {name: (bool(reload), value) for reload, name, value in
            re.findall(r"^# .*?( \(SIGHUP\))?\n#?(\w+) = ?(.*)$", text, re.M)}
    manual = stage.path("{man}/man5/memd.conf.5").read_text(encoding="utf-8")
    items = re.findall(r"^\.It Ic (\w+)(\*?) No = .*\n((?:(?!\.It|\.El).*\n)*)", manual, re.M)
    assert sorted(name for name, _, _ in items) == sorted(keys), set(keys) ^ {i[0] for i in items}
    for name, star, body in items:
        reload, value = keys[name]
        assert bool(star) == reload, f"{name}: asterisk {star!r}, reload {reload}"
        said = re.search(r"^Default(?::? empty.*|\n\.(?:Ql|Pa) (.*?) ?\.)$", body, re.M)
        assert said, f"{name}: no default in memd.conf(5)"
        assert (said[1] or "") == value, f"{name}: memd.conf(5) says {said[1]!r}, memd {value!r}"
    print(f"{len(keys)} keys")


def manuals(stage):
    pages = [str(stage.path(name)) for name in sorted(FILES) if "{man}" in name]
    if have("mandoc"):
        for page in pages:
            run("mandoc", "-T", "lint", "-W", "warning", page)
    if have("man"):
        for page in pages:
            done = subprocess.run(["man", "--warnings", "-l", page], capture_output=True, text=True, check=False,
                                  env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80"})
            assert done.returncode == 0 and done.stderr == "" and len(done.stdout) > 1000, (page, done.stderr)


def units(stage):
    if not stage.systemd or not have("systemd-analyze"):
        return
    names = [str(stage.path(unit)) for unit in sorted(UNITS)]
    service = pathlib.Path(names[0]).read_text(encoding="utf-8")
    program, config = re.search(r"^ExecStart=(\S+) --config (\S+)$", service, re.M).groups()
    assert pathlib.Path(stage.destination + config) == stage.path("{etc}/memd/memd.conf"), config
    assert pathlib.Path(stage.destination + program) == stage.path("{sbin}/memd"), program
    # The units name the final places, where nothing is yet: verify copies that name the staged ones.
    copies = pathlib.Path(stage.destination, "units")
    copies.mkdir()
    for name in names:
        text = pathlib.Path(name).read_text(encoding="utf-8").replace(program, stage.destination + program)
        (copies / pathlib.Path(name).name).write_text(text, encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "--man=no", "verify", *map(str, sorted(copies.iterdir()))],
                          capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "memd." in line]
    assert not ours, "\n".join(ours)
    run("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}",
        str(copies / "memd.service"))
    shutil.rmtree(copies)


def main(build, compiler="cc"):
    with tempfile.TemporaryDirectory(prefix="memd-install-") as destination:
        stage = Stage(build, destination)
        complete(stage)
        library(stage)
        configuration(stage)
        configuration_stays(stage, build)
        manuals(stage)
        units(stage)
        usable(stage, compiled_program(stage, compiler))


if __name__ == "__main__":
    main(*sys.argv[1:])
