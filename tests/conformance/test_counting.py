"""How pages are counted from pass to pass."""

from __future__ import annotations

import pytest

from tests.support.conformance.cases import case
from tests.support.conformance.client import PAGE
from tests.support.conformance.worlds import Counts, World, kernel_version


@case("C1")
def test_equal_pages_are_volatile_after_one_pass_and_merged_after_two(world: World) -> None:
    client, address = world.marked([7] * 10)
    assert world.step() == Counts(0, 0, 0, 10)
    assert world.step() == Counts(1, 9, 0, 0)
    assert world.step() == Counts(1, 9, 0, 0)
    assert len(set(client.frames_read(address, 10))) == 1
    assert client.peek(address, 10) == [7] * 10


@case("C2")
def test_a_page_that_comes_later_joins(world: World) -> None:
    client, _ = world.marked([7] * 10)
    world.merge()
    client.mark(client.map([7]), 1)
    if world.is_kernel and kernel_version() < (6, 11):
        assert world.step() == Counts(1, 10, 0, 0)  # the stable tree came before the checksum
    else:
        assert world.step() == Counts(1, 9, 0, 1)
        assert world.step() == Counts(1, 10, 0, 0)


@case("C3")
def test_a_page_that_is_written_to_leaves(world: World) -> None:
    client, address = world.marked([7] * 11)
    world.merge()
    client.poke(address, 1)
    assert world.counts() == Counts(1, 10, 0, 0)  # nobody tells ksmd
    assert world.step() == Counts(1, 9, 0, 1)
    assert world.step() == Counts(1, 9, 1, 0)
    assert client.peek(address, 11) == [-1] + [7] * 10


@case("C4")
def test_pages_with_no_twin_are_unshared_from_the_second_pass_on(world: World) -> None:
    world.marked([1, 2, 3, 4, 5, 6])
    assert world.step() == Counts(0, 0, 0, 6)
    for _ in range(3):
        assert world.step() == Counts(0, 0, 6, 0)


@case("C5")
def test_smart_scan_looks_at_lonely_pages_more_and_more_seldom(world: World) -> None:
    world.needs(world.has("smart_scan"), "smart_scan", "6.7")
    world.set("smart_scan", 1)
    world.marked([1, 2, 3, 4, 5, 6])
    looked = {2, 3, 4, 6, 9, 14, 23}
    if not world.is_kernel:
        world.differs("a page that is skipped stays unshared: it is known not to have changed")
    skipped = world.read("pages_skipped")
    for number in range(1, 25):
        counts = world.step()
        if number == 1:
            assert counts == Counts(0, 0, 0, 6)
        elif world.is_kernel:
            assert counts == (Counts(0, 0, 6, 0) if number in looked else Counts(0, 0, 0, 6))
        else:
            assert counts == Counts(0, 0, 6, 0)
        skipped += 6 * (number not in looked | {1})
        assert world.read("pages_skipped") == skipped, f"pass {number}"


@case("C6")
@pytest.mark.parametrize(
    ("limit", "count"), [(2, 7), (10, 9), (10, 10), (10, 11), (10, 12), (10, 31)]
)
def test_max_page_sharing_decides_how_many_pages_are_kept(
    world: World, limit: int, count: int
) -> None:
    world.set("max_page_sharing", limit)
    world.marked([7] * count)
    counts = world.step(4)
    full, rest = divmod(count, limit)
    shared, left_over = full + (rest >= 2), int(rest == 1)
    assert counts == Counts(shared, count - shared - left_over, left_over, 0)
    assert world.chains() == ((1, shared) if shared > 1 else (0, 0))


@case("C6")
def test_a_fork_may_exceed_max_page_sharing(world: World) -> None:
    world.set("max_page_sharing", 4)
    client, address = world.marked([7] * 4)
    assert world.merge() == Counts(1, 3, 0, 0)
    child = client.fork()
    world.await_registered(2)
    assert world.step() == Counts(1, 7, 0, 0)
    assert world.chains() == (0, 0)
    assert child.peek(address, 4) == [7] * 4


@case("C15")
def test_pages_that_change_before_every_pass_are_always_volatile(world: World) -> None:
    client, address = world.marked([9] * 8)
    for value in range(10, 16):
        client.fill(address, [value] * 8)
        assert world.step() == Counts(0, 0, 0, 8)


@case("C16")
def test_a_batch_is_so_many_pages_and_ends_with_the_pass(world: World) -> None:
    world.needs(world.has("pages_scanned"), "pages_scanned", "6.6")
    world.marked([1, 2, 3, 4, 5, 6, 7, 8])
    world.set("pages_to_scan", 3)
    first = world.read("pages_scanned")
    seen = [world.batch() - first for _ in range(6)]
    assert seen == [3, 6, 8, 11, 14, 16]
    assert world.read("full_scans") == 2


@case("C17")
def test_which_frame_is_kept(world: World) -> None:
    client, address = world.marked([7] * 10)
    before = client.frames_read(address, 10)
    world.merge()
    after = set(client.frames_read(address, 10))
    assert len(after) == 1
    if world.is_kernel:
        assert after == {before[1]}  # the second page that was visited, where it was
    else:
        world.differs("none of the merged pages is kept in place: a page of the pool is")
        assert not after & set(before)


@case("C23")
def test_unmerged_and_marked_again_takes_one_pass(world: World) -> None:
    client, address = world.marked([7] * 10)
    world.merge()
    client.unmark(address, 10)
    client.mark(address, 10)
    if world.is_kernel:
        assert world.step() == Counts(1, 9, 0, 0)
    else:
        world.differs("it takes two passes: nothing is kept of memory that was unmarked")
        assert world.step() == Counts(0, 0, 0, 10)
        assert world.step() == Counts(1, 9, 0, 0)


@case("ksm_tests -M")
@pytest.mark.parametrize("count", [10, 256, 257, 300, 600])
def test_many_equal_pages_are_merged_within_the_default_limit(world: World, count: int) -> None:
    world.marked([42] * count)
    shared = count // 256 + (count % 256 > 1)
    left_over = int(count % 256 == 1)
    assert world.step(4)[:2] == (shared, count - shared - left_over)


@case("ksm_tests -M")
@pytest.mark.parametrize("prot", [1, 3, 7], ids=["r--", "rw-", "rwx"])
def test_protection_does_not_hinder_merging(world: World, prot: int) -> None:
    client = world.client()
    address = client.map([42] * 10)
    client.protect(address, 10, prot)
    client.mark(address, 10)
    world.await_registered(1)
    if world.is_kernel or not prot & 4:
        assert world.merge() == Counts(1, 9, 0, 0)
    else:
        world.differs("executable memory is not merged")
        assert world.merge() == Counts(0, 0, 0, 10)
    assert client.peek(address, 10) == [42] * 10


@case("ksm_tests -M")
def test_prctl_merges_equal_pages(world: World) -> None:
    world.needs_prctl()
    client = world.client()
    address = client.map([42] * 10)
    client.merge_any(True)
    world.await_registered(1)
    world.step(4)
    assert len(set(client.frames_read(address, 10))) == 1
    assert world.merging_pages(client.pid) >= 10


@case("ksm_tests -U")
def test_two_merged_pages_that_are_written_to_are_merged_no_longer(world: World) -> None:
    client, address = world.marked([42] * 2)
    assert world.merge()[:2] == (1, 1)
    client.poke(address, ord("-"))
    client.poke(address + PAGE, ord("+"))
    assert world.step()[:2] == (0, 0)


@case("ksm_tests -C")
def test_writing_to_many_merged_pages_gives_each_a_copy(world: World) -> None:
    world.set("max_page_sharing", 2000)
    client, address = world.marked([42] * 2000)
    assert world.merge()[:2] == (1, 1999)
    client.fill(address, list(range(1, 2001)))
    assert client.peek(address, 2000) == list(range(1, 2001))
    assert client.has_own_frames(address, 2000)
    assert world.step()[:2] == (0, 0)


@case("ksm_tests -D")
def test_unmerging_much_memory_does_not_fail(world: World) -> None:
    pages = 2048
    client, address = world.marked([42] * pages)
    world.step(4)
    client.unmark(address, pages)
    assert client.has_own_frames(address, pages)
    assert client.peek(address, pages) == [42] * pages


@case("ksm07")
def test_smart_scan_saves_every_second_look(world: World) -> None:
    world.needs(world.has("smart_scan"), "smart_scan", "6.7")
    world.set("smart_scan", 1)
    world.marked([1])
    skipped, scans = world.read("pages_skipped"), world.read("full_scans")
    world.step(40)
    assert 2 * (world.read("pages_skipped") - skipped) >= world.read("full_scans") - scans
