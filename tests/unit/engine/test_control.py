from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pagemerge.engine.control import ControlServer, Later
from pagemerge.errors import EngineError, RejectedError


class Bench:
    """A control server and one peer, turned by hand."""

    def __init__(self, folder: Path) -> None:
        self.selector = selectors.DefaultSelector()
        listener = socket.socket(socket.AF_UNIX)
        listener.setblocking(False)
        listener.bind(str(folder / "c"))
        listener.listen()
        self.answer_now: Any = None
        verbs = {
            "echo": lambda request: request.get("x"),
            "refuse": self.refuse,
            "later": lambda _request: Later(
                lambda: self.answer_now, time.monotonic() + 60, self.late
            ),
            "late": lambda _request: Later(lambda: None, time.monotonic(), self.late),
            "events": lambda _request: {},
        }
        self.server = ControlServer(listener, self.selector, verbs)
        self.peer = socket.socket(socket.AF_UNIX)
        self.peer.settimeout(5)
        self.peer.connect(str(folder / "c"))
        self.lines = self.peer.makefile("rb")

    def late(self) -> EngineError:
        return EngineError("too late", hint="wait longer")

    def refuse(self, _request: dict[str, Any]) -> None:
        raise RejectedError("no", hint="ask nicely")

    def turn(self) -> None:
        while ready := self.selector.select(0.02):
            for key, mask in ready:
                key.data(mask)
            self.server.tend(time.monotonic())
        self.server.tend(time.monotonic())

    def ask(self, line: bytes) -> dict[str, Any]:
        self.peer.sendall(line + b"\n")
        self.turn()
        answer: dict[str, Any] = json.loads(self.lines.readline())
        return answer


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.server.close()
    bench.lines.close()
    bench.peer.close()
    bench.selector.close()


def test_a_request_is_answered(bench: Bench) -> None:
    assert bench.ask(b'{"do":"echo","x":[1,2]}') == {"ok": True, "value": [1, 2]}


def test_an_error_keeps_its_name_and_hint(bench: Bench) -> None:
    answer = bench.ask(b'{"do":"refuse"}')
    assert answer["ok"] is False
    assert (answer["error"], answer["message"]) == ("RejectedError", "no")
    assert answer["hint"] == "ask nicely"


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b'{"do":1}', b'{"do":"nothing"}', b"\xff", b"[" * 100_000]
)
def test_nonsense_is_refused_in_words_and_the_next_request_is_answered(
    bench: Bench, line: bytes
) -> None:
    assert bench.ask(line)["ok"] is False
    assert bench.ask(b'{"do":"echo","x":1}')["value"] == 1


def test_an_answer_may_come_later_and_others_keep_their_order(bench: Bench) -> None:
    bench.peer.sendall(b'{"do":"later"}\n{"do":"echo","x":2}\n')
    bench.turn()
    bench.answer_now = 1
    bench.turn()
    assert json.loads(bench.lines.readline())["value"] == 1
    assert json.loads(bench.lines.readline())["value"] == 2


def test_what_comes_too_late_is_an_error(bench: Bench) -> None:
    assert bench.ask(b'{"do":"late"}')["message"] == "too late"


def test_a_slow_subscriber_is_told_how_many_events_it_lost(bench: Bench) -> None:
    assert bench.ask(b'{"do":"events"}')["ok"]
    line = {"event": "x", "pad": "y" * 1000}
    for _ in range(200):
        bench.server.publish([line] * 100)
    received = bytearray()
    while b'{"lost"' not in received:
        bench.peer.setblocking(False)
        try:
            while data := bench.peer.recv(1 << 20):
                received += data
        except BlockingIOError:
            pass
        bench.turn()
        bench.server.publish([line])
    lines = [json.loads(text) for text in received.splitlines() if text.endswith(b"}")]
    lost = next(found["lost"] for found in lines if "lost" in found)
    seen = sum("event" in found for found in lines)
    assert lost > 0
    assert lost + seen >= 20_000


def send_endlessly(bench: Bench) -> None:
    for _ in range(100):
        bench.peer.sendall(b"x" * 65536)
        bench.turn()


def test_an_endless_line_is_cut_off(bench: Bench) -> None:
    with pytest.raises(OSError, match=r"pipe|reset"):
        send_endlessly(bench)
