"""What docs/explanation/differences.md and security.md say of the engine, and of the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pagemerge.memory import read_max_map_count
from tests.support.conformance.client import PAGE, Client
from tests.support.conformance.worlds import EngineWorld, World
from tests.support.environment import require
from tests.support.waiting import wait_until

N = 256
CONTENTS = list(range(1000, 1000 + N))
MADV_DONTFORK = 10
IO_URING_SETUP = 425


def twins(world: World, contents: list[int] = CONTENTS) -> tuple[list[Client], list[int]]:
    """Two processes with the same contents, merged."""
    clients = [world.client(), world.client()]
    places = [client.map(contents) for client in clients]
    for client, address in zip(clients, places, strict=True):
        client.mark(address, len(contents))
    world.await_registered(2)
    world.step(3)
    return clients, places


def mappings(world: World, client: Client, address: int, pages: int) -> list[str]:
    """What is mapped in a range, a path for each mapping."""
    end = address + pages * PAGE
    return [vma.path for vma in world.maps(client.pid) if vma.start < end and vma.end > address]


def test_a_settled_workload_is_not_read_again(engine: World) -> None:
    clients, places = twins(engine)
    engine.needs(_tracks(engine), "PAGEMAP_SCAN", "6.7")
    read = engine.read("bytes_read")
    assert read >= 2 * N * PAGE
    for _ in range(40):
        engine.step()
    assert engine.read("bytes_read") == read
    clients[0].poke(places[0], 1)
    engine.step(2)
    assert read < engine.read("bytes_read") <= read + 8 * PAGE


def _tracks(world: World) -> bool:
    (first, *_) = world.ksm.processes()
    return first.own["regions_tracked"] == first.own["regions"]


def test_the_kept_page_is_the_pools_and_counts_as_no_anonymous_memory(world: World) -> None:
    clients, places = twins(world)
    for client, address in zip(clients, places, strict=True):
        client.peek(address, N)
        end = address + N * PAGE
        inside = [s for s in world.smaps(client.pid) if address <= s.vma.start < end]
        anonymous = sum(s.sizes["Anonymous"] for s in inside)
        resident = sum(s.sizes["Rss"] for s in inside)
        paths = {s.vma.path for s in inside}
        if world.is_kernel:
            assert anonymous >= N * PAGE
            assert paths <= {"", "[heap]"}
        else:
            assert (anonymous, resident) == (0, N * PAGE)
            assert paths == {"/memfd:pagemerge (deleted)"}


def test_regions_are_split_where_runs_of_merged_pages_begin_and_end(world: World) -> None:
    contents = CONTENTS[:48]
    clients = [world.client(), world.client()]
    places = [client.map(contents) for client in clients]
    clients[1].fill(places[1], list(range(1, 17)))
    clients[1].fill(places[1] + 32 * PAGE, list(range(21, 37)))
    before = [
        len(mappings(world, client, address, 48))
        for client, address in zip(clients, places, strict=True)
    ]
    for client, address in zip(clients, places, strict=True):
        client.mark(address, 48)
    world.await_registered(2)
    assert world.step(3)[:2] == (16, 16)
    for client, address, count in zip(clients, places, before, strict=True):
        after = mappings(world, client, address, 48)
        if world.is_kernel:
            assert len(after) == count
        else:
            assert [path.startswith("/memfd:pagemerge") for path in after] == [False, True, False]


def test_what_is_left_for_want_of_mappings_is_counted(engine: World) -> None:
    limit = read_max_map_count()
    require(limit is not None and limit <= 1 << 18, "a vm.max_map_count that can be used up")
    assert limit is not None
    client, other = engine.client(), engine.client()
    pages = 2048
    contents = [index if index % 2 else 10_000 + index for index in range(pages)]
    places = [client.map(contents), other.map([c if c < pages else c + pages for c in contents])]
    client.do("use_mappings", limit - len(engine.maps(client.pid)) - 200)
    for process, address in ((client, places[0]), (other, places[1])):
        process.mark(address, pages)
    engine.await_registered(2)
    engine.step(3)
    assert engine.read("merges_left_for_vmas") > 0
    assert engine.counts().sharing < pages // 2
    assert len(engine.maps(client.pid)) <= limit
    assert client.peek(places[0], pages) == contents


def test_metadata_is_at_most_16_bytes_a_page(engine: World) -> None:
    client = engine.client()
    pages = 32768
    address = client.map(pages)
    client.mark(address, pages)
    engine.await_registered(1)
    engine.step()
    before = engine.read("metadata_bytes")
    client.do("fill_counting", address, pages, 1)
    engine.step(3)
    assert engine.read("rmap_items") == pages
    assert engine.read("metadata_bytes") - before <= 16 * pages


def test_copies_that_nobody_uses_are_known_without_a_search(engine: World) -> None:
    engine.set("max_page_sharing", 2)
    engine.set("stable_node_chains_prune_millisecs", 2**32 - 1)
    client, address = engine.marked([7] * 6)
    engine.step(3)
    assert engine.chains() == (1, 3)
    frames = client.frames_read(address, 6)
    for page in range(6):
        if frames[page] == frames[0]:
            client.poke(address + page * PAGE, 1)
    engine.step()
    assert engine.chains() == (1, 2)


def test_a_client_of_another_domain_shares_nothing(engine: World) -> None:
    for domain in ("red", "blue"):
        client = engine.client(PAGEMERGE_DOMAIN=domain)
        client.mark(client.map([7] * 4), 4)
    engine.await_registered(2)
    assert engine.step(3)[:2] == (2, 6)


@pytest.mark.parametrize("how", ["MADV_DONTFORK", "mlock", "MADV_UNMERGEABLE"])
def test_memory_can_be_kept_out_though_all_is_merged(engine: World, how: str) -> None:
    client = engine.client(PAGEMERGE_ALL="1")
    secret, other = client.map([7] * 8), client.map([7] * 8)
    if how == "MADV_DONTFORK":
        client.call("madvise", secret, 8 * PAGE, MADV_DONTFORK)
    elif how == "mlock":
        client.call("mlock", secret, 8 * PAGE)
    else:
        client.unmark(secret, 8)
    engine.await_registered(1)
    engine.step(3)
    assert client.has_own_frames(secret, 8)
    assert len(set(client.frames_read(other, 8))) == 1


def test_a_process_that_can_write_past_any_barrier_is_left_out_by_name(engine: World) -> None:
    client = engine.client()
    room = client.map(1)
    fd, code = client.do("call", "syscall", IO_URING_SETUP, 4, room)
    engine.needs(fd >= 0 and not code, "io_uring (it may be switched off)", "5.1")
    client.mark(client.map([7] * 8), 8)
    assert "io_uring" in engine.await_refusal(client.pid)
    engine.marked_beside([9] * 4)
    assert engine.step(3)[:2] == (1, 3)


@pytest.mark.parametrize("few", [True, False])
def test_the_pool_is_charged_to_the_cgroup_of_whoever_wrote_it(engine: World, few: bool) -> None:
    assert isinstance(engine, EngineWorld)
    root = Path("/sys/fs/cgroup/memory")
    require((root / "memory.stat").exists(), "a memory cgroup (version 1)")
    folder = root / f"pagemerge-pool-{os.getpid()}"
    folder.mkdir()
    clients = [engine.client(), engine.client()]
    contents = CONTENTS[: N // 4] if few else CONTENTS  # few: the daemon reads and writes them
    inside = [engine.daemon.process.pid] if few else [client.pid for client in clients]
    try:
        for pid in inside:
            (folder / "cgroup.procs").write_text(str(pid))
        before = _shared_bytes(folder)
        for client in clients:
            client.mark(client.map(contents), len(contents))
        engine.await_registered(2)
        engine.step(3)
        assert engine.counts()[:2] == (len(contents), len(contents))
        assert _shared_bytes(folder) - before >= len(contents) * PAGE
    finally:
        for pid in inside:
            (root / "cgroup.procs").write_text(str(pid))
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), "the cgroup's end")
        folder.rmdir()


def _shared_bytes(folder: Path) -> int:
    """Shared memory that a cgroup is charged with; `usage` where it is not told apart."""
    rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
    numbers = {row[0]: int(row[1]) for row in rows}
    return numbers.get("shmem", numbers.get("mapped_file", 0))


def test_the_pool_comes_back_when_nobody_uses_it(engine: World) -> None:
    clients, _ = twins(engine)
    assert engine.read("pool_bytes") >= N * PAGE
    assert engine.read("segments") == 1
    for client in clients:
        client.kill()
    engine.await_registered(0)
    engine.marked_beside([1])
    engine.step(2)
    assert engine.read("pool_bytes") + engine.read("pool_retired_bytes") == 0


def test_the_tests_of_the_engine_that_is_spoken_of_exist() -> None:
    """Claims of the two pages that other tests settle: their names, so that none gets lost."""
    tests = Path(__file__).parents[1]
    for file, name in (
        ("system/test_engine_conditions.py", "a_user_without_privileges_merges_with_a_daemon"),
        ("system/test_engine_conditions.py", "merged_pages_go_to_swap_and_come_back_shared"),
        ("system/test_engine_conditions.py", "write_latency_tells_an_attacker_nothing_across"),
        ("system/test_engine_survives.py", "another_user_is_turned_away"),
        ("system/test_engine_survives.py", "garbage_is_answered_by_disconnection"),
        ("system/test_engine_survives.py", "a_client_that_lies_about_its_addresses_hurts_nobody"),
        ("system/test_agent.py", "wrong_hints_change_no_byte"),
        ("system/test_agent.py", "descriptors_that_are_no_pool_are_not_mapped"),
        ("unit/engine/test_paths.py", "one_of_another_user_is_refused"),
        ("unit/engine/test_paths.py", "one_that_others_may_enter_is_refused"),
    ):
        assert f"def test_{name}" in (tests / file).read_text(), (file, name)
