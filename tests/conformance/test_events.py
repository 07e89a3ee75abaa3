"""The trace events, and the advisor that tells its reckoning by one of them."""

from __future__ import annotations

from pagemerge.engine.advisor import ScanTimeAdvisor
from tests.support.conformance.cases import case
from tests.support.conformance.tracing import trace
from tests.support.conformance.worlds import UINT_MAX, World

ENTER, EXIT = "ksm_enter", "ksm_exit"
START, STOP = "ksm_start_scan", "ksm_stop_scan"
MERGE, ZERO = "ksm_merge_with_ksm_page", "ksm_merge_one_page"
PAGE_GONE, ITEM_GONE = "ksm_remove_ksm_page", "ksm_remove_rmap_item"


@case("C19")
def test_registering_and_merging_are_told_in_order(world: World) -> None:
    with trace(world) as tracer:
        client, _ = world.marked([7] * 5)
        assert [event.name for event in tracer.take()] == [ENTER]
        world.step()
        start, stop = tracer.take()
        assert (start.name, start.numbers["seq"], start.numbers["rmap_entries"]) == (START, 0, 0)
        assert (stop.name, stop.numbers["seq"], stop.numbers["rmap_entries"]) == (STOP, 0, 5)
        world.step()
        events = tracer.take()
        assert [event.name for event in events] == [START, *[MERGE] * 5, STOP]
        assert {event.numbers["seq"] for event in events if "seq" in event.numbers} == {1}
        assert {event.error for event in events} == {0}
        firsts = [event.is_first for event in events if event.name == MERGE]
        if world.is_kernel:
            assert firsts == [True, False, False, False, False]
        else:
            world.differs("no event tells that a page is the first of its content")
            assert not any(firsts)
        client.kill()
        world.await_gone()
        assert EXIT in [event.name for event in tracer.take()]


@case("C19")
def test_giving_up_a_page_is_told(world: World) -> None:
    with trace(world) as tracer:
        world.marked([7] * 5)
        world.merge()
        tracer.take()
        world.stop(run=2)
        names = [event.name for event in tracer.take()]
        assert names.count(PAGE_GONE) == 1
        if world.is_kernel:
            assert set(names) <= {PAGE_GONE, ITEM_GONE}
            assert names.count(ITEM_GONE) < 5
        else:
            world.differs("ksm_remove_rmap_item comes for every record that is given up")
            assert names.count(ITEM_GONE) == 5


@case("C19")
def test_a_write_to_a_merged_page_is_told_by_no_event(world: World) -> None:
    with trace(world) as tracer:
        client, address = world.marked([7] * 5)
        world.merge()
        tracer.take()
        client.poke(address, 1)
        world.step()
        assert [event.name for event in tracer.take()] == [START, STOP]


@case("C19")
def test_zero_pages_have_an_event_of_their_own(world: World) -> None:
    world.needs(world.has("ksm_zero_pages"), "ksm_zero_pages", "6.6")
    world.set("use_zero_pages", 1)
    with trace(world) as tracer:
        world.marked([0] * 5)
        world.merge()
        names = [event.name for event in tracer.take()]
        assert names.count(ZERO) == 5
        assert MERGE not in names


@case("C20")
def test_the_advisor_reckons_as_its_event_says(world: World) -> None:
    """The event tells what went in (seconds, per cent of a CPU) and what came out (pages)."""
    world.needs(world.has("advisor_mode"), "advisor_mode", "6.8")
    with trace(world) as tracer:
        world.marked(list(range(1, 9)))
        world.step(2)
        for name, value in (
            ("advisor_min_pages_to_scan", 5000),
            ("advisor_max_pages_to_scan", 9000),
            ("advisor_max_cpu", 70),
            ("advisor_target_scan_time", 2),
            ("advisor_mode", "scan-time"),
        ):
            world.set(name, value)
        tracer.take()
        reckoning = ScanTimeAdvisor(5000)
        cpu_ns, pages = 0, []
        for _ in range(8):
            world.step()
            (event,) = [event for event in tracer.take() if event.name == "ksm_advisor"]
            scan_time, percent = event.numbers["scan_time"], event.numbers["cpu_percent"]
            cpu_ns += percent * scan_time * 10_000_000
            advice = reckoning.end_of_pass(scan_time * 1000, cpu_ns, 2, 70, 9000)
            pages.append(advice.pages_to_scan)
            assert event.numbers["pages_to_scan"] == advice.pages_to_scan
            assert world.read("pages_to_scan") == advice.pages_to_scan
        assert len(set(pages)) > 1  # it did something
        world.set("advisor_mode", "none")
        world.set("pages_to_scan", UINT_MAX)
