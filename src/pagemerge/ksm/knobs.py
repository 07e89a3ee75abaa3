"""The knobs (`/sys/kernel/mm/ksm`)."""

from __future__ import annotations

from typing import Final

from pagemerge.ksm.items import INT_MAX, ULONG_MAX, Knob, Type, Unit

__all__ = ["KNOBS", "find_knob"]

KNOBS: Final = (
    Knob(
        name="run",
        type=Type.UINT,
        maximum=2,
        default=0,
        choices=("stop", "run", "unmerge"),
        since="2.6.32",
        meaning="0: ksmd stops, what is merged stays merged; 1: ksmd runs; "
        "2: ksmd stops and everything is unmerged",
        note="2 needs memory for every copy, takes some 2 µs a page, sets full_scans to 0 and "
        "keeps the registrations; writing 2 again does nothing. While ksmd is stopped all "
        "counters keep their last value.",
    ),
    Knob(
        name="pages_to_scan",
        type=Type.UINT,
        unit=Unit.PAGES,
        default=100,
        since="2.6.32",
        meaning="pages that ksmd looks at before it sleeps",
        note="Refused (EINVAL) while advisor_mode is not none. 0: ksmd wakes but never advances.",
    ),
    Knob(
        name="sleep_millisecs",
        type=Type.UINT,
        unit=Unit.MILLISECS,
        default=20,
        since="2.6.32",
        meaning="time that ksmd sleeps between batches",
        note="A different value ends the sleep in progress at once.",
    ),
    Knob(
        name="merge_across_nodes",
        type=Type.ULONG,
        maximum=1,
        default=1,
        since="3.9",
        meaning="1: equal pages of different NUMA nodes are merged; 0: only those of one node",
        note="Only where the kernel has CONFIG_NUMA. A change is refused (EBUSY) while "
        "pages_shared is not 0.",
    ),
    Knob(
        name="max_page_sharing",
        type=Type.INT,
        unit=Unit.TIMES,
        minimum=2,
        maximum=INT_MAX,
        default=256,
        since="4.13",
        meaning="how often one page kept may be mapped before another copy of it is kept",
        note="A change is refused (EBUSY) while pages_shared is not 0.",
    ),
    Knob(
        name="use_zero_pages",
        type=Type.BOOL,
        maximum=1,
        default=0,
        since="4.11",
        meaning="1: pages that are all zero become the zero page, and need no page kept",
        note="Only later merges are affected.",
    ),
    Knob(
        name="smart_scan",
        type=Type.BOOL,
        maximum=1,
        default=1,
        since="6.7",
        meaning="1: pages that never found a twin are looked at more and more seldom",
    ),
    Knob(
        name="stable_node_chains_prune_millisecs",
        type=Type.UINT,
        unit=Unit.MILLISECS,
        default=2000,
        since="4.13",
        meaning="how often chains of copies are searched for copies nobody uses any more",
    ),
    Knob(
        name="advisor_mode",
        type=Type.CHOICE,
        choices=("none", "scan-time"),
        default="none",
        since="6.8",
        meaning="scan-time: pages_to_scan is set after each pass, so that a pass takes "
        "advisor_target_scan_time",
        note="A change to scan-time sets pages_to_scan to advisor_min_pages_to_scan, "
        "a change to none sets it to 100.",
    ),
    Knob(
        name="advisor_max_cpu",
        type=Type.ULONG,
        unit=Unit.PERCENT,
        maximum=ULONG_MAX,
        default=70,
        since="6.8",
        meaning="share of one CPU that the advisor lets ksmd take",
        note="The kernel keeps only the lower 32 bits.",
    ),
    Knob(
        name="advisor_min_pages_to_scan",
        type=Type.ULONG,
        unit=Unit.PAGES,
        maximum=ULONG_MAX,
        default=500,
        since="6.8",
        meaning="the pages_to_scan that the advisor starts from (not a floor)",
    ),
    Knob(
        name="advisor_max_pages_to_scan",
        type=Type.ULONG,
        unit=Unit.PAGES,
        maximum=ULONG_MAX,
        default=30000,
        since="6.8",
        meaning="the highest pages_to_scan that the advisor sets",
    ),
    Knob(
        name="advisor_target_scan_time",
        type=Type.ULONG,
        unit=Unit.SECONDS,
        minimum=1,
        maximum=ULONG_MAX,
        default=200,
        since="6.8",
        meaning="the time that the advisor wants a pass to take",
    ),
)

_KNOBS_BY_NAME: Final = {knob.name: knob for knob in KNOBS}


def find_knob(name: str) -> Knob | None:
    """Find a knob by its name; None where there is none of that name."""
    return _KNOBS_BY_NAME.get(name)
