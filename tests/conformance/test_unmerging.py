"""What ends sharing: MADV_UNMERGEABLE, run=2, exit; every page its own, and its content kept."""

from __future__ import annotations

from tests.support.conformance.cases import case
from tests.support.conformance.client import PAGE
from tests.support.conformance.worlds import Counts, World, kernel_version

HALF = 256
PROT_NONE = 0


@case("C12")
def test_run_2_unmerges_everything_and_starts_counting_anew(world: World) -> None:
    client, address = world.marked([7] * 10)
    child = client.fork()
    world.await_registered(2)
    world.step(3)
    assert world.counts().shared >= 1
    world.stop(run=2)
    assert world.counts() == Counts(0, 0, 0, 0)
    assert world.read("full_scans") == 0
    assert client.has_own_frames(address, 10)
    assert child.has_own_frames(address, 10)
    assert client.peek(address, 10) == child.peek(address, 10) == [7] * 10
    assert world.step(2).sharing >= 10 - 1  # the registrations have stayed


@case("C12")
def test_writing_run_2_again_does_nothing(world: World) -> None:
    world.marked([7] * 10)
    world.merge()
    world.stop(run=2)
    world.set("run", 2)
    assert world.read("run") == 2
    assert world.counts() == Counts(0, 0, 0, 0)


@case("C12")
def test_run_0_leaves_what_is_merged(world: World) -> None:
    client, address = world.marked([7] * 10)
    world.merge()
    world.stop()
    assert world.counts() == Counts(1, 9, 0, 0)
    assert len(set(client.frames_read(address, 10))) == 1
    client.poke(address, 1)
    assert client.peek(address, 3) == [-1, 7, 7]
    assert world.counts() == Counts(1, 9, 0, 0)  # nobody counts


@case("C13")
def test_counters_after_an_exit_while_ksmd_is_stopped(world: World) -> None:
    client, _ = world.marked([7] * 10)
    world.merge()
    world.stop()
    client.kill()
    if world.is_kernel:
        assert world.counts() == Counts(1, 9, 0, 0)
        world.marked([1, 2])
        assert world.step() == Counts(0, 0, 0, 2)
    else:
        world.differs("the daemon hears of an exit at once")
        world.await_registered(0)
        assert world.counts() == Counts(0, 0, 0, 0)


@case("C13")
def test_an_exit_while_ksmd_runs_is_counted_by_the_next_pass(world: World) -> None:
    client, _ = world.marked([7] * 10)
    world.marked_beside([7] * 5)
    world.step(3)
    assert world.counts() == Counts(1, 14, 0, 0)
    client.kill()
    if not world.is_kernel:
        world.await_registered(1)
    world.step()
    assert world.counts()[:2] == (1, 4)


@case("functional test_unmerge")
def test_after_unmerging_no_two_pages_are_one_frame(world: World) -> None:
    client, address = world.marked([0xCF] * 2 * HALF)
    assert world.merge()[:2] == (2, 510)
    assert not world.tells_processes or world.merging_pages(client.pid) > 0
    client.unmark(address, 2 * HALF)
    assert client.has_own_frames(address, 2 * HALF)
    assert client.peek(address, 2 * HALF) == [0xCF] * 2 * HALF


@case("functional test_unmerge")
def test_a_part_can_be_unmerged(world: World) -> None:
    client, address = world.marked([7] * 12)
    world.merge()
    client.unmark(address + 4 * PAGE, 4)
    assert client.has_own_frames(address + 4 * PAGE, 4)
    assert world.step()[:2] == (1, 7)
    assert client.peek(address, 12) == [7] * 12


@case("functional test_unmerge_discarded")
def test_a_range_of_which_a_half_was_discarded_can_be_unmerged(world: World) -> None:
    client, address = world.marked([0xCF] * 2 * HALF)
    world.merge()
    client.discard(address, HALF)
    client.unmark(address, 2 * HALF)
    assert client.has_own_frames(address + HALF * PAGE, HALF)
    assert client.frames(address, HALF) == []
    assert client.peek(address, 2 * HALF) == [0] * HALF + [0xCF] * HALF


@case("functional test_unmerge_uffd_wp")
def test_a_range_that_a_userfaultfd_protects_can_be_unmerged(world: World) -> None:
    client, address = world.marked([0xCF] * 2 * HALF)
    assert world.merge()[:2] == (2, 510)
    protected = client.do("write_protect", address, 2 * HALF * PAGE)[1]
    world.needs(not protected, "userfaultfd's write protection", "5.7")
    client.unmark(address, 2 * HALF)
    if world.is_kernel and kernel_version() < (6, 2):
        client.do("let_go")
        world.lacks("unmerging of what a userfaultfd protects", "6.2")
    assert client.has_own_frames(address, 2 * HALF)
    client.do("let_go")
    assert client.peek(address, 2 * HALF) == [0xCF] * 2 * HALF


@case("functional test_unmerge_uffd_wp")
def test_a_range_that_a_userfaultfd_watches(world: World) -> None:
    client = world.client()
    address = client.map([0xCF] * 8)
    protected = client.do("write_protect", address, 8 * PAGE)[1]
    world.needs(not protected, "userfaultfd's write protection", "5.7")
    client.mark(address, 8)
    if world.is_kernel:
        assert world.step(3)[:2] == (1, 7)
    else:
        world.differs("a process that uses userfaultfd itself is refused by name")
        refused = world.await_refusal(client.pid)
        assert "userfaultfd" in refused
    client.do("let_go")
    assert client.peek(address, 8) == [0xCF] * 8


def needs_unreadable(world: World) -> None:
    if world.is_kernel and kernel_version() < (6, 2):
        world.lacks("merging of memory that may not be read", "6.2")


@case("functional test_prot_none")
def test_memory_that_may_not_be_read_is_merged_and_unmerged(world: World) -> None:
    needs_unreadable(world)
    client, address = world.marked([0xCF] * 2 * HALF)
    if world.is_kernel:
        client.protect(address, 2 * HALF, PROT_NONE)
        world.merge()
    else:
        world.differs("memory that may not be read is not merged; what is merged before stays so")
        world.merge()
        client.protect(address, 2 * HALF, PROT_NONE)
    assert world.counts()[:2] == (2, 510)
    client.do("poke_through_mem", address, list(range(1, HALF + 1)))
    client.unmark(address + HALF * PAGE, HALF)
    assert client.has_own_frames(address + HALF * PAGE, HALF)
    client.protect(address, 2 * HALF, 1)
    assert client.has_own_frames(address, 2 * HALF)
    assert client.peek(address + HALF * PAGE, HALF) == [0xCF] * HALF


@case("functional test_prot_none")
def test_memory_that_may_not_be_read_from_the_start(world: World) -> None:
    needs_unreadable(world)
    client = world.client()
    address = client.map([7] * 8)
    client.protect(address, 8, PROT_NONE)
    client.mark(address, 8)
    client.mark(client.map([8]), 1)
    world.await_registered(1)
    counts = world.step(3)
    if world.is_kernel:
        assert counts == Counts(1, 7, 1, 0)
    else:
        world.differs("memory that may not be read is not merged; what is merged before stays so")
        assert counts == Counts(0, 0, 1, 0)
    client.protect(address, 8, 1)
    assert client.peek(address, 8) == [7] * 8
