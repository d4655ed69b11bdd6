# SPDX-License-Identifier: Apache-2.0
"""memctl as a user meets it: exit codes, tables, JSON, completion, against a daemon of its own.

    test_cli.py MEMCTL      with MEMD = the daemon's program (as for tests/daemon)

Every key of the JSON must stand in man/memctl.1; every command of the program in the manual, and the reverse.
"""
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/daemon"))
from test_damage import PAGE, segments_of  # noqa: E402
from wire import Client, Daemon, Payload, model  # noqa: E402  (its folder is known only now)

MEMCTL = os.path.abspath(sys.argv[1])
OK, ERROR, USAGE, CONNECT, UNHEALTHY = range(5)
MANUAL = (ROOT / "man/memctl.1").read_text(encoding="utf-8")
PATTERN = bytes(range(1, 60)) * 2  # what one can find again in the store's file


class Memctl:
    def __init__(self, address):
        self.address = address

    def run(self, *words, expect=OK):
        line = [MEMCTL, "-s", self.address, *words]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == expect, f"{words}: exit {done.returncode}, wanted {expect}\n" \
            f"{done.stdout}{done.stderr}"
        if expect not in (OK, UNHEALTHY):
            assert done.stderr.startswith("memctl: "), (words, done.stderr)
        return done.stdout

    def json(self, *words, expect=OK):
        text = self.run("--json", *words, expect=expect)
        value = json.loads(text)
        check_documented(value, words)
        return value

    def fails(self, expect, *words):
        """Fails with that code, JSON prints nothing, and the sentence is returned."""
        line = [MEMCTL, "-s", self.address, "--json", *words]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (expect, ""), (words, done)
        assert done.stderr.startswith("memctl: "), done.stderr
        return done.stderr


def check_documented(value, words):
    """Keys are in the manual, except under objects whose keys are names of other things."""
    free = {"methods", "parameters", "counters", "histograms", "requests", "state", "facts"}
    if isinstance(value, list):
        for item in value:
            check_documented(item, words)
    elif isinstance(value, dict):
        for key, item in value.items():
            assert re.search(rf"\b{re.escape(key)}\b", MANUAL), f"{words}: key {key} is not in memctl.1"
            below = item.values() if key in free and isinstance(item, dict) else [item]
            for one in below:
                check_documented(one, words)


def make_context(client, name, method, tokens=1100):
    reply = client.ask("open", {"name": name, "create": True, "model": model(), "method": method})
    payload = Payload()
    row = PATTERN[:118] + bytes(10)  # (G, D) fp16 = 256 bytes: finite, since no byte exceeds 0x3b
    rows = (row + row) * tokens
    shape = [tokens, 2, 64]
    layers = [{"layer": layer, "position": 0, "k": payload.add("FP16", shape, rows),
               "v": payload.add("FP16", shape, rows)} for layer in range(2)]
    client.ask("append", {"context_id": reply["context_id"], "layers": layers}, bytes(payload.data))


def wrong_usage(ctl):
    for words in [[], ["nonsense"], ["--nonsense"], ["context"], ["context", "a", "b"],
                  ["status", "extra"], ["pin", "a", "soon"], ["pin", "a", "0"], ["truncate", "a", "-1"],
                  ["truncate", "a", "x"], ["bench", "nonsense"], ["bench", "--repeat", "0"],
                  ["top", "--interval", "1ms"], ["dump", "--limit", "x"], ["status", "--timeout", "x"],
                  ["status", "--socket"], ["help", "nonsense"], ["help", "_complete"],
                  ["drain", "--deadline", "2d"], ["rebuild"], ["rebuild", "--all", "a"], ["recall"], ["explain"],
                  ["bench", "attend", "--target-error", "1.5"], ["bench", "--target-error", "x"],
                  ["bench", "append", "--method", "all"]]:
        ctl.run(*words, expect=USAGE)
    nowhere = Memctl(ctl.address + ".gone")
    for words in [["status"], ["health"], ["contexts"], ["top"], ["bench", "overhead"]]:
        assert "is memd running?" in nowhere.fails(CONNECT, *words)
    nowhere.run("status", "--token-file", "/no/such/file", expect=ERROR)
    for address in ["tcp:foo", "tcp:127.0.0.1:65536", "unix:", "unix:/" + 107 * "x"]:
        Memctl(address).fails(USAGE, "status")


def help_and_manual(ctl):
    text = ctl.run("help")
    listed = re.findall(r"^  (\w+)", text.split("Commands:")[1].split("\nOptions:")[0], re.M)
    assert "status" in listed and "_complete" not in listed, listed
    section = MANUAL.split(".Sh COMMANDS")[1].split(".Sh JSON")[0]
    manual = re.findall(r"^\.It Ic (\w+)", section, re.M)
    assert sorted(manual) == sorted(listed), sorted(set(manual) ^ set(listed))
    candidates = [line.split("\t")[0] for line in ctl.run("_complete", "--", "").splitlines()]
    assert candidates == listed, (candidates, listed)
    assert ctl.run("--help") == text and re.match(r"memctl \d+\.\d+\.\d+\n$", ctl.run("--version"))
    for command in listed:
        one = ctl.run("help", command)
        assert one == ctl.run(command, "--help"), command
        for option in re.findall(r"--([\w-]+)", one.split("Usage:")[1]):
            assert re.search(rf"Fl -{option}\b|, -{option}\b", MANUAL), f"--{option} of {command}"
    assert len(listed) == 21, listed


def looking(ctl, daemon):
    status = ctl.json("status")
    assert status["pid"] == daemon.process.pid and status["budget_bytes"] is None, status
    assert status["address"] == "unix:" + daemon.address and status["contexts"] == 2, status
    assert f"pid {daemon.process.pid}" in ctl.run("status")
    names = [c["name"] for c in ctl.json("contexts")["contexts"]]
    assert names == ["book", "büchlein 2"], names
    assert [c["name"] for c in ctl.json("contexts", "boo")["contexts"]] == ["book"]
    assert ctl.json("contexts", "zzz") == {"contexts": []}
    table = ctl.run("contexts").splitlines()
    assert table[0].split()[:3] == ["NAME", "METHOD", "TOKENS"] and len(table) == 3, table
    assert "1,100" in table[1] and all(line == line.rstrip() for line in table), table
    book = ctl.json("context", "book")
    assert book["tokens"] == 1100 and book["layer_tokens"] == [1100, 1100], book
    assert book["model"]["rope"] is None and book["model"]["dtype"] == "float16", book
    assert book["pinned_until_unix_ms"] is None and book["parent_id"] is None, book
    assert "1,100 tokens each" in ctl.run("context", "book")
    assert "ENOCONTEXT" in ctl.fails(ERROR, "context", "nobody")
    stats = ctl.json("stats")
    assert stats["counters"]["requests_append_total"] == 2, stats["counters"]
    append = stats["histograms"]["request_seconds_append"]
    assert append["count"] == 2 and 0 < append["p50"] <= append["p99"] < 60, append
    assert "requests_append_total" in ctl.run("stats")
    assert ctl.json("health") == {"live": True, "ready": True, "draining": False, "reason": None}
    assert ctl.run("health") == "ready\n"


def changing(ctl):
    fork = ctl.json("fork", "book", "fork")
    assert fork["tokens"] == 1100 and fork["parent_id"] == ctl.json("context", "book")["id"], fork
    assert "EEXIST" in ctl.fails(ERROR, "fork", "book", "fork")
    ctl.run("fork", "--method", "streaming", "--parameters", "sinks=2,window=64", "book", "near")
    near = ctl.json("context", "near")
    assert near["method"] == "streaming" and near["parameters"] == {"sinks": "2", "window": "64"}, near
    assert "EUNSUPPORTED" in ctl.fails(ERROR, "fork", "-m", "neurocache", "book", "states")
    assert "name=value" in ctl.fails(USAGE, "fork", "-p", "window", "book", "wrong")
    ctl.run("drop", "near")
    assert ctl.json("truncate", "fork", "1050") == {"name": "fork", "tokens_before": 1100,
                                                    "tokens": 1050}
    assert "EPOSITION" in ctl.fails(ERROR, "truncate", "fork", "2000")
    until = ctl.json("pin", "fork", "15m")["pinned_until_unix_ms"]
    assert until == ctl.json("context", "fork")["pinned_until_unix_ms"] > 0, until
    assert "ends in 1" in ctl.run("context", "fork")
    assert "is pinned" in ctl.fails(ERROR, "drop", "fork")
    assert ctl.json("unpin", "fork")["pinned_until_unix_ms"] is None
    ctl.run("pin", "fork", "1h")
    ctl.run("drop", "nobody", expect=ERROR)
    assert ctl.json("drop", "-f", "nobody") == {"dropped": []}
    assert [d["name"] for d in ctl.json("drop", "--force", "nobody", "fork")["dropped"]] == ["fork"]
    ctl.fails(ERROR, "context", "fork")
    for name in "a", "b":
        ctl.run("fork", "book", name)
    # The first name fails; the others are dropped all the same.
    ctl.run("drop", "nobody", "a", "b", expect=ERROR)
    assert len(ctl.json("contexts")["contexts"]) == 2


def operating(ctl, daemon):
    sound = ctl.json("verify")
    assert sound["sound"] and sound["findings"] == [] and sound["values"] > 0, sound
    assert ctl.json("verify", "book")["sound"] and "no damage" in ctl.run("verify")
    records = ctl.json("dump")["records"]
    assert len(records) > 4 and all(r["table"] and r["summary"] for r in records), records
    assert len(ctl.json("dump", "-n", "3")["records"]) == 3
    assert ctl.run("dump", "book").startswith("TABLE")
    done = subprocess.run([MEMCTL, "-s", daemon.address, "--json", "compact", "copy"], check=True,
                          capture_output=True, text=True, cwd=daemon.directory)
    copy = json.loads(done.stdout)
    check_documented(copy, "compact")
    assert copy["path"] == os.path.join(daemon.directory, "copy") and os.path.isdir(copy["path"])
    ctl.fails(ERROR, "compact", copy["path"])
    shutil.rmtree(copy["path"])


def ask_attend(client, name, layer):
    context = client.ask("stat", {"name": name})["context"]
    payload = Payload()
    q = payload.add("FP16", [3, 4, 64], PATTERN[:118] * 13 + bytes(2))
    item = {"context_id": context["context_id"], "layer": layer, "q": q, "positions": [2000] * 3}
    answers = client.ask("attend", {"items": [item]}, bytes(payload.data))["answers"]
    assert answers[0]["status"] == 0, answers


def proving(ctl, daemon):
    """Methods, recall, rebuild: before and after somebody has asked, built and built anew."""
    methods = {method["name"]: method for method in ctl.json("methods")["methods"]}
    assert [name for name, method in methods.items() if method["default"]] == ["progressive"], methods
    options = {option["name"]: option for option in methods["progressive"]["options"]}
    assert options["target_error"]["default"] == 0.02 and options["target_error"]["most"] == 1, options
    places = {option["name"]: option for option in methods["streaming"]["options"]}["positions"]
    assert places["default"] == "auto" and places["choices"] == ["auto", "cache-index", "original"], places
    assert methods["full"]["options"] == [] and all(method["help"] for method in methods.values())
    table = ctl.run("methods")
    assert table.startswith("METHOD") and re.search(r"^  target_error +0\.02 +0 +1 ", table, re.M), table
    assert re.search(r"^  positions +auto +.*: auto \| cache-index \| original$", table, re.M), table

    nothing = ctl.json("recall", "book")
    assert (nothing["queries"], nothing["met"]) == (0, None) and len(nothing["layers"]) == 2, nothing
    assert "no queries since the daemon started" in ctl.run("recall", "book")
    built = ctl.json("rebuild", "book")["rebuilt"][0]
    assert built["segments"] == built["built_segments"] > 0 and built["failure"] is None, built
    client = Client(daemon.address)
    ask_attend(client, "book", 1)
    ask_attend(client, "büchlein 2", 0)
    client.close()
    proof = ctl.json("recall", "book")
    assert proof["method"] == "progressive" and proof["target_error"] == 0.02, proof
    assert (proof["queries"], proof["answers"], proof["met"]) == (3, 12, True), proof
    assert proof["layers"][0]["queries"] == 0 and proof["layers"][0]["error"]["mean"] is None, proof
    layer = proof["layers"][1]
    assert 0 <= layer["error"]["mean"] <= layer["error"]["max"] and layer["tokens"] == 1100, layer
    assert abs(sum(layer["level_mass"].values()) - 1) < 0.01 and layer["bytes_exact"] > 0, layer
    text = ctl.run("recall", "book")
    assert text.startswith("LAYER") and "target 2 % met" in text.splitlines()[-1], text
    assert re.findall(r"^ +(\d+) +\d+ ", text, re.M) == ["1"] and "without queries since the daemon started: 1" in text
    exact = ctl.json("recall", "--layer", "1", "-e", "0", "book")
    assert len(exact["layers"]) == 1 and exact["target_error"] == 0, exact
    assert exact["layers"][0]["error"]["max"] < 1e-5, exact
    assert "nothing to prove" in ctl.run("recall", "büchlein 2")
    assert ctl.json("recall", "büchlein 2")["target_error"] is None
    ctl.run("recall", "book", "--layer", "2", expect=USAGE)
    assert methods["full"]["tensors"] == [] and methods["full"]["state_width"] == 0, methods["full"]
    assert methods["retrieval-attention"]["samples_queries"] and not methods["full"]["folds"], methods
    for tensor in (tensor for method in methods.values() for tensor in method["tensors"]):
        assert f"tensor ({tensor['shape']}): {tensor['help']}" in table, tensor
    ctl.run("recall", "book", "--target-error", "-1", expect=USAGE)
    assert "ENOCONTEXT" in ctl.fails(ERROR, "recall", "nobody")
    assert "ENOCONTEXT" in ctl.fails(ERROR, "rebuild", "nobody")

    again = {one["name"]: one for one in ctl.json("rebuild", "--all")["rebuilt"]}
    assert set(again) == {"book", "büchlein 2"} and again["büchlein 2"]["segments"] == 0, again
    assert again["book"]["deleted_segments"] == again["book"]["built_segments"] > 0, again
    assert again["book"]["deleted_bytes"] > 0, again
    assert "segments built" in ctl.run("rebuild", "book", "--no-wait")
    ctl.run("rebuild", "book")
    info = ctl.json("context", "book")
    assert info["built_segments"] == info["sealed_segments"] > 0 and info["derived_bytes"] > 0, info
    assert re.search(r"^derived +.*segments built$", ctl.run("context", "book"), re.M)


def explaining(ctl, daemon):
    """What was read for a query that somebody asked; asking for it changes nothing."""
    client = Client(daemon.address)
    make_context(client, "told", "streaming", 800)
    assert "no queries of layer 1 are kept" in ctl.run("explain", "told", "--layer", "1")
    assert ctl.json("explain", "told") == {"name": "told", "layer": 0, "queries": 0}
    ask_attend(client, "told", 1)
    client.close()
    for _ in range(2):
        plan = ctl.json("explain", "told", "-l", "1")
        assert (plan["queries"], plan["position"], plan["tokens"]) == (3, 2000, 800), plan
        runs = sorted((run["head"], run["heads"], run["first"], run["count"]) for run in plan["runs"])
        assert runs == [(0, 2, 0, 4), (0, 2, 288, 512), (2, 2, 0, 4), (2, 2, 288, 512)], runs
        assert all(run["placed"] == run["first"] and run["kind"] == "tokens" for run in plan["runs"]), plan
        shares = [run["share"] for run in plan["runs"] if run["head"] == 0]
        assert abs(sum(shares) - 1) < 1e-3 and len(plan["lse"]) == 4, plan
        assert plan["groups"] == [{"head": 0, "merge": "joint", "weight": 1}] and not plan["cut"], plan
    assert len(ctl.json("explain", "told", "-l", "1", "--head", "3", "--query", "2")["runs"]) == 2
    table = ctl.run("explain", "told", "--layer", "1")
    assert re.search(r"^ +2-3 +tokens +288-799 +512 +288-799 +2000 +joint +- +[\d.]+ %$", table, re.M), table
    assert "a head reads 516 of 800 tokens" in table.splitlines()[-1], table
    assert "ENOROW" in ctl.fails(ERROR, "explain", "told", "-l", "1", "-q", "3")
    assert "ENOCONTEXT" in ctl.fails(ERROR, "explain", "nobody")
    for words in ["--layer", "2"], ["--head", "4"], ["--query", "x"], ["-e", "2"]:
        ctl.run("explain", "told", *words, expect=USAGE)
    ctl.run("drop", "told")


def states(ctl, daemon):
    """What a method keeps: of a context in memory, or when somebody wants to see it."""
    client = Client(daemon.address)
    make_context(client, "kept", "extended-mind")
    client.close()
    info = ctl.json("context", "kept")
    facts = [layer["facts"] for layer in info["layer_states"]]
    assert [layer["layer"] for layer in info["layer_states"]] == [0, 1] and facts[0] == facts[1], info
    assert info["state"]["tokens"] == 2 * facts[0]["tokens"] > 0 and facts[0]["tokens"] <= 1100, info
    assert info["state"]["bytes"] > 0 and info["state_width"] == 0, info
    text = ctl.run("context", "kept")
    assert re.search(r"^state +of 2 layers$", text, re.M) and re.search(r"^  tokens +\d", text, re.M), text
    assert "LAYER" not in text and "LAYER" in ctl.run("context", "--layers", "kept"), text
    assert ctl.json("context", "book")["state"] == {}, "progressive keeps none"
    daemon.stop()
    daemon.start()
    assert ctl.json("context", "kept")["state"] is None and not ctl.json("context", "kept")["resident"]
    assert ctl.json("context", "kept", "-l")["state"] == info["state"]
    ctl.run("drop", "kept")


def completing(ctl):
    def complete(*words):
        lines = ctl.run("_complete", "--", "-s", ctl.address, *words).splitlines()
        return [line.split("\t")[0] for line in lines]

    assert complete("st") == ["status", "stats"]
    assert complete("context", "b") == ["book", "büchlein 2"]
    assert complete("drop", "book", "bü") == ["büchlein 2"]
    assert complete("fork", "book", "") == [] and complete("truncate", "book", "") == []
    assert complete("recall", "bo") == ["book"] and complete("rebuild", "book", "bü") == ["büchlein 2"]
    assert complete("fork", "-m", "str") == ["streaming"], complete("fork", "-m", "str")
    assert complete("bench", "--method", "retr") == ["retrieval-attention", "retroinfer"]
    assert complete("bench", "me") == ["methods"] and complete("help", "ver") == ["verify"]
    assert complete("drop", "--fo") == ["--force"] and "--json" in complete("-")
    assert complete("--socket", "") == [":path"] and complete("compact", "") == [":path"]
    assert complete("drop", "--", "-") == []
    silent = subprocess.run([MEMCTL, "_complete", "--", "-s", "/no/such", "context", ""], check=True,
                            capture_output=True, text=True)
    assert (silent.stdout, silent.stderr) == ("", ""), silent


def shells(ctl):
    """The completion files under the shells themselves, where they are installed."""
    folder = str(ROOT / "completions")
    path = os.path.dirname(MEMCTL) + ":" + os.environ["PATH"]
    env = {**os.environ, "MEMD_SOCKET": ctl.address, "PATH": path}

    def shell(*line):
        if shutil.which(line[0]) is None:
            print(f"{line[0]} is not installed: its completion is not tested")
            return None
        done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (line, done)
        return done.stdout

    library = "/usr/share/bash-completion/bash_completion"
    for first in [":"] + [f"source {library}"] * os.path.exists(library):
        script = f"{first}; source {folder}/memctl.bash; COMP_WORDS=(memctl context bü); " \
            "COMP_CWORD=2; COMP_LINE='memctl context bü'; COMP_POINT=${#COMP_LINE}; _memctl; " \
            "printf '%s\\n' \"${COMPREPLY[@]}\""
        assert shell("bash", "-c", script) == "büchlein\\ 2\n", shell("bash", "-c", script)
    script = "_describe() { print -rl -- \"${(@P)@[-1]}\" }; words=(memctl context b); CURRENT=3; " \
        f"source {folder}/_memctl"
    out = shell("zsh", "-f", "-c", script)
    assert out is None or out == "book:progressive\nbüchlein 2:full\n", out
    script = f"source {folder}/memctl.fish; complete -C 'memctl context bü'"
    out = shell("fish", "--no-config", "-c", script)
    assert out is None or out.startswith("büchlein"), out


def top(ctl):
    one = ctl.json("top", "--interval", "200ms")
    assert 0.2 <= one["interval_seconds"] < 30 and one["requests"]["stats"]["per_second"] > 0, one
    text = ctl.run("top", "-i", "100ms")
    assert "REQUEST" in text and ", 1 connection, " in text, text
    master, slave = pty.openpty()
    line = [MEMCTL, "-s", ctl.address, "top", "-i", "100ms"]
    with subprocess.Popen(line, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        seen = b""
        while seen.count(b"\x1b[2J") < 3:
            ready, _, _ = select.select([master], [], [], 20)
            assert ready, f"top shows nothing more after {seen!r}"
            seen += os.read(master, 65536)
        os.write(master, b"q")
        assert process.wait(20) == OK
    os.close(master)
    assert b"PER SECOND" in seen, seen


def bench(ctl, daemon):
    figures = ctl.json("bench", "--repeat", "1", "--requests", "100", "--tokens", "2048",
                       "--append-size", "32", "--idle", "20", "--busy", "4", "--seconds", "1",
                       "--disk", daemon.directory)
    assert 0 < figures["overhead"]["p50_us"] <= figures["overhead"]["p99_us"], figures
    for key in "memory_gb_per_s", "committed_gb_per_s", "synced_gb_per_s", "disk_gb_per_s":
        assert figures["append"][key] > 0, figures
    assert figures["attend"]["attend_ms"] > 0 and figures["attend"]["ratio"] > 0, figures
    assert figures["method"] == "full" and figures["attend"]["bytes_share"] == 1, figures
    assert figures["attend"]["true_error"] < 1e-5, figures
    chosen = ctl.json("bench", "attend", "--repeat", "1", "--tokens", "4096", "--method", "progressive",
                      "--target-error", "0.05")
    assert chosen["method"] == "progressive" and 0 < chosen["attend"]["bytes_share"] <= 1, chosen
    assert chosen["attend"]["build_s"] >= 0 and chosen["attend"]["true_error"] < 0.2, chosen
    assert figures["connections"]["hostile_unread"] > 0, figures
    both = ctl.json("bench", "methods", "--repeat", "1", "--tokens", "600", "--method", "streaming")["methods"]
    assert list(both) == ["streaming"] and both["streaming"]["tokens"] == 600, both
    figures = both["streaming"]
    assert 0 < figures["append_us"] <= figures["ready_us"] and figures["attend_us"] > 0, figures
    assert 0.8 < figures["bytes_share"] < 0.9 and figures["state_bytes"] == 0, figures
    table = ctl.run("bench", "methods", "-r", "1", "--tokens", "3000", "-m", "landmark")
    assert re.search(r"^landmark +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ KiB|MiB", table, re.M), table
    assert "MEASUREMENT" not in table, table
    ctl.run("bench", "methods", "--method", "nonsense", expect=ERROR)
    assert "overhead p50" in ctl.run("bench", "overhead", "--repeat", "1", "--requests", "10")
    assert len(ctl.json("contexts")["contexts"]) == 2, "bench left contexts behind"


def interrupted(ctl):
    """Control-C in the middle of a benchmark: it ends at once and leaves nothing behind."""
    line = [MEMCTL, "-s", ctl.address, "bench", "connections", "--seconds", "3600", "--idle", "1",
            "--busy", "1"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not ctl.json("contexts", "bench-")["contexts"]:
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == ERROR and "interrupted" in said, (process.returncode, said)
    assert ctl.json("contexts", "bench-")["contexts"] == []


def over_tcp():
    """The token comes from a file; without it nothing is answered."""
    with tempfile.TemporaryDirectory() as folder:
        token = pathlib.Path(folder, "token")
        token.write_text("reader-token-0123456789 read\n", encoding="utf-8")
        token.chmod(0o600)
        with Daemon("--listen", "127.0.0.1:0", "--token-file", str(token)) as daemon:
            while not (port := re.search(r"on=tcp:127\.0\.0\.1:(\d+)", daemon.log())):
                assert daemon.process.poll() is None, daemon.log()
            ctl = Memctl(f"tcp:127.0.0.1:{port[1]}")
            assert ctl.json("--token-file", str(token), "status")["address"] == ctl.address
            assert "EPERM" in ctl.fails(ERROR, "--token-file", str(token), "drain")
            assert "EPERM" in ctl.fails(ERROR, "status")
            empty = pathlib.Path(folder, "empty")
            empty.write_text("\n", encoding="utf-8")
            assert "no token" in ctl.fails(ERROR, "--token-file", str(empty), "status")
            daemon.stop()


def damage(ctl, daemon):
    """Flip one bit of a stored row: verify must find it and say so by its exit code."""
    assert ctl.json("status")["damaged_pages"] == 0 and "damage" not in ctl.run("status")
    daemon.stop()
    path = pathlib.Path(daemon.data, "data.mdb")
    data = bytearray(path.read_bytes())
    at = data.find(PATTERN[:100])
    assert at > 0, "no row in the store's file"
    data[at + 50] ^= 4
    path.write_bytes(data)
    daemon.start()
    found = ctl.json("verify", expect=UNHEALTHY)
    assert not found["sound"] and found["findings"], found
    assert ctl.run("verify", expect=UNHEALTHY).startswith("damage: ")
    with open(path, "r+b") as file:  # pages that go bad while the daemon runs: LMDB notices
        for at in range(0, len(data), PAGE):
            if segments_of(data[at:at + PAGE]):
                file.seek(at)
                file.write(bytes(PAGE))
    assert "MDB_CORRUPTED" in ctl.json("verify", expect=UNHEALTHY)["findings"][-1]
    assert "was not looked at\n" in ctl.run("verify", expect=UNHEALTHY)
    daemon.stop()
    daemon.start()  # now they are known
    found = ctl.json("verify", expect=UNHEALTHY)["findings"]
    assert any(re.match(r"segments: page \d+ of data.mdb is damaged: it bears another number; with it all records ",
                        finding) for finding in found), found
    daemon.wait_log(r"damage pages=\d+ ")
    assert "was not looked at\n" not in ctl.run("verify", expect=UNHEALTHY)
    pages = ctl.json("status")["damaged_pages"]
    assert pages > 0
    assert f"{pages} page{'s' * (pages > 1)} of the store fenced off, see verify\n" in ctl.run("status")


def drain(ctl, daemon):
    assert ctl.json("drain", "-d", "5s")["draining"]
    assert daemon.process.wait(30) == 0
    ctl.fails(CONNECT, "health")


def main():
    with Daemon() as daemon:
        ctl = Memctl(daemon.address)
        client = Client(daemon.address)
        make_context(client, "book", "progressive")
        make_context(client, "büchlein 2", "full", 10)
        client.close()
        steps = [(wrong_usage, ctl), (help_and_manual, ctl), (looking, ctl, daemon), (changing, ctl),
                 (operating, ctl, daemon), (proving, ctl, daemon), (explaining, ctl, daemon), (states, ctl, daemon),
                 (completing, ctl), (shells, ctl), (top, ctl),
                 (bench, ctl, daemon), (interrupted, ctl), (over_tcp,), (damage, ctl, daemon), (drain, ctl, daemon)]
        for step, *arguments in steps:
            step(*arguments)
            print(f"{step.__name__}: good", flush=True)


if __name__ == "__main__":
    main()
