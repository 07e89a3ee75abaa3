"""use_zero_pages: pages of zeros that become the kernel's zero page."""

from __future__ import annotations

import pytest

from tests.support.conformance.cases import case
from tests.support.conformance.client import PAGE, page_of_zeros_frame
from tests.support.conformance.worlds import Counts, World

LAG = "ksm_zero_pages is brought up to date by the next pass, not at once"


@pytest.fixture
def zeros(world: World) -> World:
    """Where zero pages are counted, with use_zero_pages on."""
    world.needs(world.has("ksm_zero_pages"), "ksm_zero_pages", "6.6")
    world.set("use_zero_pages", 1)
    return world


def left(world: World) -> int:
    """ksm_zero_pages now; the engine's after the pass that it needs to notice."""
    if not world.is_kernel:
        world.differs(LAG)
        world.step()
    return world.counts().zero


@case("C7")
def test_zeros_become_the_zero_page(zeros: World) -> None:
    client, address = zeros.marked([0] * 16)
    assert zeros.step() == Counts(0, 0, 0, 16, 0)
    assert zeros.step() == Counts(0, 0, 0, 16, 16)  # their records go one pass later
    assert zeros.step() == Counts(0, 0, 0, 0, 16)
    process = zeros.process(client.pid)
    assert (process.ksm_zero_pages, process.ksm_rmap_items) == (16, 0)
    assert process.ksm_process_profit is not None
    if zeros.is_kernel:
        assert process.ksm_process_profit == 16 * PAGE
    else:
        zeros.differs("profits are less by the metadata that there really is")
        assert process.ksm_process_profit < 16 * PAGE
    assert set(client.frames_read(address, 16)) == {page_of_zeros_frame()}
    assert client.peek(address, 16) == [0] * 16


@case("C7")
def test_without_use_zero_pages_zeros_are_merged_as_any_other_content(world: World) -> None:
    world.marked([0] * 16)
    assert world.merge() == Counts(1, 15, 0, 0, 0)


@case("C7")
def test_what_is_merged_already_is_not_turned_into_zero_pages(world: World) -> None:
    world.marked([0] * 16)
    world.merge()
    world.set("use_zero_pages", 1)
    assert world.step(3) == Counts(1, 15, 0, 0, 0)


@case("C8")
def test_writing_unmarking_and_discarding_leave_ksm_zero_pages(zeros: World) -> None:
    client, address = zeros.marked([0] * 16)
    assert zeros.step(3).zero == 16
    client.poke(address, 1)
    assert left(zeros) == 15
    client.unmark(address + PAGE, 2)
    assert left(zeros) == 13
    client.discard(address + 3 * PAGE, 4)
    if zeros.is_kernel:
        assert left(zeros) == 9
    else:
        zeros.differs("pages that became zero pages are as good as discarded, and stay counted")
        assert left(zeros) == 13
    assert client.peek(address + 3 * PAGE, 4) == [0] * 4  # the zero page, but not by merging
    assert left(zeros) == (9 if zeros.is_kernel else 13)
    client.fill(address + 3 * PAGE, [1, 2, 3, 4])
    assert left(zeros) == 9


@case("C9")
def test_a_fork_doubles_the_zero_pages_until_the_child_ends(zeros: World) -> None:
    client, address = zeros.marked([0] * 16)
    assert zeros.step(3).zero == 16
    child = client.fork()
    zeros.await_registered(2)
    if zeros.is_kernel:
        assert zeros.counts().zero == 32
    else:
        zeros.differs("zero pages that a child inherits are not counted for it")
        assert zeros.step(3).zero == 16
    assert child.peek(address, 16) == [0] * 16
    child.end()
    zeros.await_registered(1)
    assert zeros.counts().zero == 16


@case("ksm_tests -Z")
@pytest.mark.parametrize("use_zero_pages", [0, 1])
def test_pages_of_zeros(world: World, use_zero_pages: int) -> None:
    world.set("use_zero_pages", use_zero_pages)
    world.marked([0] * 10)
    assert world.step(3)[:2] == ((0, 0) if use_zero_pages else (1, 9))


@case("functional test_unmerge_zero_pages")
def test_zero_pages_are_unmerged_by_the_call_and_by_writing(zeros: World) -> None:
    client, address = zeros.marked([0] * 512)
    zeros.merge()
    assert zeros.process(client.pid).ksm_zero_pages == 512
    client.unmark(address, 256)
    left(zeros)
    assert zeros.process(client.pid).ksm_zero_pages == 256
    for page in range(256, 512):
        client.poke(address + page * PAGE, 1)
    assert left(zeros) == 0
    assert zeros.process(client.pid).ksm_zero_pages == 0
    assert client.has_own_frames(address + 256 * PAGE, 256)
    if zeros.is_kernel:
        assert client.has_own_frames(address, 256)
    else:
        zeros.differs("what became zero pages gets a frame when it is written, not when unmerged")
        assert client.frames(address, 256) == []
    assert client.peek(address, 256) == [0] * 256
