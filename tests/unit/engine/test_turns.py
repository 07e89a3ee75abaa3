"""Who may work at once: all, or, beside a program at work, so many that half the CPUs are left."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from pagemerge.engine import wire
from pagemerge.engine.clients import WINDOW, Client
from pagemerge.engine.turns import BUSY_SECONDS, Turns
from pagemerge.engine.wire import Kind

REQUESTS = 20
numbers = itertools.count(1)


class Scanner:
    """One that wants a number of things of a process."""

    def __init__(self) -> None:
        self.left = REQUESTS

    def take_request(self, _mm: int) -> tuple[int, bytes, list[int]] | None:
        if not self.left:
            return None
        self.left -= 1
        seq = next(numbers)
        return seq, Kind.HASH.to_bytes(4, "little") + bytes(12), []


class Process:
    """A client, and the other end of its connection."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, self.theirs):
            end.setblocking(False)
        scanner = cast("Any", Scanner())
        self.client = Client(1, 1, cast("Any", None), scanner, ours, -1, -1, "process")
        self.client.at_work = False

    @property
    def asked(self) -> int:
        return len(self.client.under_way)

    def words(self) -> list[int]:
        """What it has been told of programs at work since it last answered; -1: it was asked."""
        told = []
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram = self.theirs.recv(100)
                if wire.parse_header(datagram)[0] == Kind.STEP_BACK:
                    told += [item.flags for item in wire.parse_ranges(datagram)]
                elif wire.parse_header(datagram)[0] == Kind.PING:
                    told.append(-1)
        return told

    def answer(self) -> None:
        self.words()
        del self.client.under_way[min(self.client.under_way)]

    def close(self) -> None:
        self.theirs.close()
        if self.client.sock is not None:
            self.client.sock.close()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    them = [Process() for _ in range(3)]
    yield them
    for process in them:
        process.close()


def turns_of(processes: list[Process], monkeypatch: pytest.MonkeyPatch, cpus: int = 2) -> Turns:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cpus)))
    turns = Turns()
    for process in processes:
        turns.add(process.client)
    return turns


def test_all_go_on_at_once_where_no_program_is_at_work(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = turns_of(processes, monkeypatch)
    turns.send_requests()
    assert [process.asked for process in processes] == [WINDOW] * 3
    assert not turns.are_few
    assert not turns.taken(time.monotonic())


@pytest.mark.parametrize(("cpus", "at_once"), [(1, 1), (2, 1), (3, 1), (4, 2), (64, 3)])
def test_beside_a_program_at_work_half_of_the_cpus_are_used(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch, cpus: int, at_once: int
) -> None:
    turns = turns_of(processes, monkeypatch, cpus)
    processes[0].client.at_work = True
    for _ in range(2):
        turns.send_requests()
        assert sum(process.asked for process in processes) == at_once
        assert max(process.asked for process in processes) == 1
    assert turns.taken(time.monotonic()) is (at_once >= max(1, cpus // 2))


def test_each_gets_its_turn_until_nothing_is_left(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = turns_of(processes, monkeypatch)
    processes[1].client.at_work = True
    order = []
    for _ in range(3 * REQUESTS):
        turns.send_requests()
        (one,) = [process for process in processes if process.asked]
        order.append(processes.index(one))
        one.answer()
    assert order == [0, 1, 2] * REQUESTS
    turns.send_requests()
    assert not any(process.asked for process in processes)


def test_one_that_takes_long_does_not_hold_up_the_others(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = turns_of(processes, monkeypatch)
    processes[2].client.at_work = True
    turns.send_requests()
    time.sleep(BUSY_SECONDS)
    assert not turns.taken(time.monotonic())
    turns.send_requests()
    assert [process.asked for process in processes] == [1, 1, 0]


def test_one_that_has_gone_does_not_count(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = turns_of(processes, monkeypatch)
    processes[0].client.at_work = True
    assert turns.are_few
    processes[0].client.silent = True
    assert not turns.are_few
    processes[0].client.silent = False
    turns.remove(processes[0].client)
    assert not turns.are_few


def test_those_of_whom_nothing_is_known_are_asked_and_taken_to_be_at_work_until_they_answer(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = turns_of(processes, monkeypatch)
    processes[1].client.at_work = None
    turns.begin_pass()
    assert [process.words() for process in processes] == [[], [-1], []]
    assert turns.are_few
    processes[1].client.at_work = False
    assert not turns.are_few


def test_one_that_does_not_answer_in_a_whole_pass_keeps_others_waiting_no_longer(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = turns_of(processes, monkeypatch)
    processes[0].client.at_work = None
    processes[1].client.at_work = True
    turns.end_pass()
    assert [process.client.at_work for process in processes] == [False, True, False]


def test_all_are_told_that_a_program_is_at_work_and_that_it_no_longer_is(
    processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = turns_of(processes[:2], monkeypatch, cpus=64)
    processes[0].client.at_work = True
    turns.send_requests()
    turns.add(processes[2].client)
    turns.send_requests()
    assert [process.words() for process in processes] == [[1], [1], [1]]
    turns.remove(processes[1].client)
    processes[0].client.at_work = False
    turns.send_requests()
    assert [process.words() for process in processes] == [[0], [0], [0]]
