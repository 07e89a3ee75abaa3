"""The processes that an agent lives in, as the daemon knows them."""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pagemerge.engine import wire

if TYPE_CHECKING:
    from pagemerge import _core

__all__ = ["Client", "read_comm"]

_MERGING = (wire.Kind.MERGE, wire.Kind.GIVE)
WINDOW = 8  # datagrams under way to one agent
SILENT_SECONDS = 10.0  # without an answer: the pass goes on without it


def read_comm(pid: int) -> str:
    """Read a process's short name, `?` when it is gone (/proc/PID/comm)."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return "?"


@dataclass(slots=True, eq=False)
class Client:
    """One process: its agent's connection, and what is under way with it."""

    mm: int
    pid: int
    hello: wire.Hello
    scanner: _core.Scanner
    sock: socket.socket | None
    pidfd: int
    tracker: int  # its write-tracking userfaultfd, -1: none
    comm: str
    merge_any: bool = False
    marked: bool = False
    silent: bool = False
    at_work: bool | None = None  # its agent said so: it would notice to be stopped, or to wait
    since: float = field(default_factory=time.monotonic)
    under_way: dict[int, float] = field(default_factory=dict)
    barrier: int = 0  # enum pm_barrier: the one last used
    agent_cpu_ns: int = 0
    stopped_ns: int = 0
    copied_pages: int = 0
    _words: list[bytes] = field(default_factory=list)  # for the agent, to be sent before requests
    _unsent: tuple[int, bytes, list[int]] | None = None

    @property
    def registered(self) -> bool:
        """Whether ksmd looks at it: marked, or all of it asked for (the kernel's mm list)."""
        return self.marked or self.merge_any

    @property
    def asked(self) -> bool:
        """Whether an answer is awaited that may still come."""
        waiting = bool(self.under_way) or self._unsent is not None
        return waiting and self.answers

    @property
    def answers(self) -> bool:
        """Whether what it is asked will be answered, as far as is known."""
        return self.sock is not None and not self.silent

    def who(self) -> str:
        """Name it for people."""
        return f"process {self.pid} ({self.comm})"

    def tell(self, datagram: bytes) -> None:
        """Send the agent a message that it does not answer, now or with the next requests."""
        self._words.append(datagram)
        self._send_words()

    def send_requests(self, window: int = WINDOW) -> int:
        """Hand the agent what the scanner wants, as far as the window goes; datagrams sent."""
        sent = 0
        self._send_words()
        while self.sock is not None and not self.silent and len(self.under_way) < window:
            request = self._unsent or self.scanner.take_request(self.mm)
            self._unsent = None
            if request is None:
                break
            seq, datagram, fds = request
            if self.tracker >= 0 and wire.parse_header(datagram)[0] in _MERGING:
                fds = [*fds, self.tracker]  # must give way to the agent's own userfaultfd
            try:
                socket.send_fds(self.sock, [datagram], fds)
            except OSError as error:
                # No room, or too many descriptors under way to other processes: later.
                if error.errno in {errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS}:
                    self._unsent = request
                    break
                with suppress(OSError):  # the server sees the end, and closes what it watches
                    self.sock.shutdown(socket.SHUT_RDWR)
                break
            self.under_way[seq] = time.monotonic()
            sent += 1
        return sent

    def _send_words(self) -> None:
        while self.sock is not None and self._words:
            try:
                self.sock.send(self._words[0])
            except OSError:  # no room for it yet; or the end, which is seen elsewhere
                break
            del self._words[0]

    def lose(self) -> None:
        """Close the connection; the process goes on with what it has mapped."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None
        self._unsent = None
        self._words.clear()
        self.under_way.clear()
        self.scanner.drop_requests(self.mm)

    def end(self) -> None:
        """Forget it: the process has ended."""
        self.lose()
        for fd in (self.pidfd, self.tracker):
            if fd >= 0:
                os.close(fd)
        self.scanner.remove(self.mm)

    def asked_since(self, then: float) -> bool:
        """Tell whether something was asked after that time and has not been answered."""
        return bool(self.under_way) and max(self.under_way.values()) > then

    def overdue(self, now: float) -> bool:
        """Tell whether an answer is later than it may be."""
        return bool(self.under_way) and now - min(self.under_way.values()) > SILENT_SECONDS
