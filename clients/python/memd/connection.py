# SPDX-License-Identifier: Apache-2.0
"""One socket to the daemon: requests in order, replies by request id, reconnects underneath.

A lock makes the connection safe for threads; a thread holds it for a whole exchange, so threads that want
to wait for the daemon side by side each use a client of their own. When the socket breaks (the daemon was
restarted), requests that may be repeated are sent again on a new one: reads change nothing, and the
daemon accepts an append that repeats stored bytes. The others (truncate, fork, drop, compact, an open
that must create) raise ClosedError, because nobody knows whether they took place.

Several requests are pipelined with poll, sending and receiving at once: a client that only sent would
deadlock with a daemon whose replies it does not read.
"""
from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections import deque
from typing import Any

from . import wire
from .errors import (ClosedError, DeadlineError, InvalidError, LimitError, ProtocolError,
                     UnsupportedError, error_from_code)
from .region import Region

_IOV_MAX = 512
_PAUSE_FIRST_S, _PAUSE_MAX_S = 0.005, 0.2


class Address:
    """"unix:/path" or "tcp:host:port"."""

    def __init__(self, text: str):
        kind, _, rest = text.partition(":")
        host, _, port = rest.rpartition(":")
        self.target: Any
        if kind == "unix" and rest:
            self.family, self.target = socket.AF_UNIX, rest
        elif kind == "tcp" and host and port.isdigit() and int(port) < 1 << 16:
            self.family, self.target = socket.AF_INET, (host.strip("[]"), int(port))
        else:
            raise ValueError(f"address {text!r} is neither unix:/path nor tcp:host:port")
        self.text = text

    def connect(self, timeout: float | None) -> socket.socket:
        if self.family == socket.AF_INET:
            sock = socket.create_connection(self.target, timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(self.target)
        except BaseException:
            sock.close()
            raise
        return sock


class Deadline:
    """The time one call may take; None = for ever."""

    def __init__(self, timeout: float | None):
        self.timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """Seconds left, never 0 (which a socket reads as "do not block"); DeadlineError when passed."""
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"no answer within {self.timeout} s")
        return left

    def left_ms(self) -> int:
        left = self.left()
        return 0 if left is None else max(1, min(int(left * 1000), 0xFFFFFFFF))


class Connection:
    def __init__(self, address: str, token: str | None, timeout: float | None, client: str):
        self.timeout = timeout
        self.bytes_sent = 0      # over all sockets of this connection, headers included
        self.bytes_received = 0
        self.reconnects = -1
        self.hello: Any = None   # HelloReply of the newest socket
        self._address = Address(address)
        self._token = token or ""
        self._client = client
        self.regions: list[Region] = []  # that the daemon has, or will have again
        self._region_numbers = 0
        self._lock = threading.RLock()
        self._socket: Any = None  # a socket.socket, or None while there is none
        self._next_id = 1
        with self._lock:
            try:
                self._open(Deadline(timeout))
            except (socket.timeout, DeadlineError) as failure:
                raise DeadlineError(f"no answer within {timeout} s") from failure
            except OSError as failure:
                raise ClosedError(f"cannot connect to {address}: {failure}") from failure
            finally:
                if self.hello is None:  # nobody has this object to close it
                    self._drop_socket()

    def close(self) -> None:
        with self._lock:
            self._drop_socket()
            while self.regions:
                self.regions.pop()._forget()

    def request(self, method: str) -> wire.Request:
        """One whose tensors need not travel where they lie in a region."""
        return wire.Request(method, self.regions)

    def share(self, size: int) -> Region:
        """Memory that the daemon reads and writes."""
        with self._lock:
            if "shared-memory" not in self.hello.features:
                raise UnsupportedError("this daemon does not offer shared memory on this connection")
            if size > self.hello.region_bytes_max:  # before it is allocated
                raise LimitError(f"a region of {size} bytes, this daemon takes {self.hello.region_bytes_max}")
            self._region_numbers += 1  # no number twice: requests that are sent again mean the same
            region = Region(self, self._region_numbers, size)
            try:
                region.registered = self.call(self._map_request(region)).message.registered
            except BaseException:
                region._forget()
                raise
            self.regions.append(region)
            return region

    def unshare(self, region: Region) -> None:
        with self._lock:
            if region not in self.regions:
                return
            self.regions.remove(region)
            request = wire.Request("unmap_memory")
            request.message.region = region.number
            try:
                if self._socket is not None:  # otherwise no daemon has it
                    self.call(request)
            except InvalidError:  # another connection, on which it was never shared
                pass
            finally:
                region._forget()

    @staticmethod
    def _map_request(region: Region) -> wire.Request:
        request = wire.Request("map_memory", fd=region.fd)
        request.message.region = region.number
        request.message.bytes = region.size
        return request

    def call(self, request: wire.Request) -> wire.Reply:
        """One request, its reply, or the error the daemon answered with."""
        reply = self.exchange([request])[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    def exchange(self, requests: list[wire.Request]) -> list:
        """Pipelined: a list of replies in the order of the requests; an Error where the daemon
        answered with one."""
        with self._lock:
            deadline = Deadline(self.timeout)
            replies: list = [None] * len(requests)
            pause_s = _PAUSE_FIRST_S
            while True:
                try:
                    self._open(deadline)
                    self._refuse(requests, replies)
                    self._run(requests, replies, deadline)
                    return replies
                except (socket.timeout, DeadlineError) as failure:
                    self._drop_socket()
                    raise DeadlineError(f"no answer within {self.timeout} s") from failure
                except OSError as failure:
                    self._drop_socket()
                    self._check_repeatable(requests, replies, failure)
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, _PAUSE_MAX_S)
                except BaseException:  # half a reply may be left in the socket
                    self._drop_socket()
                    raise

    def _refuse(self, requests, replies) -> None:
        """Requests that name a region which this daemon did not take."""
        for region in self.regions:
            for place, request in enumerate(requests):
                if region.refused is not None and replies[place] is None and region.number in request.named:
                    replies[place] = region.refused

    @staticmethod
    def _check_repeatable(requests, replies, failure) -> None:
        for request, reply in zip(requests, replies):
            if reply is None and not request.repeatable:
                raise ClosedError(f"the connection broke during {request.method}, which may or may "
                                  f"not have taken place: {failure}") from failure

    def _open(self, deadline: Deadline) -> None:
        if self._socket is not None and self._is_alive():
            self._socket.settimeout(deadline.left())
            return
        self._drop_socket()
        self._socket = self._address.connect(deadline.left())
        self.reconnects += 1
        hello = wire.Request("hello")
        hello.message.version = wire.VERSION
        hello.message.client = self._client
        hello.message.token = self._token
        hello.message.features.append("shared-memory")
        replies: list = [None]
        self._run([hello], replies, deadline)
        if isinstance(replies[0], Exception):
            self._drop_socket()
            raise replies[0]
        self.hello = replies[0].message
        for region in self.regions:
            replies = [None]
            self._run([self._map_request(region)], replies, deadline)
            region.refused = replies[0] if isinstance(replies[0], Exception) else None
            region.registered = region.refused is None and replies[0].message.registered

    def _is_alive(self) -> bool:
        """False when the daemon has closed its side while we were idle: a request that must not be
        repeated is then still unsent."""
        self._socket.settimeout(0)  # with a timeout, Python would wait for bytes before it looks
        try:
            return self._socket.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _run(self, requests, replies, deadline: Deadline) -> None:
        """Send what has no reply yet, receive until everything has one."""
        flight: dict[int, int] = {}  # request id -> place in `requests`
        waiting = deque(i for i, reply in enumerate(replies) if reply is None)
        if len(waiting) == 1:
            place = waiting.popleft()
            self._send(self._start(requests, place, flight, deadline), requests[place].fd)
            self._receive(requests, replies, flight)
            return
        flight_max = max(1, min(64, self.hello.requests_in_flight_max or 1)) if self.hello else 1
        poll = select.poll()
        out: deque = deque()
        while waiting or out or flight:
            if not out and waiting and len(flight) < flight_max:
                out.extend(self._start(requests, waiting.popleft(), flight, deadline))
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if out else 0))
            left_s = deadline.left()
            events = poll.poll(None if left_s is None else left_s * 1000)
            ready = events[0][1] if events else 0
            if ready & ~select.POLLOUT:
                self._receive(requests, replies, flight)
            elif ready & select.POLLOUT:
                self._send_some(out)

    def _start(self, requests, place: int, flight: dict, deadline: Deadline) -> list:
        request_id = self._next_id
        self._next_id += 1
        flight[request_id] = place
        return [memoryview(part) for part in
                requests[place].buffers(request_id, deadline.left_ms())]

    def _send(self, parts: list, fd: int | None = None) -> None:
        out = deque(parts)
        beside = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
        while out:
            parts = [out[i] for i in range(min(len(out), _IOV_MAX))]
            self._advance(out, self._socket.sendmsg(parts, beside))
            beside = []

    def _send_some(self, out: deque) -> None:
        parts = [out[i] for i in range(min(len(out), _IOV_MAX))]
        try:
            self._advance(out, self._socket.sendmsg(parts, (), socket.MSG_DONTWAIT))
        except BlockingIOError:
            pass

    def _advance(self, out: deque, sent: int) -> None:
        self.bytes_sent += sent
        while out and sent >= len(out[0]):
            sent -= len(out.popleft())
        if sent:
            out[0] = out[0][sent:]

    def _receive_into(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            count = self._socket.recv_into(view[done:])
            if count == 0:
                raise ConnectionResetError("the daemon closed the connection")
            done += count
        self.bytes_received += done

    def _receive(self, requests, replies, flight: dict) -> None:
        """One reply, whichever comes first."""
        header = bytearray(wire.HEADER.size)
        self._receive_into(memoryview(header))
        head = wire.decode_reply_header(header)
        message = bytearray(head.message_bytes)
        self._receive_into(memoryview(message))
        payload = wire.aligned_empty(head.payload_bytes)
        self._receive_into(payload.data)
        place = flight.pop(head.request_id, None)
        if place is None:
            raise ProtocolError(f"a reply to request {head.request_id}, which was not sent")
        kind = wire.ErrorReply if head.status else wire.reply_class(requests[place].method)
        parsed = wire.parse(kind, bytes(message))
        replies[place] = (error_from_code(head.status, parsed.text) if head.status
                          else wire.Reply(parsed, payload))
