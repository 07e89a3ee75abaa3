"""madvise and prctl: what they take, what they refuse, what they mean for memory to come."""

from __future__ import annotations

import errno
from contextlib import ExitStack

import pytest

from tests.support.conformance.cases import case
from tests.support.conformance.client import PAGE, Client
from tests.support.conformance.worlds import Counts, World
from tests.support.environment import require
from tests.support.kernel_ksm import hold_kernel_ksm, why_no_kernel_ksm

MERGEABLE, UNMERGEABLE = 12, 13
SHARED_ANONYMOUS = 0x21
SYS_MADVISE, SYS_PROCESS_MADVISE, SYS_PIDFD_OPEN = 28, 440, 434


def advise(client: Client, address: int, length: int, advice: int = MERGEABLE) -> int:
    return client.errno_of("madvise", address, length, advice)


@case("C10")
@pytest.mark.parametrize("advice", [MERGEABLE, UNMERGEABLE])
def test_madvise_refuses_what_is_no_range_of_pages(world: World, advice: int) -> None:
    client = world.client()
    address = client.map([1, 2, 3, 4])
    assert advise(client, address + 1, PAGE, advice) == errno.EINVAL
    assert advise(client, address, -PAGE, advice) == errno.EINVAL  # wraps round
    assert advise(client, address, 0, advice) == 0
    assert advise(client, address, 3 * PAGE + 1, advice) == 0  # rounded up
    client.unmap(address, 4)
    assert advise(client, address, 4 * PAGE, advice) == errno.ENOMEM


@case("C10")
def test_a_gap_is_refused_and_the_rest_is_marked_all_the_same(world: World) -> None:
    client = world.client()
    address = client.map([5] * 6)
    client.unmap(address + 2 * PAGE, 2)
    assert advise(client, address, 6 * PAGE) == errno.ENOMEM
    world.await_registered(1)
    assert world.merge() == Counts(1, 3, 0, 0)


@case("C10")
def test_shared_memory_is_taken_and_left_alone(world: World) -> None:
    client = world.client()
    shared = client.map([5] * 4, flags=SHARED_ANONYMOUS)
    assert advise(client, shared, 4 * PAGE) == 0
    client.mark(client.map([5] * 4), 4)
    world.await_registered(1)
    assert world.merge() == Counts(1, 3, 0, 0)
    assert advise(client, shared, 4 * PAGE, UNMERGEABLE) == 0


@case("C10")
def test_the_end_of_a_range_that_is_rounded_up_is_marked(world: World) -> None:
    client = world.client()
    address = client.map([5] * 4)
    assert advise(client, address, 2 * PAGE + 1) == 0
    world.await_registered(1)
    assert world.merge() == Counts(1, 2, 0, 0)


@case("C10")
def test_prctl_refuses_arguments_that_it_does_not_know(world: World) -> None:
    world.needs_prctl()
    client = world.client()
    for place in (2, 3, 4):
        arguments = [67, 1, 0, 0, 0]
        arguments[place] = 1
        assert client.errno_of("prctl", *arguments) == errno.EINVAL
    for place in (1, 2, 3, 4):
        arguments = [68, 0, 0, 0, 0]
        arguments[place] = 1
        assert client.errno_of("prctl", *arguments) == errno.EINVAL
    assert client.merges_any() == 0
    assert client.call("prctl", 67, 2, 0, 0, 0) == 0  # whatever is not 0
    assert client.merges_any() == 1


@case("C10")
def test_another_process_cannot_be_marked_by_process_madvise(world: World) -> None:
    client, other = world.client(), world.client()
    address = other.map([5] * 4)
    room = client.map([0])
    fd = client.call("syscall", SYS_PIDFD_OPEN, other.pid, 0)
    client.do("store", room, [address, 4 * PAGE])
    code = client.errno_of("syscall", SYS_PROCESS_MADVISE, fd, room, 1, MERGEABLE, 0)
    assert code == errno.EINVAL


@case("C10")
@pytest.mark.ksm
def test_a_system_call_made_by_hand(world: World) -> None:
    with ExitStack() as stack:
        if not world.is_kernel:  # what goes past the agent goes to the kernel's KSM
            require(not why_no_kernel_ksm(), "a kernel's KSM that can be held")
            stack.enter_context(hold_kernel_ksm())
        client = world.client()
        stack.callback(client.kill)
        address = client.map([5] * 4)
        client.call("syscall", SYS_MADVISE, address, 4 * PAGE, MERGEABLE)
        client.mark(client.map([6] * 4), 4)
        world.await_registered(1)
        if world.is_kernel:
            assert world.merge() == Counts(2, 6, 0, 0)
        else:
            world.differs("system calls made by hand, past the C library, are not seen")
            assert world.merge() == Counts(1, 3, 0, 0)


@case("C11")
def test_prctl_off_unmerges_what_madvise_had_marked(world: World) -> None:
    world.needs_prctl()
    client, address = world.marked([5] * 4)
    client.merge_any(True)
    world.merge()
    assert len(set(client.frames_read(address, 4))) == 1
    client.merge_any(False)
    assert client.has_own_frames(address, 4)
    world.stop()
    other, _ = world.marked_beside([6] * 4)
    world.step(3)
    assert world.merging_pages(client.pid) == 0
    assert world.merging_pages(other.pid) == 4


@case("C11")
def test_prctl_off_touches_nothing_when_it_was_not_on(world: World) -> None:
    world.needs_prctl()
    client, address = world.marked([5] * 4)
    assert world.merge() == Counts(1, 3, 0, 0)
    client.merge_any(False)
    assert world.step() == Counts(1, 3, 0, 0)
    assert len(set(client.frames_read(address, 4))) == 1


@case("C11")
def test_memory_that_is_mapped_later_is_meant_by_prctl_too(world: World) -> None:
    world.needs_prctl()
    client = world.client()
    client.merge_any(True)
    world.await_registered(1)
    address = client.map([5] * 4)
    world.step(3)
    assert len(set(client.frames_read(address, 4))) == 1


@case("C11")
def test_madvise_takes_a_range_out_while_prctl_is_on(world: World) -> None:
    world.needs_prctl()
    client = world.client()
    address = client.map([5] * 8)
    client.merge_any(True)
    world.await_registered(1)
    client.unmark(address, 4)
    client.call("prctl", 67, 1, 0, 0, 0)  # again: does not bring it back
    world.step(3)
    assert client.has_own_frames(address, 4)
    assert len(set(client.frames_read(address + 4 * PAGE, 4))) == 1


@case("functional test_prctl")
def test_prctl_tells_what_it_was_told(world: World) -> None:
    world.needs_prctl()
    client = world.client()
    client.merge_any(True)
    assert client.merges_any() == 1
    client.merge_any(False)
    assert client.merges_any() == 0


@case("functional test_prctl_unmerge")
def test_prctl_off_unmerges(world: World) -> None:
    world.needs_prctl()
    client = world.client()
    client.merge_any(True)
    address = client.map([0xCF] * 512)
    world.await_registered(1)
    world.step(3)
    assert world.merging_pages(client.pid) > 0
    assert len(set(client.frames_read(address, 512))) <= 2
    client.merge_any(False)
    assert client.has_own_frames(address, 512)


@case("merge ksm_merge")
def test_mappings_next_to_one_another_are_one_under_prctl(world: World) -> None:
    world.needs_prctl()
    client = world.client()
    room = client.map(8, prot=0)
    client.merge_any(True)
    world.await_registered(1)
    for page in (0, 4):  # MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS
        client.call("mmap", room + page * PAGE, 4 * PAGE, 3, 0x32, -1, 0)
    client.fill(room, [5, 6, 7, 8, 9, 10, 11, 12])
    regions = [r for r in world.maps(client.pid) if r.start <= room < r.end]
    if world.is_kernel and regions[0].end < room + 8 * PAGE:
        world.lacks("one mapping for neighbours under prctl", "6.17")
    assert regions[0].end >= room + 8 * PAGE
