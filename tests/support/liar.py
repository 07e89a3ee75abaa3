"""A hostile client of the daemon: nothing that it says need be true."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct

from pagemerge import _core
from pagemerge.engine import wire
from tests.support.donor import PAGE, Donor

__all__ = ["Liar"]


class Liar(Donor):
    """It answers what it is asked by chance, and says what it is not asked for."""

    chance = random.Random(int(os.environ.get("PAGEMERGE_SEED", "6")))

    def lie(self) -> None:
        """Take one message, and answer it in some way; ConnectionError when it is hung up on."""
        self.sock.settimeout(1)
        try:
            datagram, fds, _, _ = socket.recv_fds(self.sock, _core.MESSAGE_MAX, 16)
        except TimeoutError:
            return self.say_something()
        if not datagram:
            raise ConnectionResetError
        kind, count, seq = wire.parse_header(datagram)
        if fds and self.chance.random() < 0.8:  # garbage where its pages should be, where it can
            with contextlib.suppress(OSError):
                os.pwrite(
                    fds[0], self.chance.randbytes(64 * PAGE), self.chance.randrange(64) * PAGE
                )
        for fd in fds:
            os.close(fd)
        way = self.chance.random()
        if kind == wire.Kind.HASH and way < 0.9:
            ranges = wire.parse_ranges(datagram)
            if way < 0.5:
                return self.hash(seq, ranges)
            pages = sum(item.end - item.start for item in ranges) // PAGE
            keys = self.chance.choice(
                [bytes(8 * pages), b"\x01" * 8 * pages, os.urandom(8 * pages)]
            )
            return self.send(wire.Kind.HASHES, pages, seq, bytes(16) + keys)
        if way < 0.6:
            return self.answer(
                seq, self.chance.randrange(10_000), self.chance.choice([0, 0, -1, 5])
            )
        if way < 0.9:
            failed = [self.failure(datagram, count) for _ in range(self.chance.randrange(1, 40))]
            head = struct.pack("=IIIIIiQQ", 0, 1 << 31, 7, 1 << 31, 2, 0, 1 << 63, 1 << 63)
            return self.send(wire.Kind.RESULT, len(failed), seq, head + b"".join(failed))
        if way < 0.98:
            return None  # never answered
        return self.answer(seq + self.chance.randrange(3), 1)

    def failure(self, datagram: bytes, count: int) -> bytes:
        """Of a page that was asked for, or not."""
        at = 16 + 24 * self.chance.randrange(count) if count else 16
        (address,) = struct.unpack_from("=Q", datagram.ljust(at + 8, b"\0"), at)
        address += PAGE * self.chance.choice([0, 0, 1, -1, 1 << 20])
        pages = self.chance.choice([1, 1, 3, 512, (1 << 32) - 1])
        return struct.pack(
            "=QII", address & ~(PAGE - 1) & (1 << 64) - 1, pages, self.chance.randrange(1, 8)
        )

    def say_something(self) -> None:
        """Marks and losses that it has not, and has."""
        start = self.address + PAGE * self.chance.randrange(-8, self.pages + 8)
        item = struct.pack(
            "=QQII", start, start + PAGE * self.chance.randrange(1, self.pages), 1, 0
        )
        self.send(self.chance.choice([wire.Kind.MARK, wire.Kind.GONE]), 1, 0, item)

    def send(self, kind: wire.Kind, count: int, seq: int, body: bytes) -> None:
        """Send a message."""
        self.sock.send(struct.pack("=IIQ", kind, count, seq) + body)
