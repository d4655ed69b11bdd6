#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A second reader of the data directory, written from docs/FORMAT.md alone; proves it and returns its rows.

    read_format.py DIR              prove every invariant and checksum of a directory that no daemon uses
    read_format.py --dump DIR NAME  and print the SHA-256 of K and V of each layer of a context

As a module: `Store(path).prove()` gives a list of findings, `Store(path).rows(name, layer)` gives K and V
(T, G, D) as NumPy arrays (bfloat16 as uint16) and the token ids or None; of a context that keeps states, G is 1
and a state is its K and V side by side. `Store(path).columns(name, layer)` gives records (T, bytes). Needs PyPI
lmdb, xxhash, numpy.
"""
import hashlib
import struct
import sys

import lmdb
import numpy
import xxhash

VERSION, MAGIC, ORDER = 3, 0x564D454D, 0x0102030405060708
HEADER, SEGMENT = 48, 1024
K, V, IDS, TAIL, CONTEXT, HI, LO, QUERIES, INDEX, COLUMNS, MASS, SELECTION, PARAM, SET, RING = range(1, 16)
FLAG_IDS, FLAG_COLUMNS = 1, 2
DTYPES = {1: "<f4", 2: "<f2", 3: "<u2", 5: "<u4"}
TABLES = ("meta", "names", "contexts", "chains", "segments", "refs", "tails", "indexes", "notes", "params",
          "sets")


class Broken(Exception):
    pass


def hi_layout(dim):
    """Offsets of the fields of a hi payload, each at a multiple of 64, and its end."""
    clusters = SEGMENT // 16
    fields = [("head", 64), ("balance", 4 * dim), ("query_square", 4 * dim), ("key_mean", 4 * dim),
              ("rows", 2 * SEGMENT), ("centroid_scale", 4 * clusters), ("key_spread", 4 * clusters),
              ("mean_scale", 4 * clusters), ("value_spread", 4 * clusters), ("centroids", clusters * dim),
              ("means", clusters * dim), ("key_scale", 2 * SEGMENT), ("value_scale", 2 * SEGMENT),
              ("key_hi", SEGMENT * dim // 2), ("value_hi", SEGMENT * dim // 2),
              ("checks", 3 * 64 * 8)]
    layout, end = {}, 0
    for name, size in fields:
        layout[name] = end
        end += (size + 63) // 64 * 64
    layout["end"] = end
    return layout


class Header:
    """The 48 bytes before a payload, checked against it."""

    def __init__(self, value):
        if len(value) < HEADER:
            raise Broken(f"value of {len(value)} bytes has no header")
        (magic, version, self.kind, self.dtype, self.flags, self.tokens, self.head_dim, self.heads,
         payload, self.position, self.model, checksum) = struct.unpack("<IBBBBIHHQQQQ", value[:HEADER])
        if magic != MAGIC or version != (1 if self.kind <= CONTEXT else 2 if self.kind <= INDEX else 3):
            raise Broken(f"magic {magic:08x} version {version}")
        if payload != len(value) - HEADER:
            raise Broken(f"payload of {payload} bytes in a value of {len(value)}")
        if xxhash.xxh3_64_intdigest(value[:40] + bytes(8) + value[HEADER:]) != checksum:
            raise Broken("checksum differs")
        self.payload = value[HEADER:]
        if self.flags & ~(FLAG_IDS | FLAG_COLUMNS if self.kind == TAIL else 0):
            raise Broken(f"flags {self.flags}")

    def parts(self):
        """K, V, ids (or None) and columns of a tail."""
        row = self.heads * self.head_dim * numpy.dtype(DTYPES[self.dtype]).itemsize * self.tokens
        ids = 4 * self.tokens if self.flags & FLAG_IDS else 0
        columns = self.payload[2 * row + ids:]
        if len(columns) % self.tokens or bool(columns) != bool(self.flags & FLAG_COLUMNS):
            raise Broken(f"{len(columns)} bytes behind the rows of {self.tokens} tokens")
        return (self.payload[:row], self.payload[row:2 * row], self.payload[2 * row:2 * row + ids] if ids else None,
                columns)

    def kept(self):
        """Of a tail: heads, dimensions of a head, bytes of columns."""
        return self.heads, self.head_dim, len(self.parts()[3]) // self.tokens


class Cursor:
    """Fields of a payload, one behind the other."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, layout):
        fields = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return fields if len(fields) > 1 else fields[0]

    def text(self):
        size = self.take("H")
        self.at += size
        return self.data[self.at - size:self.at].decode()


class Record:
    """A context record."""

    def __init__(self, value):
        header = Header(value)
        if header.kind != CONTEXT:
            raise Broken(f"kind {header.kind} where a context belongs")
        cursor = Cursor(header.payload)
        self.name = cursor.text()
        self.parent, self.made, self.used, self.retained, self.generation = cursor.take("QQQQQ")
        self.dropping = bool(cursor.take("B") & 1)
        start = cursor.at
        self.layers, self.query_heads, self.kv_heads, self.head_dim, self.dtype = cursor.take("IIIII")
        self.has_rope, self.rotated, _ = cursor.take("BBH")
        self.scale = cursor.take("d")
        self.theta, self.pairing, self.scaling = cursor.take("dII")
        self.factor, self.low, self.high, self.original = cursor.take("dddQ")
        self.fast, self.slow, self.attention_factor, self.rotary_dims = cursor.take("dddI")
        self.fingerprint = cursor.text()
        self.model = xxhash.xxh3_64_intdigest(header.payload[start:cursor.at])
        self.method = cursor.text()
        self.parameters = [(cursor.text(), cursor.text()) for _ in range(cursor.take("H"))]
        if cursor.at != len(header.payload) or self.model != header.model:
            raise Broken("record and header disagree")


class Store:
    def __init__(self, path):
        self.env = lmdb.open(path, readonly=True, lock=False, max_dbs=len(TABLES))
        self.tables = {name: self.env.open_db(name.encode(), create=False) for name in TABLES}
        self.findings, self.kept = [], {}
        with self.env.begin() as txn:
            self.data = {name: list(txn.cursor(db)) for name, db in self.tables.items() if name != "segments"}
        self.numbers = {k.decode(): struct.unpack("<Q", v)[0] for k, v in self.data["meta"]}
        self.refs = {struct.unpack(">Q", k)[0]: struct.unpack("<IIQ", v) for k, v in self.data["refs"]}
        self.chains, self.tails, self.records = {}, {}, {}
        for key, value in self.data["chains"]:
            context, layer, sequence = struct.unpack(">QHI", key)
            self.chains.setdefault((context, layer), []).append((sequence, struct.unpack("<Q", value)[0]))
        for key, value in self.data["tails"]:
            context, layer, position = struct.unpack(">QHQ", key)
            self.tails.setdefault((context, layer), []).append((position, value))
        for key, value in self.data["contexts"]:
            self.attempt(f"context {key.hex()}", lambda k=key, v=value: self.records.update(
                {struct.unpack(">Q", k)[0]: Record(v)}))
        self.names = {k.decode(): struct.unpack("<Q", v)[0] for k, v in self.data["names"]}

    def close(self):
        self.env.close()

    def attempt(self, what, action):
        try:
            action()
        except (Broken, struct.error, UnicodeDecodeError) as problem:
            self.findings.append(f"{what}: {problem}")

    def check(self, truth, text):
        if not truth:
            self.findings.append(text)

    def segment(self, txn, segment, head, kind):
        return txn.get(struct.pack(">QHB", segment, head, kind), db=self.tables["segments"])

    def prove(self):
        self.prove_meta()
        for name, context in self.names.items():
            self.check(context in self.records and self.records[context].name == name, f"name {name!r} leads astray")
        holders = {}
        for (context, layer), entries in self.chains.items():
            self.check(context in self.records, f"chain of context {context}, which does not exist")
            self.check([s for s, _ in entries] == list(range(len(entries))), f"chain {context}/{layer} has a hole")
            for _, segment in entries:
                holders[segment] = holders.get(segment, 0) + 1
        self.check(holders == {s: r[0] for s, r in self.refs.items()}, "refs do not count the chain entries")
        self.prove_segments()
        for (context, layer), records in self.tails.items():
            self.attempt(f"tail {context}/{layer}", lambda c=context, n=layer, r=records: self.prove_tail(c, n, r))
        self.prove_owned()
        return self.findings

    def tokens(self, context, layer):
        tails = self.tails.get((context, layer))
        if tails:
            return tails[-1][0] + Header(tails[-1][1]).tokens
        return SEGMENT * len(self.chains.get((context, layer), ()))

    def prove_owned(self):
        """Notes and tensors, and that whom they belong to is there."""
        for key, value in self.data["notes"]:
            context, layer, kind, number = struct.unpack(">QHBI", key)
            self.attempt(f"note {kind} of {context}/{layer} number {number}", lambda c=context, n=layer, k=kind,
                         i=number, v=value: self.prove_note(c, n, k, i, Header(v)))
        sets = {}
        for name, value in self.data["sets"]:
            self.attempt(f"set {name!r}", lambda n=name, v=value: sets.update({self.prove_set(Header(v)): n}))
        for key, value in self.data["params"]:
            owner, layer = struct.unpack(">QH", key[:10])
            self.check(owner in self.records or owner in sets, f"a tensor of {owner}, which does not exist")
            self.attempt(f"tensor {key[10:]!r} of {owner}", lambda v=value: self.prove_tensor(Header(v)))

    def prove_note(self, context, layer, kind, number, header):
        record = self.records[context]
        if header.model != record.model or layer >= record.layers:
            raise Broken("it belongs to another model")
        if kind == 1:
            if (header.kind, header.dtype, header.tokens, header.heads) != (MASS, 1, 128, record.query_heads):
                raise Broken("its header is not that of mass")
            mass = numpy.frombuffer(header.payload, "<f4").reshape(128, record.query_heads)
            stored = self.tokens(context, layer) - 128 * number
            if header.position != 128 * number or stored <= 0 or mass[stored:].any() or not (mass >= 0).all():
                raise Broken(f"mass of tokens from {header.position} on, {stored} of them are stored")
            return
        if kind == 3:
            self.prove_ring(context, layer, number, header)
            return
        cursor = Cursor(header.payload)
        tokens, heads, zero = cursor.take("QII")
        counts = [cursor.take("Q") for _ in range(heads)]
        if (kind, number, header.kind, header.position, zero) != (2, 0, SELECTION, tokens, 0):
            raise Broken("its header is not that of a selection")
        if heads not in (record.kv_heads, record.query_heads) or tokens > self.tokens(context, layer):
            raise Broken(f"{heads} heads, {tokens} tokens")
        for count in counts:
            ids = numpy.frombuffer(header.payload, "<u4", count, cursor.at).astype(numpy.int64)
            cursor.at += 4 * count
            if (numpy.diff(ids) <= 0).any() or (count and ids[-1] >= tokens):
                raise Broken("ids that do not ascend, or are not of the prompt")
        if cursor.at != len(header.payload):
            raise Broken("bytes behind the last id")

    def prove_ring(self, context, layer, number, header):
        tokens, slots, count = Cursor(header.payload).take("QQQ")
        if (number, header.kind, header.position) != (0, RING, tokens) or len(header.payload) != 24 + 16 * count:
            raise Broken("its header is not that of a ring")
        positions, used = numpy.frombuffer(header.payload[24:], "<u8").astype(numpy.int64).reshape(2, count)
        if tokens > self.tokens(context, layer) or count > min(slots, tokens):
            raise Broken(f"{count} states of {tokens} tokens in {slots} slots")
        if (numpy.diff(positions) <= 0).any() or (positions > used).any() or (used > tokens).any() or \
                (positions >= tokens).any():
            raise Broken("positions that do not ascend, or were used before they were there or later than now")

    def ring(self, name, layer):
        """Tokens that it knows of, positions, when they were used."""
        (value,) = [v for k, v in self.data["notes"] if k == struct.pack(">QHBI", self.names[name], layer, 3, 0)]
        payload = Header(value).payload
        numbers = numpy.frombuffer(payload, "<u8").astype(numpy.int64)
        return int(numbers[0]), *numbers[3:].reshape(2, -1)

    def prove_set(self, header):
        cursor = Cursor(header.payload)
        owner, *_ = cursor.take("QIIIII")
        cursor.text()
        if header.kind != SET or cursor.at != len(header.payload) or owner >= self.numbers["next_context"]:
            raise Broken("it is not a set")
        return owner

    def prove_tensor(self, header):
        cursor = Cursor(header.payload)
        axes, zero = cursor.take("II")
        size = 4
        for _ in range(axes):
            size *= cursor.take("Q")
        if header.kind != PARAM or header.dtype != 1 or header.position < 1 or zero or not 1 <= axes <= 4:
            raise Broken("its header is not that of a tensor")
        if len(header.payload) != cursor.at + size:
            raise Broken(f"{len(header.payload) - cursor.at} bytes of numbers, {size} expected")

    def prove_meta(self):
        self.check(self.numbers.get("format_version") == VERSION, "format_version")
        self.check(self.numbers.get("byte_order") == ORDER, "byte_order")
        self.check(all(s < self.numbers["next_segment"] for s in self.refs), "next_segment is too small")
        self.check(all(c < self.numbers["next_context"] for c in self.records), "next_context is too small")
        stored = sum(r[2] for r in self.refs.values())
        stored += sum(len(v) for table in ("tails", "indexes", "notes", "params", "sets") for _, v in self.data[table])
        self.check(self.numbers.get("stored_bytes") == stored, f"stored_bytes is not {stored}")

    def prove_segments(self):
        sizes = {}
        with self.env.begin() as txn:
            for key, value in txn.cursor(self.tables["segments"]):
                segment, head, kind = struct.unpack(">QHB", key)
                self.attempt(f"segment {segment} head {head} kind {kind}", lambda v=value, k=kind: self.check(
                    Header(v).kind == k, f"segment {segment}: kind differs"))
                sizes[segment] = sizes.get(segment, 0) + len(value)
            for (context, layer), entries in self.chains.items():
                for sequence, segment in entries:
                    self.attempt(f"chain {context}/{layer}/{sequence}", lambda c=context, q=sequence, s=segment:
                                 self.prove_members(txn, c, q, s))
        self.check(sizes == {s: r[2] for s, r in self.refs.items()}, "refs do not sum the values")

    def kept_by(self, txn, segment):
        """The same of a segment."""
        heads = 0
        while self.segment(txn, segment, heads, K) is not None:
            heads += 1
        if heads == 0:
            raise Broken("it has no keys")
        columns = self.segment(txn, segment, 0, COLUMNS)
        if columns is not None and (len(columns) - HEADER) % SEGMENT:
            raise Broken(f"columns of {len(columns) - HEADER} bytes")
        return (heads, Header(self.segment(txn, segment, 0, K)).head_dim,
                0 if columns is None else (len(columns) - HEADER) // SEGMENT)

    def prove_kept(self, context, kept):
        """Rows as the model says, or one head of half a state; the same in all of a context."""
        record = self.records[context]
        heads, head_dim, _ = kept
        if (heads, head_dim) != (record.kv_heads, record.head_dim) and (heads != 1 or head_dim % 8):
            raise Broken(f"{heads} heads of {head_dim} are neither rows nor states")
        if self.kept.setdefault(context, kept) != kept:
            raise Broken(f"it keeps {kept} where others of the context keep {self.kept[context]}")

    def prove_members(self, txn, context, sequence, segment):
        record = self.records[context]
        heads, head_dim, columns = kept = self.kept_by(txn, segment)
        self.prove_kept(context, kept)
        if columns:
            header = Header(self.segment(txn, segment, 0, COLUMNS))
            if (header.position != sequence * SEGMENT or header.model != record.model or header.tokens != SEGMENT
                    or header.heads or header.head_dim or header.dtype):
                raise Broken("columns belong elsewhere")
        for head in range(heads):
            for kind in (K, V):
                value = self.segment(txn, segment, head, kind)
                if value is None:
                    raise Broken(f"head {head} kind {kind} is missing")
                header = Header(value)
                if (header.position != sequence * SEGMENT or header.model != record.model or header.heads != 1
                        or header.tokens != SEGMENT or header.head_dim != head_dim
                        or header.dtype != record.dtype):
                    raise Broken(f"head {head} kind {kind} belongs elsewhere")
            self.prove_planes(txn, record, sequence, segment, head)

    def prove_planes(self, txn, record, sequence, segment, head):
        """Both values or none, of this place, and what the payload of hi says about itself."""
        values = [self.segment(txn, segment, head, kind) for kind in (HI, LO)]
        if values == [None, None]:
            return
        if None in values:
            raise Broken(f"head {head} has one of hi and lo")
        for kind, header in zip((HI, LO), map(Header, values)):
            if (header.position != sequence * SEGMENT or header.model != record.model or header.heads != 1
                    or header.tokens != SEGMENT or header.head_dim != record.head_dim or header.dtype != 0):
                raise Broken(f"head {head} kind {kind} belongs elsewhere")
        if len(values[1]) != HEADER + SEGMENT * record.head_dim:
            raise Broken(f"head {head} lo has {len(values[1])} bytes")
        if len(values[0]) != HEADER + hi_layout(record.head_dim)["end"]:
            raise Broken(f"head {head} hi has {len(values[0])} bytes")
        rows = numpy.frombuffer(values[0][HEADER:], "<u2", SEGMENT, hi_layout(record.head_dim)["rows"])
        if sorted(rows) != list(range(SEGMENT)):
            raise Broken(f"head {head} hi: rows are no permutation")
        if struct.unpack_from("<H", values[0], HEADER + 4)[0] != 2:
            raise Broken(f"head {head} hi: planes of another version")
        checks = numpy.frombuffer(values[0][HEADER:], "<u8", 3 * 64, hi_layout(record.head_dim)["checks"])
        for part, value in enumerate([*(self.segment(txn, segment, head, kind) for kind in (K, V)), values[1]]):
            size = (len(value) - HEADER) // 64
            for piece in range(64):
                at = HEADER + piece * size
                if xxhash.xxh3_64_intdigest(value[at:at + size]) != checks[64 * part + piece]:
                    raise Broken(f"head {head} hi: checksum {piece} of part {part}")

    def prove_tail(self, context, layer, records):
        end = len(self.chains.get((context, layer), ())) * SEGMENT
        for position, value in records:
            header = Header(value)
            if header.kind != TAIL or position != end or header.position != position:
                raise Broken(f"record at {position}, {end} tokens before it")
            if position // SEGMENT != (position + header.tokens - 1) // SEGMENT:
                raise Broken(f"record at {position} crosses a segment")
            self.prove_kept(context, header.kept())
            end += header.tokens

    def rows(self, name, layer):
        context = self.names[name]
        record, dtype = self.records[context], DTYPES[self.records[context].dtype]
        shape = (-1, record.kv_heads, record.head_dim)
        parts = {K: [], V: []}
        ids = []
        with self.env.begin() as txn:
            for _, segment in self.chains.get((context, layer), ()):
                count, dim, _ = self.kept_by(txn, segment)
                shape = (-1, count, dim)
                for kind in (K, V):
                    heads = [numpy.frombuffer(Header(self.segment(txn, segment, head, kind)).payload, dtype)
                             .reshape(SEGMENT, dim) for head in range(count)]
                    parts[kind].append(numpy.stack(heads, axis=1))
                value = self.segment(txn, segment, 0, IDS)
                ids.append(None if value is None else numpy.frombuffer(Header(value).payload, "<u4"))
        for _, value in self.tails.get((context, layer), ()):
            header = Header(value)
            shape = (-1, header.heads, header.head_dim)
            k, v, some, _ = header.parts()
            parts[K].append(numpy.frombuffer(k, dtype).reshape(shape))
            parts[V].append(numpy.frombuffer(v, dtype).reshape(shape))
            ids.append(None if some is None else numpy.frombuffer(some, "<u4"))
        empty = numpy.empty((0,) + shape[1:], dtype)
        known = all(part is not None for part in ids) and ids
        return (numpy.concatenate([empty] + parts[K]), numpy.concatenate([empty] + parts[V]),
                numpy.concatenate(ids) if known else None)

    def mass(self, name, layer):
        """(T, H) float32 of the tokens that notes are about."""
        context = self.names[name]
        notes = {struct.unpack(">QHBI", key)[3]: Header(value).payload for key, value in self.data["notes"]
                 if struct.unpack(">QHBI", key)[:3] == (context, layer, 1)}
        mass = numpy.zeros((128 * (max(notes, default=-1) + 1), self.records[context].query_heads), "<f4")
        for number, payload in notes.items():
            mass[128 * number:128 * (number + 1)] = numpy.frombuffer(payload, "<f4").reshape(128, -1)
        return mass

    def selection(self, name, layer):
        """The tokens that each head keeps, or None."""
        key = struct.pack(">QHBI", self.names[name], layer, 2, 0)
        value = dict(self.data["notes"]).get(key)
        if value is None:
            return None
        cursor = Cursor(Header(value).payload)
        _, heads, _ = cursor.take("QII")
        counts = [cursor.take("Q") for _ in range(heads)]
        ids = numpy.frombuffer(cursor.data, "<u4", sum(counts), cursor.at)
        return numpy.split(ids, numpy.cumsum(counts)[:-1])

    def tensors(self, owner):
        """{(layer, name): (version, array)} of a context or a set."""
        tensors = {}
        for key, value in self.data["params"]:
            if struct.unpack(">Q", key[:8])[0] != owner:
                continue
            header = Header(value)
            cursor = Cursor(header.payload)
            axes, _ = cursor.take("II")
            shape = [cursor.take("Q") for _ in range(axes)]
            array = numpy.frombuffer(cursor.data, "<f4", -1, cursor.at).reshape(shape)
            tensors[struct.unpack(">H", key[8:10])[0], key[10:].decode()] = header.position, array
        return tensors

    def sets(self):
        """{name: (id, method)}"""
        found = {}
        for name, value in self.data["sets"]:
            cursor = Cursor(Header(value).payload)
            owner, *_ = cursor.take("QIIIII")
            found[name.decode()] = owner, cursor.text()
        return found

    def columns(self, name, layer):
        context = self.names[name]
        with self.env.begin() as txn:
            data = [Header(self.segment(txn, segment, 0, COLUMNS)).payload
                    for _, segment in self.chains.get((context, layer), ())]
        tokens = SEGMENT * len(data)
        for _, value in self.tails.get((context, layer), ()):
            header = Header(value)
            data.append(header.parts()[3])
            tokens += header.tokens
        return numpy.frombuffer(b"".join(data), numpy.uint8).reshape(tokens, -1)


def main(arguments):
    if len(arguments) == 3 and arguments[0] == "--dump":
        store = Store(arguments[1])
        record = store.records[store.names[arguments[2]]]
        for layer in range(record.layers):
            k, v, ids = store.rows(arguments[2], layer)
            print(layer, len(k), hashlib.sha256(k.tobytes()).hexdigest(), hashlib.sha256(v.tobytes()).hexdigest(),
                  "-" if ids is None else hashlib.sha256(ids.tobytes()).hexdigest())
        return 0
    if len(arguments) != 1:
        print(__doc__)
        return 2
    store = Store(arguments[0])
    findings = store.prove()
    for finding in findings:
        print(finding)
    print(f"{len(store.records)} contexts, {len(store.refs)} segments, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
