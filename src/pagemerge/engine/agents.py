"""The agents' socket: who connects, what they say, and what is made of it."""

from __future__ import annotations

import logging
import os
import select
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from pagemerge import _core
from pagemerge.engine import wire
from pagemerge.engine.accepting import Door
from pagemerge.engine.clients import Client, read_comm
from pagemerge.engine.control import read_peer
from pagemerge.engine.scanning import Ksmd

__all__ = ["AgentServer"]

log = logging.getLogger("pagemerge.agents")

TURNED_AWAY_MAX = 1000  # remembered, so that each is told once
MESSAGES_A_TURN = 64  # of one agent, before others get theirs
HELLO_FDS = (wire.HelloFd.PAGEMAP, wire.HelloFd.MAPS, wire.HelloFd.MEM, wire.HelloFd.UFFD)


class AgentServer:
    """Accepts agents and keeps a `Client` for each process until the process ends."""

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        ksmd: Ksmd,
        scanner_of: Callable[[str], _core.Scanner],
    ) -> None:
        """Take over a listening SOCK_SEQPACKET socket; `scanner_of` gives a domain's scanner."""
        self.clients: dict[int, Client] = {}  # by mm
        self._door = Door(listener)
        self._selector = selector
        self._ksmd = ksmd
        self._scanner_of = scanner_of
        self._next_mm = 1
        self._turned_away: dict[int, str] = {}
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Close every connection; the processes keep their memory."""
        for client in self.clients.values():
            if client.sock is not None:
                self._selector.unregister(client.sock)
                client.sock.close()
        self._selector.unregister(self._door.listener)
        self._door.close()

    def find(self, pid: int) -> Client | None:
        """Find the newest client of a process."""
        found = [client for client in self.clients.values() if client.pid == pid]
        return max(found, key=lambda client: client.mm, default=None)

    def tend(self, now: float) -> None:
        """Give up waiting for agents that do not answer; the pass goes on without them.

        A process that has replaced itself by another program is forgotten: its pidfd says nothing,
        and the new program's agent comes only when that program asks for merging.
        """
        for client in self._ksmd.take_left():
            self._forget(client)
        for client in self.clients.values():
            if not client.silent and client.overdue(now):
                client.silent = True
                client.scanner.stop_giving(client.mm)
                log.warning("%s does not answer; going on without it", client.who())

    # connections

    def _accept(self, _mask: int) -> None:
        sock = self._door.accept()
        if sock is None:
            return
        pid, uid = read_peer(sock)
        if uid != os.geteuid():
            log.warning("refused process %d: user %d is not this daemon's", pid, uid)
            sock.close()
            return
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, lambda _mask: self._greet(sock, pid))

    def _greet(self, sock: socket.socket, pid: int) -> None:
        """Take the first message, which must be a HELLO."""
        fds: list[int] = []
        try:
            datagram, fds, _, _ = socket.recv_fds(sock, _core.MESSAGE_MAX, len(HELLO_FDS))
            if not datagram:
                raise ProcessLookupError
            client = self._admit(sock, pid, datagram, fds)
        except BlockingIOError:
            return
        except (ProcessLookupError, BrokenPipeError, ConnectionResetError):
            self._selector.unregister(sock)  # a child that was forked and ended at once
            sock.close()
            return
        except (OSError, ValueError) as error:
            self._tell_turned_away(pid, str(error))
            self._selector.unregister(sock)
            sock.close()
            return
        finally:
            for fd in fds:
                os.close(fd)
        self._selector.modify(sock, selectors.EVENT_READ, lambda _mask: self._listen(client))

    def _tell_turned_away(self, pid: int, why: str) -> None:
        """Say it once: agents come back again and again."""
        if self._turned_away.get(pid) != why:
            if len(self._turned_away) >= TURNED_AWAY_MAX:
                self._turned_away.clear()
            self._turned_away[pid] = why
            log.warning("process %d (%s) was turned away: %s", pid, read_comm(pid), why)

    def _admit(self, sock: socket.socket, pid: int, datagram: bytes, fds: list[int]) -> Client:
        _core.check_message(datagram, True)
        if wire.parse_header(datagram)[0] != wire.Kind.HELLO:
            raise ValueError("its first message is no HELLO")
        hello = wire.parse_hello(datagram)
        if hello.version != _core.PROTOCOL_VERSION:
            raise ValueError(
                f"its agent speaks version {hello.version}, this daemon {_core.PROTOCOL_VERSION}"
            )
        if hello.page_size != _core.PAGE_SIZE:
            raise ValueError(f"its pages are of {hello.page_size} bytes")
        named = [fd for fd in HELLO_FDS if hello.fds & fd]
        if len(named) != len(fds):
            raise ValueError(f"{len(fds)} descriptors came, {len(named)} were named")
        given = dict(zip(named, fds, strict=True))
        scanner = self._scanner_of(hello.domain)
        mm, self._next_mm = self._next_mm, self._next_mm + 1
        parent = self.find(hello.parent) if hello.flags & wire.HelloFlag.FORKED else None
        pagemap, maps, mem, uffd = (given.get(fd, -1) for fd in HELLO_FDS)
        related = parent.mm if parent and parent.scanner is scanner else 0
        scanner.add(mm, pid, pagemap, maps, mem, uffd, related)
        pidfd = tracker = -1
        try:
            if hello.flags & wire.HelloFlag.GIVES:
                scanner.give(mm)
            if hello.own_end:
                scanner.exclude(mm, hello.own_start, hello.own_end)
            pidfd = os.pidfd_open(pid)
            tracker = os.dup(uffd) if uffd >= 0 else -1
            # last: one that was welcome and is turned away all the same comes back at once
            sock.send(wire.render_welcome(os.getpid()))
        except OSError:
            scanner.remove(mm)
            for fd in (pidfd, tracker):
                if fd >= 0:
                    os.close(fd)
            raise
        client = Client(mm, pid, hello, scanner, sock, pidfd, tracker, read_comm(pid))
        former = self.find(pid)
        self.clients[mm] = client
        self._selector.register(pidfd, selectors.EVENT_READ, lambda _mask: self._ended(client))
        if former is not None:
            self._succeed(former, client)
        if hello.flags & wire.HelloFlag.ALL:
            self.set_all(client, True)
        log.info("%s is here%s", client.who(), f", refused: {hello.refusal}" * bool(hello.refusal))
        if hello.flags & wire.HelloFlag.SHARED_TABLE:
            log.info(
                "%s: no userfaultfd barrier, as its agent can't have descriptors of its own "
                "(close_range and unshare are forbidden)",
                client.who(),
            )
        return client

    def _succeed(self, former: Client, client: Client) -> None:
        """The process has connected before: after an exec nothing of it is left, else all is."""
        if client.hello.flags & wire.HelloFlag.BACK:
            with suppress(ProcessLookupError):
                client.scanner.begin_mm(client.mm)
        self._forget(former)

    def _ended(self, client: Client) -> None:
        log.info("%s has ended", client.who())
        self._forget(client)

    def _forget(self, client: Client) -> None:
        if self.clients.pop(client.mm, None) is None:
            return
        self._drop_sock(client)
        self._selector.unregister(client.pidfd)
        self._ksmd.unregister(client)
        client.end()

    def _drop_sock(self, client: Client) -> None:
        if client.sock is not None:
            with suppress(KeyError):
                self._selector.unregister(client.sock)
            client.lose()

    # messages

    def _listen(self, client: Client) -> None:
        for _ in range(MESSAGES_A_TURN):
            if client.sock is None:
                return
            try:
                datagram, fds, _, _ = socket.recv_fds(client.sock, _core.MESSAGE_MAX, 16)
            except BlockingIOError:
                return
            except OSError as error:
                log.info("%s: %s", client.who(), error)
                self._drop_sock(client)
                return
            for fd in fds:
                os.close(fd)
            if not datagram:
                if not _has_ended(client):
                    log.info("%s has closed its connection", client.who())
                self._drop_sock(client)
                return
            try:
                _core.check_message(datagram, True)
                self._hear(client, datagram)
            except ValueError as error:
                log.warning("%s sent garbage: %s; disconnected", client.who(), error)
                self._drop_sock(client)
                return

    def _hear(self, client: Client, datagram: bytes) -> None:
        kind, _, seq = wire.parse_header(datagram)
        scanner, mm = client.scanner, client.mm
        if kind == wire.Kind.RESULT:
            self._hear_result(client, seq, datagram)
        elif kind == wire.Kind.HASHES:
            spent, client.at_work = wire.parse_hashes(datagram)
            self._ksmd.hashing_ns += max(0, spent - client.agent_cpu_ns)
            client.agent_cpu_ns = max(client.agent_cpu_ns, spent)
            self._answered(client, seq, datagram)
        elif kind == wire.Kind.MARK:
            for item in wire.parse_ranges(datagram):
                scanner.mark(mm, item.start, item.end, item.flags)
                if item.flags in (wire.Mark.MERGEABLE, wire.Mark.SEALED):
                    client.marked = True
            self._marked(client)
        elif kind == wire.Kind.ALL:
            for item in wire.parse_ranges(datagram):
                self.set_all(client, bool(item.flags))
        elif kind == wire.Kind.GONE:
            for item in wire.parse_ranges(datagram):
                scanner.gone(mm, item.start, item.end, bool(item.flags))
            self._ksmd.rouse()
        elif kind == wire.Kind.BYE:
            self._drop_sock(client)
        else:
            raise ValueError(f"a message of kind {kind} in mid-conversation")

    def _hear_result(self, client: Client, seq: int, datagram: bytes) -> None:
        result = wire.parse_result(datagram)
        client.agent_cpu_ns = max(client.agent_cpu_ns, result.cpu_ns)
        client.stopped_ns += result.stopped_ns
        client.copied_pages += result.copied
        client.barrier = result.barrier or client.barrier
        client.at_work = result.at_work
        if seq:
            self._answered(client, seq, datagram)
        else:  # to a PM_PING
            self._ksmd.answered(client)

    def _answered(self, client: Client, seq: int, datagram: bytes) -> None:
        if client.under_way.pop(seq, None) is None:
            raise ValueError(f"an answer to request {seq}, which was not made")
        if client.silent:
            client.silent = False
            if client.hello.flags & wire.HelloFlag.GIVES:
                client.scanner.give(client.mm)
            log.info("%s answers again", client.who())
        client.scanner.put_result(client.mm, datagram)
        self._ksmd.answered(client)

    def set_all(self, client: Client, on: bool) -> None:
        """Switch merging on or off for all of a process, as prctl(PR_SET_MEMORY_MERGE) does."""
        client.merge_any = on
        if not on:
            client.marked = False
        client.scanner.set_all(client.mm, on)
        self._marked(client)

    def _marked(self, client: Client) -> None:
        if client.registered and not client.hello.refusal:
            self._ksmd.register(client)
            self._ksmd.rouse()
        client.since = client.since or time.monotonic()


def _has_ended(client: Client) -> bool:
    return bool(select.select([client.pidfd], [], [], 0)[0])
