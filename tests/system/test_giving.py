"""Processes that write to the pool, when they are lost, killed, stopped, or hostile."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.donor import PAGE, Donor, Gift, donor
from tests.support.engine import EngineDaemon
from tests.support.liar import Liar
from tests.support.processes import Child
from tests.support.victims import agent_env, compiled, holder
from tests.support.waiting import wait_until

N = 512
LARGE = 12288  # pages: several turns of giving
F_SEAL_WRITE = 8
F_SEAL_FUTURE_WRITE = 0x10


def pool_files(pid: int) -> set[int]:
    """The inodes of the pool's files that a process maps."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {int(line.split()[4]) for line in lines if "memfd:pagemerge" in line}


@contextlib.contextmanager
def victim(daemon: EngineDaemon, seed: str, pages: int, **env: str) -> Iterator[Child]:
    """A real process with the donor's pages, that gives none itself."""
    more = {"PAGEMERGE_NO_GIVING": "1"} | env
    with holder(agent_env(daemon.runtime, None, **more)) as child:
        child.ask(f"fill {seed} {pages}")
        child.ask("mark")
        yield child


def await_giving(old: set[int], *children: Child) -> None:
    """Wait until one of them maps files of the pool that are not among the old ones."""
    wait_until(lambda: set().union(*(pool_files(child.pid) for child in children)) - old, "giving")


def await_gift(daemon: EngineDaemon, giver: Donor) -> Gift:
    daemon.wait_registered(2)
    daemon.set(run=1)
    gift = giver.await_gift()
    assert gift is not None, "nothing was asked for"
    return gift


def test_a_daemon_killed_while_a_process_writes_to_the_pool_costs_nothing(
    engine_daemon: EngineDaemon,
) -> None:
    with victim(engine_daemon, "seed", N) as child, holder({}) as plain:
        plain.ask(f"fill seed {N}")
        before = child.ask("sum")
        with donor(engine_daemon.runtime, "seed", N) as giver:
            gift = await_gift(engine_daemon, giver)
            giver.write(gift)
            engine_daemon.kill()
            assert child.ask("sum") == before == plain.ask("sum")
            assert os.fstat(gift.segment).st_ino not in pool_files(child.pid)
            os.pwrite(gift.segment, bytes(PAGE), gift.runs[0][2] * PAGE)  # never sealed, nobody's
            os.close(gift.segment)
        engine_daemon.restart()
        engine_daemon.set(run=1, pages_to_scan=100_000, sleep_millisecs=0, smart_scan=0)
        with victim(engine_daemon, "seed", N):
            wait_until(lambda: engine_daemon.counters()["pages_sharing"] == N, "the savings")
            assert child.ask("sum") == before


def test_daemons_killed_at_the_instants_of_giving_lose_nothing_and_savings_come_back(
    engine_daemon: EngineDaemon,
) -> None:
    chance = random.Random(4)
    env = agent_env(engine_daemon.runtime)
    kills = int(os.environ.get("PAGEMERGE_KILLS", "25")) // 3 + 1
    with holder(env) as one, holder(env) as two:
        for child in (one, two):
            child.ask(f"fill seed {LARGE}")
            child.ask("mark")
        before = one.ask("sum")
        for _ in range(kills):
            engine_daemon.set(run=1, pages_to_scan=100_000, sleep_millisecs=0, smart_scan=0)
            old = pool_files(one.pid) | pool_files(two.pid)
            await_giving(old, one, two)
            time.sleep(chance.uniform(0, 0.03))
            engine_daemon.kill()
            assert one.ask("sum") == two.ask("sum") == before
            engine_daemon.restart()
        engine_daemon.set(run=1, pages_to_scan=100_000, sleep_millisecs=0, smart_scan=0)
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == LARGE, "the savings", 60)
        assert one.ask("sum") == two.ask("sum") == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_processes_killed_or_stopped_while_they_give_harm_nobody(
    engine_daemon: EngineDaemon, number: signal.Signals
) -> None:
    chance = random.Random(5)
    env = agent_env(engine_daemon.runtime)
    engine_daemon.set(run=1)
    for _ in range(6 if number == signal.SIGKILL else 1):
        with holder(env) as one, holder(env) as two:
            for child in (one, two):
                child.ask(f"fill seed {LARGE}")
            before = two.ask("sum")
            for child in (one, two):
                child.ask("mark")
            await_giving(set(), one, two)
            time.sleep(chance.uniform(0, 0.03))
            os.kill(one.pid, number)
            with holder(env) as three:
                three.ask(f"fill seed {LARGE}")
                three.ask("mark")
                wait_until(
                    lambda: engine_daemon.counters()["pages_sharing"] >= LARGE, "the others", 60
                )
                assert two.ask("sum") == three.ask("sum") == before
                if number == signal.SIGSTOP:
                    os.kill(one.pid, signal.SIGCONT)
                    assert one.ask("sum") == before
    assert engine_daemon.process.poll() is None


# What a hostile client keeps of a segment while it is its own: called with the gift, before the
# daemon seals it, it gives back the function by which to write to the segment's second page later.
Hold = Callable[[Gift], Callable[[], object]]
NEW = b"\x5a" * PAGE


def keep_mapping(gift: Gift) -> Callable[[], object]:
    view = mmap.mmap(gift.segment, 2 * PAGE)
    return lambda: view.__setitem__(slice(PAGE, 2 * PAGE), NEW)


def keep_mapping_to_be_made_writable(gift: Gift) -> Callable[[], object]:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    at = libc.mmap(None, 2 * PAGE, mmap.PROT_READ, mmap.MAP_SHARED, gift.segment, 0)

    def write() -> None:
        if libc.mprotect(at, 2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE):
            raise PermissionError("it can't be made writable")
        ctypes.memmove(at + PAGE, NEW, PAGE)

    return write


def keep_mapping_and_seal_it_otherwise(gift: Gift) -> Callable[[], object]:
    write = keep_mapping(gift)
    fcntl.fcntl(gift.segment, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)
    return write


def last_word(child: Child, line: str) -> str:
    with child:
        return child.ask(line)


def keep_mapping_in_a_child(gift: Gift) -> Callable[[], object]:
    source = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    view = mmap.mmap(file.fileno(), 8192)
print("ready", flush=True)
sys.stdin.readline()
view[4096:] = b"\\x5a" * 4096
print("done", flush=True)
"""
    child = Child(source, f"/proc/{os.getpid()}/fd/{gift.segment}")
    assert child.read_line() == "ready"
    return lambda: last_word(child, "")


def keep_pages_in_a_ring(gift: Gift) -> Callable[[], object]:
    path = f"/proc/{os.getpid()}/fd/{gift.segment}"
    child = Child([str(compiled("pins")), "segment", "2", path])
    assert child.read_line() == "ready"
    if child.ask("begin") != "done":
        child.kill()
        pytest.skip("this machine does not let a test use io_uring")
    return lambda: last_word(child, "finish")


def keep_descriptor(gift: Gift) -> Callable[[], object]:
    fd = os.dup(gift.segment)
    return lambda: os.pwrite(fd, NEW, PAGE)


def keep_it_opened_anew(gift: Gift) -> Callable[[], object]:
    fd = os.open(f"/proc/self/fd/{gift.segment}", os.O_RDWR)
    return lambda: os.pwrite(fd, NEW, PAGE)


def open_it_later(gift: Gift) -> Callable[[], object]:
    fd = os.open(f"/proc/self/fd/{gift.segment}", os.O_RDONLY)

    def write() -> None:
        with Path(f"/proc/self/fd/{fd}").open("r+b") as file:
            mmap.mmap(file.fileno(), 2 * PAGE)[PAGE:] = NEW

    return write


def punch_a_hole(gift: Gift) -> Callable[[], object]:
    fd = os.dup(gift.segment)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]

    def write() -> None:
        if libc.fallocate(fd, 3, PAGE, PAGE):  # PUNCH_HOLE | KEEP_SIZE
            raise PermissionError(ctypes.get_errno(), "fallocate")

    return write


def attack(daemon: EngineDaemon, hold: Hold) -> tuple[bool, bool, bool]:
    """Give, hold, and write later: whether it was sealed, the other one maps it, it was written.

    What the other one sees must be the same all the time.
    """
    with victim(daemon, "seed", N) as child, donor(daemon.runtime, "seed", N) as giver:
        before = child.ask("sum")
        gift = await_gift(daemon, giver)
        assert any(slot <= 1 < slot + pages for _, pages, slot in gift.runs)
        giver.write(gift)
        write_later = hold(gift)
        giver.answer(gift.seq, gift.pages)
        giver.serve()

        def is_sealed() -> bool:
            return bool(fcntl.fcntl(gift.segment, fcntl.F_GET_SEALS) & F_SEAL_WRITE)

        wait_until(lambda: is_sealed() or daemon.counters()["segments_retired"], "its end")
        daemon.settle(4)
        sealed = is_sealed()
        mapped = os.fstat(gift.segment).st_ino in pool_files(child.pid)
        with contextlib.suppress(PermissionError):
            write_later()
        written = os.pread(gift.segment, PAGE, PAGE) != giver.memory[PAGE : 2 * PAGE]
        assert child.ask("sum") == before
        os.close(gift.segment)
    return sealed, mapped, written


@pytest.mark.parametrize(
    "hold",
    [
        keep_mapping,
        keep_mapping_to_be_made_writable,
        keep_mapping_and_seal_it_otherwise,
        keep_mapping_in_a_child,
        keep_pages_in_a_ring,
    ],
)
def test_what_a_client_can_still_write_is_given_to_nobody(
    engine_daemon: EngineDaemon, hold: Hold
) -> None:
    assert attack(engine_daemon, hold) == (False, False, True)


@pytest.mark.parametrize(
    "hold", [keep_descriptor, keep_it_opened_anew, open_it_later, punch_a_hole]
)
def test_what_others_map_can_not_be_written_any_more(
    engine_daemon: EngineDaemon, hold: Hold
) -> None:
    assert attack(engine_daemon, hold) == (True, True, False)


def test_what_is_given_in_one_domain_is_never_mapped_in_another(
    engine_daemon: EngineDaemon,
) -> None:
    there = {"PAGEMERGE_DOMAIN": "attacker"}
    runtime = engine_daemon.runtime
    with (
        victim(engine_daemon, "seed", N) as child,
        victim(engine_daemon, "seed", N, **there) as accomplice,
        donor(runtime, "seed", N, "attacker") as giver,
    ):
        before = child.ask("sum")
        engine_daemon.wait_registered(3)
        engine_daemon.set(run=1)
        giver.serve()
        wait_until(lambda: pool_files(accomplice.pid), "the sharing in the other domain")
        engine_daemon.settle(4)
        assert not pool_files(child.pid)
        assert child.ask("sum") == before


def test_clients_that_lie_about_all_that_they_are_asked_harm_nobody(
    engine_daemon: EngineDaemon,
) -> None:
    deadline = time.monotonic() + float(os.environ.get("PAGEMERGE_STRESS_SECONDS", "4"))
    env = agent_env(engine_daemon.runtime)
    lives = 0
    with holder(env) as one, holder(env) as two:
        for child in (one, two):
            child.ask(f"fill seed {N}")
            child.ask("mark")
        before = one.ask("sum")
        engine_daemon.set(run=1)
        while time.monotonic() < deadline or not lives:
            liar = Liar(engine_daemon.runtime, "seed", N)
            with contextlib.suppress(ConnectionError, BrokenPipeError):
                while time.monotonic() < deadline:
                    liar.lie()
                    if liar.chance.random() < 0.05:
                        liar.say_something()
                    assert one.ask("sum") == two.ask("sum") == before
            liar.close()
            lives += 1
            assert engine_daemon.process.poll() is None
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == N, "what is true", 60)
        assert one.ask("sum") == two.ask("sum") == before
        one.ask("write 0 1")
        assert two.ask("sum") == before
