"""What LTP's ksm01 to ksm06 and ksm_tests -N do: exact counters, in a cgroup, on NUMA nodes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.conformance.cases import case
from tests.support.conformance.client import Client
from tests.support.conformance.record import memory_nodes
from tests.support.conformance.worlds import Counts, World
from tests.support.waiting import wait_until

PAGES = 256  # of each of three processes
A, B, C, D = (int.from_bytes(letter * 8, "little") for letter in (b"a", b"b", b"c", b"d"))
MPOL_BIND = 2
SET_MEMPOLICY = 238
TWO_NODES = "a second NUMA node with memory"

Prepare = Callable[[Client], object]


def three_processes(world: World, prepare: Prepare = lambda _client: None) -> None:
    """Fill, change and refill the memory of three processes, and compare all counters each time."""
    total = 3 * PAGES
    world.set("max_page_sharing", total)
    world.set("pages_to_scan", total + 1)  # with no more than the pages, a pass is two batches
    clients = [world.client() for _ in range(3)]
    for client in clients:
        prepare(client)
    places = [client.map(PAGES) for client in clients]

    def round_of(*contents: int) -> Counts:
        for client, address, content in zip(clients, places, contents, strict=True):
            client.fill(address, [content] * PAGES)
        return world.step(3)

    def holds(*contents: int) -> bool:
        return all(
            client.peek(address, PAGES) == [content] * PAGES
            for client, address, content in zip(clients, places, contents, strict=True)
        )

    for client, address in zip(clients, places, strict=True):
        client.mark(address, PAGES)
    world.await_registered(3)
    assert round_of(C, A, A) == Counts(2, total - 2, 0, 0)
    assert holds(C, A, A)
    assert round_of(C, B, A) == Counts(3, total - 3, 0, 0)
    assert holds(C, B, A)
    assert round_of(D, D, D) == Counts(1, total - 1, 0, 0)
    assert holds(D, D, D)
    clients[1].poke(places[1] + PAGES * 4096 - 1, ord("e"))
    assert world.step(3) == Counts(1, total - 2, 1, 0)
    assert clients[1].peek(places[1], PAGES) == [D] * (PAGES - 1) + [-1]
    assert world.read("pages_to_scan") == total + 1
    world.stop(run=2)
    assert world.counts() == Counts(0, 0, 0, 0)
    world.stop()
    assert world.counts() == Counts(0, 0, 0, 0)
    assert [client.finish() for client in clients] == [0, 0, 0]


def bind(node: int) -> Prepare:
    """Have a process take its memory from one node only."""

    def prepare(client: Client) -> None:
        mask = client.map(1)
        client.do("store", mask, [1 << node])
        client.call("syscall", SET_MEMPOLICY, MPOL_BIND, mask, 64)

    return prepare


@contextlib.contextmanager
def memory_cgroup(world: World) -> Iterator[Path]:
    """A cgroup with a limit on memory; its folder."""
    old, new = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    if (new / "cgroup.controllers").exists():
        root, limit = new, "memory.max"
        with contextlib.suppress(OSError):
            (root / "cgroup.subtree_control").write_text("+memory")
    else:
        root, limit = old, "memory.limit_in_bytes"
    folder = root / f"pagemerge-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        world.lacks("a memory cgroup that may be made")
    try:
        if not (folder / limit).exists():
            world.lacks("the memory controller of cgroups")
        (folder / limit).write_text(str(256 << 20))
        yield folder
    finally:
        world.end_clients()
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), "the cgroup's end")
        folder.rmdir()


def enter(folder: Path) -> Prepare:
    """Move a process into a cgroup."""
    return lambda client: (folder / "cgroup.procs").write_text(str(client.pid))


def two_nodes(world: World) -> list[int]:
    nodes = memory_nodes()
    world.needs(len(nodes) > 1, TWO_NODES)
    return nodes


@case("ksm01")
def test_three_processes_fill_change_and_refill_memory(world: World) -> None:
    three_processes(world)


@case("ksm02")
def test_the_same_with_memory_of_one_node(world: World) -> None:
    nodes = two_nodes(world)
    three_processes(world, bind(nodes[1]))


@case("ksm03")
def test_the_same_in_a_memory_cgroup(world: World) -> None:
    with memory_cgroup(world) as folder:
        three_processes(world, enter(folder))


@case("ksm04")
def test_the_same_in_a_memory_cgroup_with_memory_of_one_node(world: World) -> None:
    nodes = two_nodes(world)
    with memory_cgroup(world) as folder:

        def both(client: Client) -> None:
            enter(folder)(client)
            bind(nodes[1])(client)

        three_processes(world, both)


def on_nodes(world: World, pages: int) -> int:
    """Start a process with equal pages on each node; the number of nodes."""
    nodes = two_nodes(world)
    for node in nodes:
        client = world.client()
        bind(node)(client)
        client.mark(client.map([7] * pages), pages)
    world.await_registered(len(nodes))
    return len(nodes)


@case("ksm06", "ksm_tests -N")
@pytest.mark.parametrize("pages", [1, 64])
def test_nodes_merge_with_one_another_only_when_they_may(world: World, pages: int) -> None:
    world.set("max_page_sharing", 100_000)
    world.set("merge_across_nodes", 0)
    count = on_nodes(world, pages)
    apart = world.step(3)
    if pages > 1:
        assert apart == Counts(count, count * pages - count, 0, 0)
    else:
        assert apart == Counts(0, 0, count, 0)
    world.stop(run=2)  # the copies lie where there is room: after it nodes can't be told apart
    world.set("merge_across_nodes", 1)
    assert world.step(3) == Counts(1, count * pages - 1, 0, 0)
