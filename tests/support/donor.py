"""A client of the daemon under a test's control: it hashes truly, and gives pages, or does not."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import addressof, c_char
from dataclasses import dataclass
from pathlib import Path

from pagemerge import _core
from pagemerge.engine import wire

__all__ = ["Donor", "Gift", "donor"]

PAGE = 4096
_HEADER = struct.Struct("=IIQ")
_RANGE = struct.Struct("=QQII")
_RUN = struct.Struct("=QIIII")
_WHOLE = 1  # PM_HASH_WHOLE
_GAP = 1  # PM_RUN_GAP


@dataclass(frozen=True, slots=True)
class Gift:
    """A request to write pages to a segment (PM_GIVE): the segment is the caller's to close."""

    seq: int
    runs: list[tuple[int, int, int]]  # address, pages, position in the segment
    segment: int

    @property
    def pages(self) -> int:
        """How many are to be written."""
        return sum(pages for _, pages, _ in self.runs)


class Donor:
    """This process as a client, with `pages` pages of random.Random(seed)'s."""

    def __init__(self, runtime: Path, seed: str, pages: int, domain: str = "") -> None:
        self.memory = mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory[:] = random.Random(seed).randbytes(pages * PAGE)
        self.address = addressof(c_char.from_buffer(self.memory))
        self.pages = pages
        self._server: threading.Thread | None = None
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(runtime / "agent.sock"))
        names = ("pagemap", "maps", "mem")
        fds = [os.open(f"/proc/self/{name}", os.O_RDONLY) for name in names]
        flags = wire.HelloFlag.PRELOADED | wire.HelloFlag.GIVES
        hello = struct.pack(
            "=IIIIiIQQ64s64s", _core.PROTOCOL_VERSION, flags, 7, 2, 0, PAGE, 0, 0,
            domain.encode(), b"",
        )  # fmt: skip
        socket.send_fds(self.sock, [_HEADER.pack(wire.Kind.HELLO, 1, 0) + hello], fds)
        for fd in fds:
            os.close(fd)
        mark = _RANGE.pack(self.address, self.address + pages * PAGE, wire.Mark.MERGEABLE, 0)
        self.sock.send(_HEADER.pack(wire.Kind.MARK, 1, 0) + mark)

    def await_gift(self, seconds: float = 30.0) -> Gift | None:
        """Answer what else is asked until pages are to be given; None: there are none in time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                datagram, fds, _, _ = socket.recv_fds(self.sock, _core.MESSAGE_MAX, 16)
            except TimeoutError:
                break
            if not datagram:
                raise ConnectionResetError("the daemon has hung up")
            kind, count, seq = wire.parse_header(datagram)
            if kind == wire.Kind.GIVE:
                runs = [
                    _RUN.unpack_from(datagram, _HEADER.size + i * _RUN.size) for i in range(count)
                ]
                wanted = [
                    (at, pages, slot) for at, pages, _, slot, flags in runs if not flags & _GAP
                ]
                for fd in fds[1:]:
                    os.close(fd)
                return Gift(seq, wanted, fds[0])
            for fd in fds:
                os.close(fd)
            if kind == wire.Kind.HASH:
                self.hash(seq, wire.parse_ranges(datagram))
            elif kind in (wire.Kind.MERGE, wire.Kind.UNMERGE, wire.Kind.ZERO):
                self.answer(seq, error=-errno.EBUSY)  # it maps nothing
        return None

    def hash(self, seq: int, ranges: list[wire.Range]) -> None:
        """Answer a request for hashes, truly."""
        keys = b""
        for item in ranges:
            start, end = item.start - self.address, item.end - self.address
            keys += _core.page_keys(self.memory[start:end], bool(item.flags & _WHOLE))
        head = _HEADER.pack(wire.Kind.HASHES, len(keys) // 8, seq) + bytes(16)
        self.sock.send(head + keys)

    def write(self, gift: Gift) -> None:
        """Write what is asked for to the segment."""
        for address, pages, slot in gift.runs:
            start = address - self.address
            os.pwrite(gift.segment, self.memory[start : start + pages * PAGE], slot * PAGE)

    def answer(self, seq: int, merged: int = 0, error: int = 0) -> None:
        """Say what came of a request: as many pages are merged, unless there is an error."""
        result = struct.pack("=IIIIIiQQ", merged, 0, 0, 1, 2, error, 0, 0)
        self.sock.send(_HEADER.pack(wire.Kind.RESULT, 0, seq) + result)

    def serve(self) -> None:
        """From now on give what is asked for, truly, in a thread of its own."""
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # hung up on, by either side
            while (gift := self.await_gift(3600)) is not None:
                try:
                    self.write(gift)
                    self.answer(gift.seq, gift.pages)
                except PermissionError:  # sealed, by a test
                    self.answer(gift.seq, error=-errno.EPERM)
                os.close(gift.segment)

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        if self._server is not None:
            self._server.join()
        self.sock.close()


@contextmanager
def donor(runtime: Path, seed: str, pages: int, domain: str = "") -> Iterator[Donor]:
    """Connect a donor; hang up in the end."""
    found = Donor(runtime, seed, pages, domain)
    try:
        yield found
    finally:
        found.close()
