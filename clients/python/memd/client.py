# SPDX-License-Identifier: Apache-2.0
"""The calls: a Client, and the Contexts it opens.

Shape letters as everywhere in memd: n tokens or queries of one call, H query heads, G KV heads, D head
dimension. A Context holds only an id that stays the same over restarts of the daemon, so it goes on
working when the daemon comes back. W is the width of a state, for methods that keep states instead of
keys and values (`Context.state_width`).
"""
from __future__ import annotations

import time
from typing import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from . import dtypes, wire
from .answers import (Appended, Answer, Built, ContextInfo, Explained, Health, Hits, Method, Quality,
                      Recall, Record, Rows, Stats, Status, VerifyReport, fill, read_answer)
from .connection import Connection
from .errors import Error, ProtocolError
from .model import Model
from .region import Region
from .requests import Query, Tokens, add_out, add_params, add_query, add_tokens, add_wish

_ACKS = {"committed": 0, "memory": 1, "synced": 2}
_ATTEND_ITEMS_MAX = 1024
_LIST_MAX = 1024
_APPEND_BYTES_MAX = 64 << 20  # of one request made by `append`, were everything float32
_QUALITY_BYTES = 25           # of a query head in a reply's message, at most
_BUILD_PAUSE_S = 0.1          # between two looks at how far the builder is


def connect(address: str, token: str | None = None, timeout: float | None = 30.0) -> "Client":
    """Connect to a daemon.

    address   "unix:/run/memd/memd.sock" or "tcp:host:port"
    token     the secret of a TCP listener
    timeout   seconds each call may take (waiting for a daemon that restarts included); None = for ever.
              The first connection is not waited for: without a daemon this raises ClosedError at once.
    """
    return Client(address, token, timeout)


class Client:
    """One connection. Safe to use from several threads, which then take turns."""

    def __init__(self, address: str, token: str | None = None, timeout: float | None = 30.0):
        from . import __version__
        self._connection = Connection(address, token, timeout, f"python memd {__version__}")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    @property
    def bytes_sent(self) -> int:
        """Bytes written to the daemon so far, headers included."""
        return self._connection.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._connection.bytes_received

    @property
    def reconnects(self) -> int:
        """How often the connection was lost and made again."""
        return self._connection.reconnects

    @property
    def build(self) -> str:
        """The daemon's version, as in "memd 0.1.0"."""
        return self._connection.hello.build

    @property
    def role(self) -> str:
        """What this client may do: "read", "write" or "admin"."""
        return self._connection.hello.role

    @property
    def features(self) -> list[str]:
        return list(self._connection.hello.features)

    @property
    def methods(self) -> dict[str, Method]:
        """Memory methods that `open` accepts, by name: what they are and which parameters they take."""
        return {wire.name: Method._read(wire) for wire in self._simple("methods").methods}

    def share(self, size: int) -> Region:
        """Memory of `size` bytes that the daemon, on the same host, reads and writes: arrays in it do not
        travel. A context manager, closed with the client at the latest.

            with client.share(64 << 20) as region:
                q, o, lse = region.array((n, H, D), np.float16), region.array((n, H, D)), region.array((n, H))
                q[:] = …
                book.attend(layer, q, positions, out=(o, lse))

        UnsupportedError over TCP and where the daemon takes none; FullError, LimitError where it takes no more.
        """
        return self._connection.share(size)

    def open(self, name: str, model: Model | None = None, method: str | None = None,
             parameters: dict[str, object] | None = None, create: bool = False,
             must_create: bool = False) -> "Context":
        """Open a context by name.

        model    what its bytes mean; needed to create, MismatchError where a different one is stored;
                 None: whatever is stored
        method, parameters   the memory method; None = "progressive" when creating, else whatever is
                 stored. `methods` says which there are and what they can be told.
        create   make it when it does not exist
        must_create   ExistsError when it does
        """
        request = wire.Request("open")
        message = request.message
        message.name = name
        message.method = method or ""
        message.create = create or must_create
        message.must_create = must_create
        request.repeatable = not must_create
        if model is not None:
            message.model.SetInParent()
            model._write(message.model)
        for key, value in (parameters or {}).items():
            message.parameters.add(name=key, value=str(value))
        return Context(self, name, self._connection.call(request).message)

    def contexts(self, prefix: str = "") -> list[ContextInfo]:
        """All contexts whose name starts with `prefix`, by name."""
        found: list[ContextInfo] = []
        more = True
        while more:
            request = wire.Request("list")
            request.message.prefix = prefix
            request.message.after = found[-1].name if found else ""
            request.message.limit = _LIST_MAX
            reply = self._connection.call(request).message
            found.extend(ContextInfo._read(info) for info in reply.contexts)
            more = reply.more and len(reply.contexts) > 0
        return found

    def attend_many(self, queries: Iterable[Query], return_errors: bool = False) -> list[Answer]:
        """Many attends, of any contexts and layers, in as few round trips as the limits allow.

        Returns the answers in the order of the queries. An item that fails does not touch the others:
        its error is raised after all have been answered or, with `return_errors`, stands in its place.
        """
        queries = list(queries)
        requests: list[wire.Request] = []
        reply_bytes = reply_rows = 0
        for query in queries:
            shape = np.shape(query.q)  # the reply has to fit into a frame, too
            o_bytes, rows = 4 * int(np.prod(shape)), int(np.prod(shape[:-1]))
            # A plan may take half of a message: an item that asks for one goes alone.
            if (not requests or query.explain or requests[-1].message.items[-1].explain
                    or len(requests[-1].message.items) >= _ATTEND_ITEMS_MAX
                    or reply_bytes + o_bytes > wire.PAYLOAD_BYTES_MAX // 2
                    or (reply_rows + rows) * _QUALITY_BYTES > wire.MESSAGE_BYTES_MAX // 2):
                requests.append(self._connection.request("attend"))
                reply_bytes = reply_rows = 0
            reply_bytes += o_bytes
            reply_rows += rows
            item = requests[-1].message.items.add()
            add_query(requests[-1], item, query)
            add_out(requests[-1], item, query)
        answers: list = []
        for request, reply in zip(requests, self._connection.exchange(requests)):
            if isinstance(reply, Exception):
                answers.extend([reply] * len(request.message.items))
                continue
            if len(reply.message.answers) != len(request.message.items):
                raise ProtocolError(f"{len(reply.message.answers)} answers to {len(request.message.items)} queries")
            answers.extend(read_answer(reply, answer, query.out) for answer, query
                           in zip(reply.message.answers, queries[len(answers):]))
        failures = [answer for answer in answers if isinstance(answer, Error)]
        if failures and not return_errors:
            raise failures[0]
        return answers

    def put_params(self, name: str, params: Mapping[str, np.ndarray], model: Model, method: str,
                   parameters: dict[str, object] | None = None, layer: int | None = None) -> None:
        """Upload tensors as the set `name`, which contexts share: those that are opened with the parameter
        `params` = name, with this model and method. Otherwise as `Context.put_params`; MismatchError where
        the set is for something else."""
        request = self._connection.request("put_params")
        request.message.set = name
        request.message.method = method
        model._write(request.message.model)
        for key, value in (parameters or {}).items():
            request.message.parameters.add(name=key, value=str(value))
        add_params(request, params, layer)
        self._connection.call(request)

    def drop_params(self, name: str) -> int:
        """Delete a set that no context uses (BusyError). Returns the bytes given back."""
        request = wire.Request("drop_params")
        request.message.set = name
        return self._connection.call(request).message.bytes

    def status(self) -> Status:
        """What the daemon is and what it holds."""
        return fill(Status, self._simple("status"))

    def stats(self) -> Stats:
        """Counters and histograms since the daemon started."""
        return Stats._read(self._simple("stats"))

    def health(self) -> Health:
        """Does it live, is it ready for work."""
        return fill(Health, self._simple("health"))

    def drain(self, deadline: float = 0.0) -> int:
        """Ask the daemon to finish what it has, sync and exit, within `deadline` seconds (0 = its
        configuration). Returns how many requests are left to finish."""
        request = wire.Request("drain")
        request.message.deadline_ms = int(deadline * 1000)
        return self._connection.call(request).message.requests_left

    def verify(self, context: "Context | None" = None,
               progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Check every checksum and invariant of a context, or of the whole store.

        Works in bounded steps; `progress(values so far, about how many in all)` is called after each.
        The store is sound when `.findings` is empty; `.unchecked` says what the daemon could not check, and why.
        """
        report = VerifyReport()
        cursor = b""
        while True:
            request = wire.Request("verify")
            request.message.context_id = context.id if context is not None else 0
            request.message.cursor = cursor
            reply = self._connection.call(request).message
            report.values += reply.values
            report.bytes += reply.bytes
            report.findings.extend(reply.findings)
            report.unchecked.extend(reply.unchecked)
            if progress is not None:
                progress(report.values, reply.values_total)
            cursor = reply.cursor
            if not cursor:
                return report

    def dump(self, context: "Context | None" = None) -> Iterator[Record]:
        """The records of the store, readable, one by one."""
        cursor, first = b"", True
        while cursor or first:
            request = wire.Request("dump")
            request.message.context_id = context.id if context is not None else 0
            request.message.cursor = cursor
            request.message.limit = _LIST_MAX
            reply = self._connection.call(request).message
            yield from (fill(Record, record) for record in reply.records)
            cursor, first = reply.cursor, False

    def rebuild(self, wait: bool = True,
                progress: Callable[[str, Built], None] | None = None) -> dict[str, Built]:
        """`Context.rebuild` of every context, by name."""
        names = {info.context_id: info.name for info in self.contexts()}
        deleted = self._rebuild_steps(0)
        return {names.get(context_id, str(context_id)):
                self._wait_built(context_id, names.get(context_id, str(context_id)), wait, progress)
                for context_id in deleted}

    def _rebuild_steps(self, context_id: int) -> list[int]:
        """Delete what is derived of one context or (0) of all; which those were."""
        cursor, first, done = b"", True, []
        while cursor or first:
            request = wire.Request("rebuild")
            request.message.context_id = context_id
            request.message.cursor = cursor
            reply = self._connection.call(request).message
            if reply.context_id and reply.context_id not in done:
                done.append(reply.context_id)
            cursor, first = reply.cursor, False
        return done

    def _wait_built(self, context_id: int, name: str, wait: bool, progress) -> Built:
        while True:
            request = wire.Request("rebuild")
            request.message.context_id = context_id
            request.message.ask = True
            built = fill(Built, self._connection.call(request).message)
            if progress is not None:
                progress(name, built)
            if not wait or built.done or built.failure:
                return built
            time.sleep(_BUILD_PAUSE_S)

    def compact(self, path: str) -> tuple[int, int]:
        """Write a compacted copy of the store into a new directory on the daemon's host. Returns the
        bytes before and after."""
        request = wire.Request("compact")
        request.message.path = path
        reply = self._connection.call(request).message
        return reply.bytes_before, reply.bytes_after

    def _simple(self, method: str):
        return self._connection.call(wire.Request(method)).message


class Context:
    """A named past of one model: per layer, tokens at positions 0, 1, 2, … Made by `Client.open`."""

    def __init__(self, client: Client, name: str, opened):
        self.client = client
        self.name = name
        self.id: int = opened.context_id
        self.created: bool = opened.created  # by this open
        self.model = Model._read(opened.model)
        self.method: str = opened.method
        self.state_width: int = opened.state_width  # W where the method keeps states, 0: it keeps rows
        self.parameters = {parameter.name: parameter.value for parameter in opened.parameters}

    def __repr__(self) -> str:
        return f"<memd.Context {self.name!r} id={self.id} method={self.method}>"

    def append(self, layer: int, position: int, k: np.ndarray | None = None,
               v: np.ndarray | None = None, q: np.ndarray | None = None, ack: str = "committed",
               token_ids: Sequence[int] | None = None, marks: Sequence[int] | None = None,
               scores: np.ndarray | None = None, states: np.ndarray | None = None) -> Appended:
        """Store the keys and values of n tokens of one layer, the first at `position`.

        k, v (n, G, D)   any float dtype: rounded to the model's, to nearest, ties to even (uint16 is
              taken as the bits of bfloat16 for a bfloat16 model). No copy where the dtype fits already.
        q (n, H, D)      the queries of these tokens, for memory methods that learn from them
        marks (n)        what the tokens are to the method, as bits: MARK_LANDMARK, MARK_SPECIAL
        scores (n, H)    the attention mass that they have received so far
        states (n, W)    instead of k and v where the method keeps states (`state_width` = W)
        ack   "memory": visible to attends · "committed": survives the death of the daemon ·
              "synced": survives a loss of power

        `Client.methods` says what a method wants. `position` has to be the layer's token count, or lie
        before it where the bytes repeat what is stored (that is what a retry sends); everything else is
        PositionError. What does not fit into one frame goes in several, in order.
        """
        arrays = [None if x is None else np.asarray(x) for x in (k, v, q, marks, scores, states)]
        tokens = Tokens(layer, *arrays)
        given = [array for array in arrays if array is not None]
        row_bytes = 4 * sum(array[:1].size for array in given)
        step = max(1, _APPEND_BYTES_MAX // max(1, row_bytes))
        for start in range(0, max(1, len(given[0]) if given else 0), step):
            part = slice(start, start + step)
            done = self.append_layers(position + start, [tokens.part(part)], ack,
                                      None if token_ids is None else token_ids[part])
        return done

    def append_layers(self, position: int, layers: Iterable[Tokens | tuple], ack: str = "committed",
                      token_ids: Sequence[int] | None = None) -> Appended:
        """Several layers at one position in one request: all are taken or none.

        layers   Tokens, or tuples of their fields in order, (layer, k, v, …), with the shapes of `append`
        """
        request = self.client._connection.request("append")
        request.message.context_id = self.id
        if ack not in _ACKS:
            raise ValueError(f"ack is {ack!r}, must be one of {', '.join(_ACKS)}")
        request.message.ack = _ACKS[ack]
        for tokens in layers:
            item = request.message.layers.add(position=position)
            add_tokens(request, item, Tokens(*tokens), self.model.dtype)
            if token_ids is not None:
                item.token_ids.extend(int(token) for token in token_ids)
        reply = self.client._connection.call(request).message
        return Appended(reply.tokens, reply.committed_tokens, reply.synced_tokens)

    def attend(self, layer: int, q: np.ndarray, positions: Sequence[int],
               limits: Sequence[int] | None = None, target_error: float | None = None,
               max_bytes: int | None = None, states: np.ndarray | None = None,
               explain: bool = False,
               local: tuple[np.ndarray, np.ndarray] | None = None,
               rope_theta: float | None = None, window: str = "any",
               out: tuple[np.ndarray | None, np.ndarray | None] | None = None) -> Answer:
        """Attention of n queries over the stored tokens of a layer.

        q (n, H, D)      float16, bfloat16 or float32 (others are rounded to float32)
        positions (n)    of the queries: RoPE rotates them there when the model is not `rotated`
        limits (n)       query i sees tokens at positions < limits[i]; None: everything stored. A batch
                         of queries whose own tokens are stored too needs limits to be causal.
        target_error     wanted relative L2 error of o, at most 1, 0 = exact; None: the context's.
                         Methods that cannot steer their error ignore it.
        max_bytes        to be read for this call at most, as far as the method can choose, 0 = no
                         bound; None: the context's. It wins over target_error: `quality.limited`.
        states (n, W)    of the queries, where the method keeps states
        explain          `answer.plan` says what was read, where it was rotated and how it was merged
        local            (o, lse) of the same shapes as the answer: the caller's own attention over tokens
                         that are not stored, its window. The answer is then of both together, as
                         `memd.merge` would join them or as the method does it; quality is of what is
                         stored.
        rope_theta       rotate keys and queries with another base than the model's, where memd rotates
                         them and the method made nothing of rotated keys
        window           of a daemon with a device, which keeps the newest rows of layers there: "any", as
                         the daemon sees fit; "resident", the device is to answer, from those rows exactly,
                         while others travel (where it cannot, the CPU answers); "none", the CPU answers
                         and nothing is brought there. `quality.window_tokens` says what came of it.
        out              (o, lse), float32 arrays to be filled, either may be None. What lies in shared memory
                         (`Client.share`) the daemon writes itself.
        Returns o (n, H, D) and lse (n, H), float32, ready for `memd.merge`, and the answer's quality:
        what it was made from, and how wrong it is expected to be.
        """
        return self.client.attend_many([Query(self, layer, q, positions, limits, target_error,
                                              max_bytes, states, explain, local, rope_theta,
                                              window, out)])[0]

    def search(self, layer: int, q: np.ndarray, k: int, limits: Sequence[int] | None = None,
               positions: Sequence[int] | None = None, target_error: float | None = None,
               max_bytes: int | None = None, states: np.ndarray | None = None) -> Hits:
        """The k stored tokens with the greatest attention logits, per query and query head.

        q (n, H, D); limits, positions (n), target_error, max_bytes and states as in `attend`. Models
        that are not `rotated` need positions.
        Returns ids (n, H, k) uint64, best first, and scores (n, H, k); unpacks as `ids, scores = …`.
        """
        request = self.client._connection.request("search")
        request.message.context_id = self.id
        request.message.k = k
        if positions is None and not self.model.rotated:
            raise ValueError("keys of this context are rotated while reading: positions are needed")
        if positions is None:
            positions = [0] * len(q)
        add_query(request, request.message, Query(self, layer, q, positions, limits, target_error,
                                                   max_bytes, states))
        reply = self.client._connection.call(request)
        scores = reply.tensor(reply.message.scores)
        return Hits(reply.tensor(reply.message.ids), scores,
                    Quality._read(reply.message.quality, scores.shape[:2]))

    def fetch(self, layer: int, ids: Sequence[int]) -> Rows:
        """Rows as they were appended, bit for bit: k, v (len(ids), G, D), in the model's dtype (for
        bfloat16: bits as uint16); states (len(ids), W) where the context keeps those. Unpacks as
        `k, v = …`. Any order, repeats allowed; NoRowError."""
        request = wire.Request("fetch")
        request.message.context_id = self.id
        request.message.layer = layer
        request.message.ids.extend(np.asarray(ids, dtype=np.uint64).tolist())
        reply = self.client._connection.call(request)
        token_ids = np.array(reply.message.token_ids, dtype=np.uint32)
        k, v, states = (reply.tensor(getattr(reply.message, name)) if reply.message.HasField(name)
                        else None for name in ("k", "v", "states"))
        return Rows(k, v, token_ids if len(token_ids) else None, states)

    def stat(self) -> ContextInfo:
        """Token counts, bytes and times of this context."""
        return ContextInfo._read(self._simple("stat").context)

    def observe(self, layer: int, position: int, mass: np.ndarray) -> int:
        """Tell what attention mass stored tokens have received since it was last told, for methods that
        choose by it (`Method.takes_mass`). Returns the layer's token count.

        mass (n, H)   of tokens position … position + n - 1, added to what is known; not negative. Tokens
                      that the method has taken into its state already are left out.
        """
        request = self.client._connection.request("observe")
        request.message.context_id = self.id
        request.message.layer = layer
        request.message.position = position
        request.tensor(request.message.mass, *dtypes.to_query(mass, self.model.dtype))
        return self.client._connection.call(request).message.tokens

    def compress(self, layers: Iterable[int] | None = None, tokens: int = 0,
                 q: Mapping[int, np.ndarray] | None = None) -> dict[int, int]:
        """Let the method choose, once, what it keeps of a prompt (`Method.compresses`): from now on queries
        read that and everything behind the prompt. Rows stay stored; truncating into the prompt is
        refused.

        layers   None: those of `q`, or all of the model
        tokens   of the prompt; 0: everything that is stored
        q        by layer, (w, H, D): the queries of the prompt's last w tokens, where the method wants them
        Returns how many tokens were kept of each layer, over all heads; a layer of which the method keeps
        everything (a short prompt) stays as it was. Layers are done one after the other; an error
        (ExistsError: compressed already) leaves those before it done.
        """
        q = q or {}
        layers = list(layers if layers is not None else q or range(self.model.layers))
        request = self.client._connection.request("compress")
        request.message.context_id = self.id
        for layer in layers:
            item = request.message.layers.add(layer=layer, tokens=tokens)
            if layer in q:
                request.tensor(item.q, *dtypes.to_query(q[layer], self.model.dtype))
        return dict(zip(layers, self.client._connection.call(request).message.kept))

    def put_params(self, params: Mapping[str, np.ndarray], layer: int | None = None) -> None:
        """Upload tensors for the method of this context (`Method.tensors`: names and shapes), in place of
        those that were there; what the method made with the old ones is made again.

        layer   None: for all layers. A tensor for the layer itself comes before one for all.
        """
        request = self.client._connection.request("put_params")
        request.message.context_id = self.id
        add_params(request, params, layer)
        self.client._connection.call(request)

    def state(self, layer: int) -> dict[str, float]:
        """What the method keeps of a layer, in numbers by name: "tokens" folded into it, "bytes" of memory,
        and what the method tells. Empty where it keeps no state, or the layer is empty."""
        return self.states().get(layer, {})

    def states(self) -> dict[int, dict[str, float]]:
        """`state` of every layer in use, by layer."""
        return {state.layer: {fact.name: fact.value for fact in state.facts}
                for state in self._simple("stat", state=True).states}

    def recall(self, layers: Iterable[int] | None = None, target_error: float | None = None,
               max_bytes: int | None = None) -> list[Recall]:
        """The proof that answers are as good as they say: the latest queries of each layer (those sent
        by `append` or `attend` since the daemon started; it keeps a few), answered again by the
        context's method and exactly.

        layers   None: all of the model
        target_error, max_bytes   as in `attend`
        """
        found = []
        for layer in range(self.model.layers) if layers is None else layers:
            request = wire.Request("recall")
            request.message.context_id = self.id
            request.message.layer = layer
            add_wish(request.message, target_error, max_bytes)
            found.append(Recall._read(layer, self.client._connection.call(request).message))
        return found

    def explain(self, layer: int, query: int = 0, target_error: float | None = None,
                max_bytes: int | None = None) -> Explained:
        """What is read, and why, for one of the queries that `recall` answers again: over everything that
        is stored now. To see it for a query of one's own: `attend` with `explain`.

        query    0: the newest, 1: the one before it, …; NoRowError where so many are not kept
        target_error, max_bytes   as in `attend`
        """
        request = wire.Request("explain")
        request.message.context_id = self.id
        request.message.layer = layer
        request.message.query = query
        add_wish(request.message, target_error, max_bytes)
        return Explained._read(self.client._connection.call(request).message)

    def rebuild(self, wait: bool = True,
                progress: Callable[[str, Built], None] | None = None) -> Built:
        """Delete what the daemon derived from the rows, so that it makes it again in the background;
        until then rows are read exactly. Needs the role "admin".

        wait   until everything is built again, or building fails (`.failure` says why)
        progress   called with the context's name and how far it is, again and again
        """
        self.client._rebuild_steps(self.id)
        return self.client._wait_built(self.id, self.name, wait, progress)

    def built(self, wait: bool = False) -> Built:
        """How far the data is that the daemon derives from the rows; with `wait`, when it is there or
        cannot be made."""
        return self.client._wait_built(self.id, self.name, wait, None)

    def truncate(self, position: int) -> int:
        """Forget the tokens at `position` and after it, in all layers. Returns the token count."""
        return self._simple("truncate", position=position).tokens

    def fork(self, name: str, method: str | None = None,
             parameters: dict[str, object] | None = None) -> "Context":
        """A new context with the same past, sharing what is stored; both go on by themselves.

        method, parameters   another way to read it: what was kept for the old method alone (what
                 `compress` chose, observed mass, uploaded tensors) stays behind. None: the same.
        """
        request = wire.Request("fork")
        request.message.context_id = self.id
        request.message.name = name
        request.message.method = method or ""
        for key, value in (parameters or {}).items():
            request.message.parameters.add(name=key, value=str(value))
        self.client._connection.call(request)
        return self.client.open(name)

    def drop(self) -> int:
        """Delete the context. Returns the bytes given back."""
        return self._simple("drop").bytes

    def pin(self, seconds: float) -> int:
        """Protect it from eviction for that long (0 = no longer). Returns until when, in ms of Unix
        time."""
        return self._simple("pin", seconds=int(seconds)).until_unix_ms

    def _simple(self, method: str, **fields):
        request = wire.Request(method)
        request.message.context_id = self.id
        for name, value in fields.items():
            setattr(request.message, name, value)
        return self.client._connection.call(request).message
