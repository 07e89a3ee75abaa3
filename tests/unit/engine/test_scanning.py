"""When ksmd rests: passes that cost CPU and find next to nothing come more seldom."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from pagemerge.engine.scanning import Ksmd
from pagemerge.engine.settings import Settings

PAGES = 10_000


class Scanner:
    """A scanner whose passes take 10 ms of CPU and read as many pages as it is told."""

    def __init__(self) -> None:
        self.read_a_pass = 0
        self.numbers = {"rmap_items": PAGES, "bytes_read": 0, "pages_sharing": 0}

    def begin_pass(self) -> None:
        until = time.process_time() + 0.01
        while time.process_time() < until:
            pass

    def begin_mm(self, _mm: int) -> bool:
        return True

    def scan(self, _mm: int, _left: int) -> tuple[int, bool]:
        self.numbers["bytes_read"] += self.read_a_pass * 4096
        return 1, True

    def end_pass(self) -> None:
        pass

    def counters(self) -> dict[str, int]:
        return self.numbers


class Client:
    mm, pid, merge_any, asked, at_work = 1, 1, True, 0, False

    def __init__(self, scanner: Scanner) -> None:
        self.scanner = scanner

    def send_requests(self) -> None:
        pass


@pytest.fixture
def scanner() -> Scanner:
    return Scanner()


def rest_after_a_pass(scanner: Scanner) -> float:
    settings = Settings()
    settings.apply({"run": "1"}, 0)
    ksmd = Ksmd(settings, {"": cast("Any", scanner)}, lambda _name, _fields: None)
    ksmd.register(cast("Any", Client(scanner)))
    for _ in range(10):
        pause = ksmd.step(1000.0)
        if ksmd.passes:
            assert pause is not None
            return pause
    raise AssertionError("no pass has ended")


def test_a_dear_pass_that_finds_a_page_or_two_is_followed_by_a_rest(scanner: Scanner) -> None:
    scanner.read_a_pass = 2
    assert 0.09 <= rest_after_a_pass(scanner) <= 0.25


def test_a_pass_that_finds_many_is_followed_by_the_next_at_once(scanner: Scanner) -> None:
    scanner.read_a_pass = PAGES // 10
    assert rest_after_a_pass(scanner) == 0.02
