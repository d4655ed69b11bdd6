#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What write_format (C) wrote, read_format (Python) proves and reads back bit for bit; and it sees damage.

    test_format.py WRITE_FORMAT
"""
import pathlib
import subprocess
import sys
import tempfile

import numpy

from read_format import Store

HEADS, DIM, QUERY_HEADS, WIDTH = 2, 16, 4, 48


def values(salt, layer, positions, offset, count=HEADS * DIM):
    """The rule of tests/unit/store_fixture.h: splitmix64 of where an element stands, as k/64."""
    with numpy.errstate(over="ignore"):
        element = numpy.arange(count, dtype=numpy.uint64) + numpy.uint64(offset)
        x = (positions.astype(numpy.uint64)[:, None] * numpy.uint64(0x9E3779B97F4A7C15)
             + numpy.uint64(layer << 48) + numpy.uint64(salt << 56)
             + element[None, :] * numpy.uint64(0xD1342543DE82EF95))
        x = (x ^ x >> numpy.uint64(30)) * numpy.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ x >> numpy.uint64(27)) * numpy.uint64(0x94D049BB133111EB)
        x ^= x >> numpy.uint64(31)
    rows = ((x >> numpy.uint64(57)).astype(numpy.int64) - 64) / 64
    return rows.astype("<f2")


def compare(store, name, pieces):
    for layer in range(2):
        k, v, ids = store.rows(name, layer)
        at = 0
        for salt, end in pieces:
            positions = numpy.arange(at, end)
            assert k[at:end].tobytes() == values(salt, layer, positions, 0).tobytes(), (name, layer, at)
            assert v[at:end].tobytes() == values(salt, layer, positions, 100000).tobytes(), (name, layer, at)
            assert (ids[at:end] == positions * 3 + salt).all(), (name, layer, at)
            at = end
        assert len(k) == len(v) == at, (name, layer, len(k))


def compare_kept(store, tokens):
    """Marks, queries and states of the contexts that keep them."""
    positions = numpy.arange(tokens)
    for layer in range(2):
        q = values(1, layer, positions, 200000, QUERY_HEADS * DIM).view(numpy.uint8)
        marks = ((64 * values(1, layer, positions, 400000, 1) + 64).astype(int) % 4).astype(numpy.uint8)
        both = numpy.concatenate([q, marks, 0 * marks], axis=1)
        assert (store.columns("test-marks", layer) == marks).all(), layer
        assert len(set(marks[:, 0])) == 4, "marks that do not differ prove nothing"
        assert store.columns("test-both", layer).tobytes() == both.tobytes(), layer
        assert store.columns("test-all", layer).tobytes() == both.tobytes(), layer
        k, v, ids = store.rows("test-all", layer)
        states = numpy.concatenate([k[:, 0], v[:, 0]], axis=1)
        assert states.tobytes() == values(1, layer, positions, 300000, WIDTH).tobytes(), layer
        assert (ids == positions * 3 + 1).all(), layer


def compare_notes(store):
    """Mass, a selection and tensors, by the rules of write_format.c."""
    token, head = numpy.arange(1024)[:, None], numpy.arange(QUERY_HEADS)
    for layer in range(2):
        mass = (token + head) % 7 / 8 + ((token >= 920) & (layer == 1))
        assert (store.mass("notes", layer) == mass * (token < 1000)).all(), layer
    assert store.selection("notes", 0) is None
    for g, kept in enumerate(store.selection("notes", 1)):
        assert (kept == numpy.arange(g, 900, 3)).all(), g
    own = {place: (version, array.tolist()) for place, (version, array) in
           store.tensors(store.names["notes"]).items()}
    assert own == {(0, "salt"): (3, [20, 2, 3]), (1, "salt"): (2, [10, 2, 3])}, own
    owner, method = store.sets()["house"]
    assert method == "test-reads-back"
    [(version, array)] = store.tensors(owner).values()
    assert (version, array.tolist()) == (3, [20, 2, 3])


def compare_ring(store):
    """Of 40 slots, read once, when 1100 tokens were stored: about a quarter of them was found then."""
    tokens, positions, used = store.ring("test-ring", 1)
    newest = numpy.arange(1060, 1100)
    found = (newest * 2654435761 >> 7) % 4 == 1100 % 4
    assert tokens == 1100 and (positions == newest).all(), (tokens, positions)
    assert (used == numpy.where(found, 1100, newest)).all() and 0 < found.sum() < 40, used


def main(program):
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([program, directory], check=True)
        store = Store(directory)
        findings = store.prove()
        assert not findings, findings
        assert sorted(store.names) == ["book", "fork", "notes", "test-all", "test-both", "test-marks", "test-ring"]
        assert store.records[store.names["fork"]].parent == store.names["book"]
        compare(store, "book", [(1, 2500)])
        compare(store, "fork", [(1, 1500), (5, 2100)])
        for name in ("test-marks", "test-both"):
            compare(store, name, [(1, 1107)])
        compare_kept(store, 1107)
        compare_notes(store)
        compare_ring(store)
        store.close()
        path = pathlib.Path(directory, "data.mdb")
        data = bytearray(path.read_bytes())
        data[data.index(b"MEMV\x01\x01") + 5000] ^= 1
        path.write_bytes(data)
        assert any("checksum" in f for f in Store(directory).prove())
        data[data.index(b"MEMV\x02\x06") + 5000] ^= 1
        path.write_bytes(data)
        assert sum("checksum" in f for f in Store(directory).prove()) > 1
        before = len(Store(directory).prove())
        at = -1
        while (at := data.find(b"MEMV\x03\x0a", at + 1)) >= 0:  # all of them: small ones leave copies behind
            data[at + 500] ^= 1
        path.write_bytes(data)
        assert len(Store(directory).prove()) > before
        before = len(Store(directory).prove())
        for kind in (b"\x0b", b"\x0c", b"\x0d", b"\x0e"):  # mass, selection, tensor, set
            damaged = bytearray(data)
            at = -1
            while (at := damaged.find(b"MEMV\x03" + kind, at + 1)) >= 0:
                damaged[at + 24] ^= 1  # its position
            path.write_bytes(damaged)
            assert len(Store(directory).prove()) > before, kind


if __name__ == "__main__":
    main(sys.argv[1])
