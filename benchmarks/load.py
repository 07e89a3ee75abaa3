"""Steady load on a server, every answer checked: the clients of `benchmarks.servers`."""

from __future__ import annotations

import http.client
import multiprocessing
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

__all__ = ["Load", "Loaded", "ask_http", "ask_postgres", "ask_redis", "connect_redis"]

# Asks one question, number n of connection c; raises when the answer is wrong.
Ask = Callable[[int], None]
Connect = Callable[[int], Ask]


@dataclass
class Loaded:
    """What the clients saw: seconds from when a request was due until its answer was there."""

    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """The latency that this share of the requests stayed within, seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Load:
    """Clients in a process of their own, a thread each: `begin`, then `finish`.

    Args:
        connect: makes connection c, and gives what asks its question n.
        clients: how many connections.
        rate: requests a second, all together.
    """

    def __init__(self, connect: Connect, clients: int, rate: float) -> None:
        """Start them."""
        self._pipe, theirs = multiprocessing.Pipe()
        # fork: the question is a closure, and this process has no other thread
        context = multiprocessing.get_context("fork")
        self._process = context.Process(
            target=_run_clients, args=(connect, clients, rate, theirs), daemon=True
        )
        self._process.start()

    def begin(self) -> None:
        """Forget the latencies so far: those of a server that warms up. Failures are kept."""
        self._pipe.send("begin")

    def finish(self) -> Loaded:
        """End the load, and tell what they saw."""
        self._pipe.send("enough")
        if not self._pipe.poll(60):
            self._process.kill()
            raise TimeoutError("the clients hang: an answer never came")
        found = self._pipe.recv()
        self._process.join(10)
        assert isinstance(found, Loaded)
        return found


def _run_clients(connect: Connect, clients: int, rate: float, pipe: Connection) -> None:
    over = threading.Event()
    loaded = [Loaded() for _ in range(clients)]
    threads = [
        threading.Thread(target=_run_client, args=(connect, c, clients / rate, over, loaded[c]))
        for c in range(clients)
    ]
    for thread in threads:
        thread.start()
    pipe.recv()
    for one in loaded:
        one.latencies.clear()
    pipe.recv()
    over.set()
    for thread in threads:
        thread.join()
    merged = Loaded()
    for one in loaded:
        merged.latencies += one.latencies
        merged.failures += one.failures
    pipe.send(merged)


def _run_client(
    connect: Connect, number: int, interval: float, over: threading.Event, loaded: Loaded
) -> None:
    n = -1
    try:
        ask = connect(number)
        due = time.monotonic()
        n = 0
        while not over.is_set():
            time.sleep(max(0.0, due - time.monotonic()))
            ask(n)
            loaded.latencies.append(time.monotonic() - due)
            n += 1
            due += interval
    except Exception as error:  # noqa: BLE001  # whatever it was, the request failed
        loaded.failures.append(f"connection {number}, request {n}: {error!r}")


def _expect(found: object, wanted: object) -> None:
    if found != wanted:
        raise ValueError(f"answered {found!r} instead of {wanted!r}")


def ask_http(port: int, path: Callable[[int], str], answer: Callable[[int], bytes]) -> Connect:
    """Questions by HTTP on a connection that is kept."""

    def connect(_: int) -> Ask:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

        def ask(n: int) -> None:
            connection.request("GET", path(n))
            response = connection.getresponse()
            body = response.read()
            _expect((response.status, body), (200, answer(n)))

        return ask

    return connect


def connect_redis(path: Path) -> socket.socket:
    """A connection to a redis server's socket."""
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(30)
    link.connect(str(path))
    return link


def ask_redis(path: Path) -> Connect:
    """A key that is set to a new value and read back, on the server's socket."""

    def connect(c: int) -> Ask:
        link = connect_redis(path)
        answers = link.makefile("rb")

        def ask(n: int) -> None:
            value = f"{c}:{n}"
            link.sendall(f"SET key:{c} {value}\r\nGET key:{c}\r\n".encode())
            got = [answers.readline() for _ in range(3)]
            _expect(got, [b"+OK\r\n", f"${len(value)}\r\n".encode(), f"{value}\r\n".encode()])

        return ask

    return connect


def ask_postgres(path: Path, user: str) -> Connect:
    """A row of its own that is counted up, on the server's socket, in PostgreSQL's protocol 3."""

    def connect(c: int) -> Ask:
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(30)
        link.connect(str(path))
        words = f"user\0{user}\0database\0postgres\0\0".encode()
        link.sendall(struct.pack("!ii", len(words) + 8, 196608) + words)
        answers = link.makefile("rb")

        def read() -> list[tuple[bytes, bytes]]:
            messages = []
            while True:
                kind, length = struct.unpack("!ci", answers.read(5))
                messages.append((kind, answers.read(length - 4)))
                if kind == b"E":
                    raise ValueError(f"error: {messages[-1][1]!r}")
                if kind == b"Z":
                    return messages

        def query(text: str) -> list[bytes]:
            data = text.encode() + b"\0"
            link.sendall(b"Q" + struct.pack("!i", len(data) + 4) + data)
            return [body for kind, body in read() if kind == b"D"]

        read()
        table = f"counts{c}"
        query(f"create unlogged table {table} (n int)")
        query(f"insert into {table} values (-1)")

        def ask(n: int) -> None:
            text = str(n).encode()
            wanted = struct.pack("!hi", 1, len(text)) + text
            _expect(query(f"update {table} set n = n + 1 returning n"), [wanted])

        return ask

    return connect
