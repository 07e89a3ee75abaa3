"""Calls that move, drop, protect or lock merged memory; huge pages."""

from __future__ import annotations

import pytest

from tests.support.conformance.cases import case
from tests.support.conformance.client import PAGE, Client
from tests.support.conformance.worlds import Counts, World

HUGE = 512


@case("C14")
def test_moved_pages_are_merged_again_after_two_passes(world: World) -> None:
    client, address = world.marked([7] * 8)
    assert world.merge() == Counts(1, 7, 0, 0)
    target = client.map(8, prot=0)
    moved = client.remap(address, 8, 8, to=target)
    assert moved == target
    assert client.has_own_frames(moved, 8)
    assert client.peek(moved, 8) == [7] * 8
    assert world.step() == Counts(0, 0, 0, 8)
    assert world.step() == Counts(1, 7, 0, 0)


@case("C14")
def test_memory_that_shrinks_or_grows_in_place_stays_merged(world: World) -> None:
    client, address = world.marked([7] * 8)
    world.merge()
    assert client.remap(address, 8, 4) == address
    if world.is_kernel:
        assert world.step() == Counts(1, 3, 0, 0)
    else:
        world.differs("any mremap of merged memory unmerges it first")
        world.step(2)
        assert world.counts() == Counts(1, 3, 0, 0)
    assert client.peek(address, 4) == [7] * 4


@case("C14")
def test_what_is_unmapped_is_noticed_by_the_next_pass(world: World) -> None:
    client, address = world.marked([7] * 8)
    world.merge()
    client.unmap(address, 4)
    world.step()
    assert world.counts() == Counts(1, 3, 0, 0)
    assert client.peek(address + 4 * PAGE, 4) == [7] * 4


@case("C14")
def test_what_is_discarded_is_noticed_by_the_next_pass(world: World) -> None:
    client, address = world.marked([7] * 8)
    world.merge()
    client.discard(address, 4)
    assert client.frames(address, 4) == []
    world.step()
    assert world.counts() == Counts(1, 3, 0, 0)
    assert client.peek(address, 8) == [0] * 4 + [7] * 4


@case("C14")
def test_protection_may_change_while_pages_are_merged(world: World) -> None:
    client, address = world.marked([7] * 8)
    world.merge()
    client.protect(address, 8, 1)
    assert world.step() == Counts(1, 7, 0, 0)
    client.protect(address, 8, 3)
    client.poke(address, 1)
    assert world.step() == Counts(1, 6, 0, 1)
    assert client.peek(address, 8) == [-1] + [7] * 7


@case("C14")
@pytest.mark.parametrize("when", ["before", "after"])
def test_locked_memory(world: World, when: str) -> None:
    client, address = world.marked([7] * 8)
    client.mark(client.map([8]), 1)
    if when == "after":
        world.merge()
    client.call("mlock", address, 8 * PAGE)
    counts = world.step(3)
    if world.is_kernel:
        assert counts == Counts(1, 7, 1, 0)
    else:
        world.differs("memory that is locked is left alone, and unmerged when it gets locked")
        assert counts == Counts(0, 0, 1, 0)
        assert client.has_own_frames(address, 8)
    assert client.peek(address, 8) == [7] * 8


@case("C14")
@pytest.mark.parametrize("kind", ["heap", "stack", "file"])
def test_heap_stack_and_private_file_pages_are_merged(world: World, kind: str) -> None:
    client = world.client()
    if kind == "heap":
        address = client.call("sbrk", 9 * PAGE)
        address += -address % PAGE
    elif kind == "stack":
        address = client.map(8, flags=0x20122)  # MAP_STACK | MAP_GROWSDOWN | ...
    else:
        address = client.do("map_file", 8)
    client.fill(address, [7] * 8)
    client.mark(address, 8)
    client.mark(client.map([8] * 4), 4)
    world.await_registered(1)
    counts = world.step(3)
    if world.is_kernel or kind == "heap":
        assert counts[:2] == (2, 10)
    else:
        world.differs("only private anonymous memory that does not grow down is merged")
        assert counts[:2] == (1, 3)


def huge_kilobytes(world: World, client: Client, address: int) -> int:
    """AnonHugePages of the mapping, kB."""
    smap = next(s for s in world.smaps(client.pid) if s.vma.start <= address < s.vma.end)
    return smap.sizes["AnonHugePages"] // 1024


def huge_pages(world: World, client: Client, values: list[int]) -> int:
    """Memory of huge pages with these contents, marked; its address."""
    room = client.map(len(values) + HUGE)
    address = room + -room % (HUGE * PAGE)
    client.want_huge(address, len(values))
    client.fill(address, values)
    whole = huge_kilobytes(world, client, address) == len(values) * PAGE // 1024
    world.needs(whole, "huge pages (a THP for each 2 MiB)")
    client.mark(address, len(values))
    world.await_registered(1)
    return address


@case("C24")
def test_huge_pages_with_nothing_to_merge_stay_whole(world: World) -> None:
    client = world.client()
    address = huge_pages(world, client, list(range(1, 2 * HUGE + 1)))
    world.step(4)
    assert world.counts()[:3] == (0, 0, 2 * HUGE)
    assert huge_kilobytes(world, client, address) == 4096


@case("C24")
def test_one_duplicate_splits_both_huge_pages(world: World) -> None:
    client = world.client()
    values = list(range(1, 2 * HUGE + 1))
    values[HUGE + 5] = values[3]
    address = huge_pages(world, client, values)
    world.step(4)
    assert world.counts()[:2] == (1, 1)
    assert huge_kilobytes(world, client, address) == 0
    assert client.peek(address, 2 * HUGE) == values


@case("ksm_tests -H", "C24")
def test_equal_huge_pages_are_merged(world: World) -> None:
    client = world.client()
    world.set("max_page_sharing", 100_000)
    address = huge_pages(world, client, [42] * 2 * HUGE)
    counts = world.step(4)
    assert counts[:2] == (1, 2 * HUGE - 1)
    assert client.peek(address, 2 * HUGE) == [42] * 2 * HUGE
