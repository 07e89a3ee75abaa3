"""No write is lost while a driver merges and unmerges a writing program's pages without pause."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pagemerge.engine import wire
from tests.support.environment import require
from tests.support.victims import agent_env, compiled, holder, read_stress, run_stress
from tests.system.test_agent import GAP, JOINED, PAGE, RANGE, RUN, Peer, segment

SECONDS = float(os.environ.get("PAGEMERGE_STRESS_SECONDS", "5"))
PAGES = 2048


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen(64)
        listener.settimeout(20)
        yield listener


def base_content(pages: int) -> bytes:
    """What stress.c fills its memory with."""
    x = np.arange(1, pages * 512 + 1, dtype=np.uint64)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    x ^= x >> np.uint64(33)
    return x.tobytes()


def find_region(peer: Peer) -> wire.Range:
    """The memory to merge: a program may have marked more by now, and that may come first."""
    marks = wire.parse_ranges(peer.receive(wire.Kind.MARK))
    return max(marks, key=lambda mark: mark.end - mark.start)


@pytest.mark.parametrize(
    ("barrier", "exchange"),
    [("uffd", True), ("freeze", True), ("freeze", False), ("uffd,freeze", False)],
)
def test_no_write_is_lost_while_a_program_is_merged_and_unmerged_without_pause(
    listener: socket.socket, tmp_path: Path, barrier: str, exchange: bool
) -> None:
    chance = random.Random(barrier)
    content = base_content(PAGES)
    pages = [content[at : at + PAGE] for at in range(0, len(content), PAGE)]
    fds = [segment(content), segment(b"".join(reversed(pages)))]
    env = agent_env(tmp_path, PAGEMERGE_BARRIER=barrier)
    totals = {"merged": 0, "failed": 0, "unmerged": 0, "scattered": 0}
    with run_stress(env, count=1, seconds=SECONDS, pages=PAGES, exchange=exchange) as (process,):
        sock, _ = listener.accept()
        sock.settimeout(20)
        peer = Peer(sock)
        mark = find_region(peer)
        try:
            while process.poll() is None:
                hammer(peer, mark.start, fds, chance, totals)
        except (AssertionError, OSError):
            assert ended(process), "the agent hung up while its program was running"
        read_stress(process)
        peer.close()
    for fd in fds:
        os.close(fd)
    assert totals["merged"] > 1000
    assert totals["scattered"] > 100
    assert totals["unmerged"] > 0


@contextlib.contextmanager
def victim(argv: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program of tests/support; kill it in the end."""
    process = subprocess.Popen(
        argv,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ended(process: subprocess.Popen[str]) -> bool:
    deadline = time.monotonic() + 5
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return process.poll() is not None


def scattered(start: int, chance: random.Random) -> list[bytes]:
    """Runs of one to three pages, some with a gap, here and there within a stretch."""
    runs: list[bytes] = []
    page = chance.randrange(PAGES - 400)
    while len(runs) < 150:
        place, length = start + page * PAGE, chance.randint(1, 3)
        if chance.random() < 0.1:
            runs.append(RUN.pack(place, length, 0, page, 0))
            runs.append(RUN.pack(place + length * PAGE, 1, 0, page + length, GAP | JOINED))
            runs.append(RUN.pack(place + (length + 1) * PAGE, 1, 0, page + length + 1, JOINED))
            page += length + 2
        elif chance.random() < 0.5:  # from the segment that has the pages in reverse
            runs.append(RUN.pack(place, 1, 1, PAGES - 1 - page, 0))
            page += 1
        else:
            runs.append(RUN.pack(place, length, 0, page, 0))
            page += length
        page += chance.choice([0, 0, 0, 1])
    return runs


def hammer(
    peer: Peer, start: int, fds: list[int], chance: random.Random, totals: dict[str, int]
) -> None:
    """One request of a random kind and place."""
    tracker = peer.fds[-1]
    length = chance.choice([1, 1, 3, 16, 100, 512])
    first = chance.randrange(PAGES - length + 1)
    place = start + first * PAGE
    kind = chance.random()
    if kind < 0.1:
        request = RANGE.pack(place, place + length * PAGE, 0, 0)
        totals["unmerged"] += peer.ask(wire.Kind.UNMERGE, [request]).merged
    elif kind < 0.15:
        peer.ask(wire.Kind.ZERO, [RANGE.pack(place, place + length * PAGE, 0, 0)])
    elif kind < 0.5:
        with contextlib.suppress(OSError):  # a part of it may not be mapped now
            peer.track(start, start + PAGES * PAGE)
        runs = [*scattered(start, chance), *[RUN.pack(start + (PAGES - 1) * PAGE, 1, 1, 0, 0)]]
        result = peer.ask(wire.Kind.MERGE, runs, [*fds, tracker])
        totals["merged"] += result.merged
        totals["scattered"] += result.merged
    else:
        gap = length > 20 and chance.random() < 0.5
        middle = length // 2
        after = middle + 2
        runs = (
            [
                RUN.pack(place, middle, 0, first, 0),
                RUN.pack(place + middle * PAGE, 2, 0, first + middle, 3),
                RUN.pack(place + after * PAGE, length - after, 0, first + after, JOINED),
            ]
            if gap
            else [RUN.pack(place, length, 0, first, 0)]
        )
        result = peer.ask(wire.Kind.MERGE, runs, [fds[0], tracker])
        totals["merged"] += result.merged
        totals["failed"] += result.failed


def test_stops_are_not_seen_by_threads_that_sleep_in_system_calls(
    listener: socket.socket, tmp_path: Path
) -> None:
    fd = segment(bytes([7]) * 64 * PAGE)
    env = agent_env(tmp_path, PAGEMERGE_BARRIER="freeze")
    stops = 0
    process = subprocess.Popen(
        [str(compiled("waits")), "3"],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        sock, _ = listener.accept()
        sock.settimeout(20)
        peer = Peer(sock)
        mark = find_region(peer)
        try:
            while process.poll() is None:
                everything = RANGE.pack(mark.start, mark.end, 0, 0)
                merged = peer.ask(wire.Kind.MERGE, [RUN.pack(mark.start, 64, 0, 0, 0)], [fd])
                stops += merged.merged == 64
                peer.ask(wire.Kind.UNMERGE, [everything])
                time.sleep(0.002)
        except (AssertionError, OSError):
            assert ended(process), "the agent hung up while its program was running"
        read_stress(process)
        peer.close()
    finally:
        process.kill()
        process.wait()
        os.close(fd)
    assert stops > 100


def hammer_program(
    listener: socket.socket, folder: Path, barrier: str, *argv: str
) -> tuple[dict[str, int], wire.Hello]:
    """Merge and unmerge a program of tests/support until it ends; it must find nothing wrong."""
    chance = random.Random(argv[0] + barrier)
    content = base_content(PAGES)
    pages = [content[at : at + PAGE] for at in range(0, len(content), PAGE)]
    fds = [segment(content), segment(b"".join(reversed(pages)))]
    env = agent_env(folder, PAGEMERGE_BARRIER=barrier)
    totals = {"merged": 0, "failed": 0, "unmerged": 0, "scattered": 0}
    with victim([str(compiled(argv[0])), *argv[1:], str(int(SECONDS)), str(PAGES)], env) as process:
        sock, _ = listener.accept()
        sock.settimeout(20)
        peer = Peer(sock)
        assert process.stdout is not None
        # What is marked at this instant may be a part of it.
        start = int(process.stdout.readline().removeprefix("memory "))
        try:
            while process.poll() is None:
                hammer(peer, start, fds, chance, totals)
        except TimeoutError:
            raise
        except (AssertionError, OSError):
            assert ended(process), "the agent hung up while its program was running"
        read_stress(process)
        peer.close()
    for fd in fds:
        os.close(fd)
    return totals, peer.hello


@pytest.mark.parametrize("barrier", ["uffd", "uffd,freeze", "freeze"])
@pytest.mark.parametrize("program", ["calls", "handlers"])
def test_calls_that_change_mappings_mean_what_they_mean_without_merging(
    listener: socket.socket, tmp_path: Path, program: str, barrier: str
) -> None:
    totals, _ = hammer_program(listener, tmp_path, barrier, program)
    assert totals["merged"] > 1000


@pytest.mark.parametrize(
    ("what", "barrier"), [("close", "uffd"), ("count", "uffd"), ("count", "freeze")]
)
def test_a_program_never_meets_the_agent_s_descriptors(
    listener: socket.socket, tmp_path: Path, what: str, barrier: str
) -> None:
    totals, hello = hammer_program(listener, tmp_path, barrier, "descriptors", what)
    assert not hello.flags & wire.HelloFlag.SHARED_TABLE
    assert bool(hello.barriers & wire.Barrier.UFFD) == (barrier == "uffd")
    assert totals["merged"] > 500


def test_what_is_sealed_is_merged_without_a_barrier_and_never_while_it_is_written(
    listener: socket.socket, tmp_path: Path
) -> None:
    totals, hello = hammer_program(listener, tmp_path, "sealed", "ways", "seal")
    assert hello.barriers == wire.Barrier.SEALED
    assert totals["merged"] > 0


@pytest.mark.parametrize("barrier", ["uffd", "uffd,freeze", "freeze"])
@pytest.mark.parametrize("what", ["spawn", "direct"])
def test_no_write_is_lost_beside_threads_that_can_not_be_stopped_or_read_files_directly(
    listener: socket.socket, tmp_path: Path, what: str, barrier: str
) -> None:
    totals, _ = hammer_program(listener, tmp_path, barrier, "ways", what)
    if not (what == "direct" and barrier == "uffd"):  # nothing is merged by that barrier then
        assert totals["merged"] > 0


def poke(pid: int, start: int, content: bytes, over: threading.Event) -> tuple[int, int]:
    """Write to a process's pages from here, as debuggers do: how many writes, how many lost."""
    chance = random.Random(7)
    writes = lost = 0

    def put(data: bytes, at: int) -> None:
        while True:
            with contextlib.suppress(OSError):  # EIO: just being replaced
                os.pwrite(memory, data, at)
                return

    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
    while not over.is_set():
        place = chance.randrange(PAGES) * PAGE
        new = bytes([content[place] ^ 0xFF])
        put(new, start + place)
        lost += os.pread(memory, 1, start + place) != new
        put(content[place : place + 1], start + place)
        writes += 1
    os.close(memory)
    return writes, lost


def test_what_a_debugger_writes_while_userfaultfd_holds_writers_off_is_not_lost(
    listener: socket.socket, tmp_path: Path
) -> None:
    content = random.Random("seed").randbytes(PAGES * PAGE)
    fd, chance, merged, over = segment(content), random.Random(8), 0, threading.Event()
    with holder(agent_env(tmp_path, PAGEMERGE_BARRIER="uffd")) as child:
        child.ask(f"fill seed {PAGES}")
        start = int(child.ask("address"))
        child.ask("mark")
        sock, _ = listener.accept()
        sock.settimeout(20)
        peer = Peer(sock)
        require(peer.hello.barriers & wire.Barrier.UFFD, "userfaultfd")
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(poke, child.pid, start, content, over)
            deadline = time.monotonic() + SECONDS
            try:
                while time.monotonic() < deadline or not merged:
                    length = chance.choice([16, 64, 512])
                    first = chance.randrange(PAGES - length + 1)
                    run = RUN.pack(start + first * PAGE, length, 0, first, 0)
                    merged += peer.ask(wire.Kind.MERGE, [run], [fd, peer.fds[-1]]).merged
            finally:
                over.set()
            writes, lost = found.result(30)
        assert lost == 0
        assert writes > 0
        assert child.ask("sum") == hashlib.sha256(content).hexdigest()
        peer.close()
    os.close(fd)
