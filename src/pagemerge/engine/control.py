"""The control socket: JSON objects, a line each (docs/reference/control-protocol.md)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pagemerge.engine.accepting import Door
from pagemerge.errors import CommandError, PagemergeError

__all__ = ["ControlServer", "Later", "read_peer"]

log = logging.getLogger("pagemerge.control")

LINE_MAX = 1 << 20  # bytes of one request
BACKLOG_MAX = 8 << 20  # bytes that a peer may leave unread before it loses events or the connection

_UCRED = struct.Struct("=iII")


def read_peer(sock: socket.socket) -> tuple[int, int]:
    """Read (pid, uid) of the other end, as the kernel saw it connect (SO_PEERCRED)."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(raw)
    return pid, uid


@dataclass(slots=True)
class Later:
    """An answer that is not there yet: asked again each turn until it is, or time is up."""

    ready: Callable[[], Any | None]  # None: not yet
    deadline: float  # monotonic seconds
    late: Callable[[], PagemergeError]


class _Peer:
    """One connection."""

    def __init__(self, sock: socket.socket, uid: int) -> None:
        self.sock = sock
        self.uid = uid
        self.incoming = b""
        self.outgoing = bytearray()
        self.waiting: Later | None = None
        self.events = False
        self.lost = 0


class ControlServer:
    """Accepts, parses, answers; `verbs` maps each `do` to what does it."""

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        verbs: dict[str, Callable[[dict[str, Any]], Any]],
    ) -> None:
        """Take over a listening socket."""
        self._door = Door(listener)
        self._selector = selector
        self._verbs = verbs
        self._peers: set[_Peer] = set()
        selector.register(listener, selectors.EVENT_READ, self._accept)

    @property
    def has_subscribers(self) -> bool:
        """Whether anybody wants trace events."""
        return any(peer.events for peer in self._peers)

    @property
    def has_waiters(self) -> bool:
        """Whether an answer is owed."""
        return any(peer.waiting for peer in self._peers)

    def close(self) -> None:
        """Close everything; what is written already still arrives."""
        for peer in list(self._peers):
            self._flush(peer)
            self._close(peer)
        self._selector.unregister(self._door.listener)
        self._door.close()

    def publish(self, lines: list[dict[str, Any]], lost: int = 0) -> None:
        """Give events to all who asked for them; the slow lose some, and are told how many."""
        for peer in [peer for peer in self._peers if peer.events]:
            if len(peer.outgoing) > BACKLOG_MAX:
                peer.lost += len(lines) + lost
                continue
            if peer.lost or lost:
                self._put(peer, {"lost": peer.lost + lost})
                peer.lost = 0
            for line in lines:
                self._put(peer, line)
            self._flush(peer)

    def tend(self, now: float) -> None:
        """Answer those whose answer has become ready, or is too late."""
        for peer in [peer for peer in self._peers if peer.waiting]:
            later = peer.waiting
            assert later is not None
            try:
                value = later.ready()
                if value is None and now >= later.deadline:
                    raise later.late()
            except PagemergeError as error:
                self._answer(peer, _failure(error))
            else:
                if value is None:
                    continue
                self._answer(peer, {"ok": True, "value": value})
            peer.waiting = None
            self._serve(peer)

    def _accept(self, _mask: int) -> None:
        sock = self._door.accept()
        if sock is None:
            return
        pid, uid = read_peer(sock)
        if uid not in (os.geteuid(), 0):
            log.warning("refused control connection of process %d, user %d", pid, uid)
            sock.close()
            return
        sock.setblocking(False)
        peer = _Peer(sock, uid)
        self._peers.add(peer)
        self._selector.register(sock, selectors.EVENT_READ, lambda mask: self._ready(peer, mask))

    def _ready(self, peer: _Peer, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush(peer)
        if mask & selectors.EVENT_READ:
            try:
                data = peer.sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close(peer)
                return
            peer.incoming += data
            if len(peer.incoming) > LINE_MAX:
                log.warning("control connection closed: a request of more than %d bytes", LINE_MAX)
                self._close(peer)
                return
            self._serve(peer)

    def _serve(self, peer: _Peer) -> None:
        while peer.waiting is None and b"\n" in peer.incoming and peer in self._peers:
            line, peer.incoming = peer.incoming.split(b"\n", 1)
            try:
                value = self._call(peer, line)
            except PagemergeError as error:
                self._answer(peer, _failure(error))
                continue
            if isinstance(value, Later):
                peer.waiting = value
            else:
                self._answer(peer, {"ok": True, "value": value})

    def _call(self, peer: _Peer, line: bytes) -> Any:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CommandError(f"the request is not JSON: {error}") from error
        if not isinstance(request, dict) or not isinstance(request.get("do"), str):
            raise CommandError('a request is a JSON object with a string "do"')
        verb = self._verbs.get(request["do"])
        if verb is None:
            known = ", ".join(sorted(self._verbs))
            raise CommandError(f"there is no {request['do']!r}; there are {known}")
        value = verb(request)
        if request["do"] == "events":
            peer.events = True
        return value

    def _answer(self, peer: _Peer, answer: dict[str, Any]) -> None:
        self._put(peer, answer)
        self._flush(peer)

    def _put(self, peer: _Peer, line: dict[str, Any]) -> None:
        peer.outgoing += json.dumps(line, separators=(",", ":")).encode() + b"\n"

    def _flush(self, peer: _Peer) -> None:
        if peer not in self._peers:
            return
        try:
            while peer.outgoing:
                sent = peer.sock.send(peer.outgoing)
                del peer.outgoing[:sent]
        except BlockingIOError:
            if not peer.events and len(peer.outgoing) > BACKLOG_MAX:
                self._close(peer)
                return
        except OSError:
            self._close(peer)
            return
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.outgoing else 0)
        key = self._selector.get_key(peer.sock)
        if key.events != mask:
            self._selector.modify(peer.sock, mask, key.data)

    def _close(self, peer: _Peer) -> None:
        if peer in self._peers:
            self._peers.remove(peer)
            with contextlib.suppress(KeyError):
                self._selector.unregister(peer.sock)
            peer.sock.close()


def _failure(error: PagemergeError) -> dict[str, Any]:
    return {
        "ok": False,
        "error": type(error).__name__,
        "message": str(error),
        "hint": error.hint,
        "errno": getattr(error, "errno", None),
        "pid": getattr(error, "pid", None),
    }


def deadline_in(seconds: float) -> float:
    """Monotonic time, `seconds` from now."""
    return time.monotonic() + seconds
