"""The engine on real processes: what merges, what it saves, what happens to it afterwards."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.engine import EngineDaemon
from tests.support.processes import Child, read_smaps_rollup
from tests.support.victims import agent_env, compiled, holder
from tests.support.waiting import wait_until

PAGE = os.sysconf("SC_PAGE_SIZE")
N = 1024


@pytest.fixture
def twins(engine_daemon: EngineDaemon) -> Iterator[list[Child]]:
    """Three processes with the same N pages, marked."""
    with ExitStack() as stack:
        children = [stack.enter_context(holder(agent_env(engine_daemon.runtime))) for _ in range(3)]
        for child in children:
            assert child.ask(f"fill seed {N}") == "ok"
            assert child.ask("mark") == "0"
        engine_daemon.wait_registered(3)
        yield children


def merge(daemon: EngineDaemon, passes: int = 3) -> dict[str, int]:
    daemon.set(run=1)
    return daemon.settle(passes)


def test_three_equal_processes_keep_one_copy_and_the_kernel_says_so(
    engine_daemon: EngineDaemon, twins: list[Child]
) -> None:
    sums = [child.ask("sum") for child in twins]
    before = [read_smaps_rollup(child.pid)["Pss"] for child in twins]
    counters = merge(engine_daemon)
    assert (counters["pages_shared"], counters["pages_sharing"]) == (N, 2 * N)
    assert [child.ask("sum") for child in twins] == sums
    saved = sum(before) - sum(read_smaps_rollup(child.pid)["Pss"] for child in twins)
    assert saved > 1.7 * N * PAGE  # the pool counts a little in each, and so does the agent


def test_a_write_reaches_only_its_writer(engine_daemon: EngineDaemon, twins: list[Child]) -> None:
    merge(engine_daemon)
    before = [child.ask("sum") for child in twins]
    twins[0].ask("write 5000 1")
    twins[0].ask("write 5000 2")
    after = [child.ask("sum") for child in twins]
    assert after[0] != before[0]
    assert after[1:] == before[1:]
    counters = engine_daemon.settle(3)
    assert counters["pages_sharing"] == 2 * N - 1


def test_pages_that_differ_in_one_byte_are_told_apart_wherever_it_is(
    engine_daemon: EngineDaemon, twins: list[Child]
) -> None:
    """They are matched by samples; each group of the agent's has equal and different pages."""
    for page in range(N):
        at = page * PAGE + page * 67 % PAGE
        for child, value in zip(twins, [(1, 2, 3), (4, 4, 5), (6, 6, 6)][page % 3], strict=True):
            child.ask(f"write {at} {value}")
    sums = [child.ask("sum") for child in twins]
    pairs, threes = len(range(1, N, 3)), len(range(2, N, 3))
    engine_daemon.set(run=1)
    for _ in range(10):
        counters = engine_daemon.settle(3)
        if counters["pages_sharing"] == pairs + 2 * threes:
            break
    assert (counters["pages_shared"], counters["pages_sharing"]) == (
        pairs + threes,
        pairs + 2 * threes,
    )
    assert [child.ask("sum") for child in twins] == sums


def test_a_page_that_is_restored_is_merged_again(
    engine_daemon: EngineDaemon, twins: list[Child]
) -> None:
    merge(engine_daemon)
    sums = twins[0].ask("sum")
    old = 0
    for value in range(256):  # the value that gives back the old content is among them
        twins[0].ask(f"write 0 {value}")
        if twins[0].ask("sum") == sums:
            old += 1
            break
    assert old == 1
    counters = engine_daemon.settle(4)
    assert (counters["pages_shared"], counters["pages_sharing"]) == (N, 2 * N)


def test_dontneed_on_merged_memory_reads_zeros(
    engine_daemon: EngineDaemon, twins: list[Child]
) -> None:
    merge(engine_daemon)
    assert twins[0].ask("dontneed") == "0"
    with holder({}) as plain:
        plain.ask(f"zero {N}")
        assert twins[0].ask("sum") == plain.ask("sum")


def test_memory_that_is_several_mappings_by_merging_is_resized_as_one(
    engine_daemon: EngineDaemon,
) -> None:
    pages = 1600  # more than are replaced at a time
    content = random.Random("seed").randbytes(pages * PAGE)
    env = agent_env(engine_daemon.runtime)
    with holder(env) as one, holder(env) as two:
        for child in (one, two):
            child.ask(f"fill seed {pages}")
            child.ask("mark")
        for page in range(0, pages, 100):
            two.ask(f"write {page * PAGE} {content[page * PAGE] ^ 1}")
        engine_daemon.wait_registered(2)
        merge(engine_daemon)
        for size in (2 * pages, pages, 4 * pages, 700, pages):
            one.ask(f"resize {size}")
            content = content[: size * PAGE].ljust(size * PAGE, b"\0")
            assert one.ask("sum") == hashlib.sha256(content).hexdigest()


def test_unmergeable_gives_private_pages_at_once(
    engine_daemon: EngineDaemon, twins: list[Child]
) -> None:
    merge(engine_daemon)
    sums = twins[1].ask("sum")
    assert twins[1].ask("unmark") == "0"
    assert read_smaps_rollup(twins[1].pid)["Private_Dirty"] >= N * PAGE
    assert twins[1].ask("sum") == sums
    counters = engine_daemon.settle(3)
    assert (counters["pages_shared"], counters["pages_sharing"]) == (N, N)


def test_run_2_unmerges_everything_and_restarts_full_scans(
    engine_daemon: EngineDaemon, twins: list[Child]
) -> None:
    merge(engine_daemon)
    sums = [child.ask("sum") for child in twins]
    engine_daemon.set(run=2)
    counters = engine_daemon.counters()
    assert (counters["pages_shared"], counters["pages_sharing"]) == (0, 0)
    assert counters["full_scans"] == 0
    for child in twins:
        assert read_smaps_rollup(child.pid)["Private_Dirty"] >= N * PAGE
    assert [child.ask("sum") for child in twins] == sums
    counters = merge(engine_daemon)
    assert counters["pages_sharing"] == 2 * N


def test_zero_pages_need_no_pool(engine_daemon: EngineDaemon) -> None:
    engine_daemon.set(use_zero_pages=1)
    with holder(agent_env(engine_daemon.runtime)) as child:
        child.ask(f"zero {N}")
        child.ask("mark")
        before = child.ask("sum")
        engine_daemon.wait_registered(1)
        counters = merge(engine_daemon)
        assert counters["ksm_zero_pages"] == N
        assert counters["pages_shared"] == 0
        assert read_smaps_rollup(child.pid)["Anonymous"] < 16 << 20
        assert child.ask("sum") == before
        child.ask("write 0 1")
        assert engine_daemon.settle(3)["ksm_zero_pages"] == N - 1


def test_pool_memory_returns_when_its_users_have_gone(
    engine_daemon: EngineDaemon, twins: list[Child]
) -> None:
    merge(engine_daemon)
    assert engine_daemon.counters()["pool_bytes"] >= N * PAGE
    for child in twins:
        child.kill()
    with holder(agent_env(engine_daemon.runtime)) as other:
        other.ask("fill other 16")
        other.ask("mark")
        wait_until(
            lambda: engine_daemon.counters()["pool_bytes"] < N * PAGE // 4, "the pool's memory"
        )


def test_a_fork_keeps_its_pages_when_the_parent_unmaps_and_the_daemon_stops(
    engine_daemon: EngineDaemon, twins: list[Child], tmp_path: Path
) -> None:
    merge(engine_daemon)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    sums = twins[0].ask("sum")
    forked = twins[0].ask(f"fork {gate} {sums}")
    for child in twins[1:]:
        child.kill()
    twins[0].ask("drop")
    engine_daemon.settle(6)
    engine_daemon.stop()
    with gate.open("wb") as writing:
        writing.write(b"x")
    assert twins[0].ask(f"wait {forked}") == "0"


def test_two_domains_never_share_a_page(engine_daemon: EngineDaemon) -> None:
    with ExitStack() as stack:
        children = []
        for name in ("red", "red", "blue"):
            env = agent_env(engine_daemon.runtime, PAGEMERGE_DOMAIN=name)
            child = stack.enter_context(holder(env))
            child.ask(f"fill seed {N}")
            child.ask("mark")
            children.append(child)
        engine_daemon.wait_registered(3)
        counters = merge(engine_daemon)
        assert (counters["pages_shared"], counters["pages_sharing"]) == (N, N)
        assert read_smaps_rollup(children[2].pid)["Private_Dirty"] >= N * PAGE


def test_a_stopped_client_does_not_hold_up_the_others(
    engine_daemon: EngineDaemon, twins: list[Child]
) -> None:
    os.kill(twins[0].pid, signal.SIGSTOP)
    try:
        engine_daemon.set(run=1)
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] >= N, "the others merged", 60)
    finally:
        os.kill(twins[0].pid, signal.SIGCONT)
    # Not in so many passes: until it has answered what it was asked while it was stopped,
    # passes go on without it.
    wait_until(lambda: engine_daemon.counters()["pages_sharing"] == 2 * N, "all merged", 60)


@pytest.mark.parametrize("limit", [2, 10])
@pytest.mark.parametrize("count", [9, 10, 11, 21, 31])
def test_max_page_sharing_gives_the_kernels_numbers(
    engine_daemon: EngineDaemon, limit: int, count: int
) -> None:
    engine_daemon.set(max_page_sharing=limit)
    with holder(agent_env(engine_daemon.runtime)) as child:
        child.ask(f"same x {count}")
        child.ask("mark")
        engine_daemon.wait_registered(1)
        counters = merge(engine_daemon, 5)
        full, rest = divmod(count, limit)
        shared = full + (rest >= 2)
        sharing = count - shared - (rest == 1)
        assert (counters["pages_shared"], counters["pages_sharing"]) == (shared, sharing)
        assert counters["stable_node_chains"] == (1 if shared > 1 else 0)
        assert counters["stable_node_dups"] == (shared if shared > 1 else 0)


def test_core_dumps_have_merged_memory(engine_daemon: EngineDaemon, twins: list[Child]) -> None:
    def dumped(child: Child) -> int:
        return int(Path(f"/proc/{child.pid}/coredump_filter").read_text(), 16)

    Path(f"/proc/{twins[2].pid}/coredump_filter").write_text("0x10")
    before = dumped(twins[0])
    assert before & 1  # anonymous memory
    merge(engine_daemon)
    assert dumped(twins[0]) == before | 4  # private mappings of files, core(5)
    assert dumped(twins[2]) == 0x10  # who has no anonymous memory dumped wants none


_MANY_THREADS = """
import hashlib, mmap, random, sys, threading
region = mmap.mmap(-1, 2048 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
chance = random.Random(3)
for page in range(2048):  # in no order: a mapping for each
    kind = page if page < 64 else chance.randrange(64)
    region[page * 4096 : (page + 1) * 4096] = bytes([kind + 1]) * 4096
region.madvise(12)
over = threading.Event()
threading.stack_size(64 * 1024)
threads = [threading.Thread(target=over.wait) for _ in range(300)]
for thread in threads:
    thread.start()
for line in sys.stdin:
    print(hashlib.sha256(region).hexdigest(), flush=True)
over.set()
"""


def test_scattered_pages_of_hundreds_of_threads_are_merged_and_come_back(
    engine_daemon: EngineDaemon,
) -> None:
    env = agent_env(engine_daemon.runtime, PAGEMERGE_BARRIER="freeze")
    with Child([sys.executable, "-c", _MANY_THREADS], env=env) as child:
        before = child.ask("sum")
        engine_daemon.set(run=1)
        wait_until(lambda: engine_daemon.settle(1)["pages_sharing"] == 2048 - 64, "all merged", 120)
        assert child.ask("sum") == before
        engine_daemon.set(run=2)
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == 0, "all unmerged", 120)
        assert "memfd:pagemerge" not in Path(f"/proc/{child.pid}/maps").read_text()
        assert child.ask("sum") == before


def test_memory_beside_the_stack_of_a_thread_can_be_moved(engine_daemon: EngineDaemon) -> None:
    engine_daemon.set(run=1)
    with Child([str(compiled("neighbour"))], env=agent_env(engine_daemon.runtime)) as child:
        assert child.read_line() == "ready"
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == 255, "all merged")
        assert child.ask("go") == "moved"
        assert child.ask("end") == "over"


def test_memory_of_which_a_part_is_tracked_is_moved_as_a_whole(engine_daemon: EngineDaemon) -> None:
    engine_daemon.set(run=1)
    env = agent_env(engine_daemon.runtime, PAGEMERGE_ALL="1")
    with Child([str(compiled("adjoining"))], env=env) as child:
        assert child.read_line() == "ready"
        engine_daemon.wait_registered(1)
        engine_daemon.settle(3)
        assert child.ask("go") == "moved"
