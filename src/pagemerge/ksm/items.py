"""The one table of what samepage merging can be asked and told.

Names, types and ranges are the kernel's (`/sys/kernel/mm/ksm`, `/proc/PID/ksm_stat`, the trace
events of the group `ksm`). What only the engine has says so by `since=None`. The command line,
the API, the documentation and the exporter are derived from this table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

__all__ = [
    "COUNTERS",
    "EVENTS",
    "KNOBS",
    "PROCESS_ITEMS",
    "Counter",
    "EventField",
    "EventKind",
    "Knob",
    "ProcessItem",
    "Type",
    "Unit",
    "find_knob",
]

UINT_MAX: Final = 2**32 - 1
INT_MAX: Final = 2**31 - 1
ULONG_MAX: Final = 2**64 - 1


class Type(StrEnum):
    """How the kernel parses or keeps a value."""

    UINT = "u32"
    INT = "int"
    ULONG = "ulong"
    LONG = "long"
    BOOL = "bool"
    CHOICE = "choice"


class Unit(StrEnum):
    """What a number counts."""

    NONE = ""
    PAGES = "pages"
    BYTES = "bytes"
    MILLISECS = "ms"
    SECONDS = "s"
    PERCENT = "%"
    PASSES = "passes"
    TIMES = "times"
    CONTENTS = "contents"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    name: str
    type: Type
    unit: Unit = Unit.NONE
    meaning: str
    since: str | None  # the kernel version that brought it; None: only the engine has it
    note: str = ""

    @property
    def engine_only(self) -> bool:
        """Whether the kernel's KSM has nothing like it."""
        return self.since is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob(_Item):
    """A setting; `minimum` and `maximum` are inclusive.

    Attributes:
        default: the value of a machine that was just started.
        choices: what a `Type.CHOICE` may be, or the words for the numbers of a flag.
    """

    default: int | str
    minimum: int = 0
    maximum: int = UINT_MAX
    choices: tuple[str, ...] = ()

    @property
    def accepted(self) -> str:
        """The accepted values, in words."""
        if self.type is Type.CHOICE:
            return " or ".join(self.choices)
        if self.type is Type.BOOL:
            return "0 or 1 (also y/n, t/f, on/off)"
        if self.maximum - self.minimum <= 2:
            *firsts, last = map(str, range(self.minimum, self.maximum + 1))
            return f"{', '.join(firsts)} or {last}"
        return f"a whole number from {self.minimum} to {self.maximum}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter(_Item):
    """A number that can only be read; of the whole machine, or of the engine's daemon."""

    type: Type = Type.ULONG
    monotone: bool = False  # only grows (for rates, and for the exporter's metric type)
    is_detail: bool = False  # for who looks for a cause: shown to people only when it is not 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessItem(_Item):
    """A line of /proc/PID/ksm_stat."""


@dataclass(frozen=True, slots=True)
class EventField:
    """A field of a trace event; `type` is the kernel's C type."""

    name: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventKind:
    """A trace event of the kernel's group `ksm`."""

    name: str
    since: str
    fields: tuple[EventField, ...]
    meaning: str
    note: str = field(default="")


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

COUNTERS: Final = (
    Counter(
        name="pages_shared",
        unit=Unit.PAGES,
        since="2.6.32",
        meaning="pages kept: the copies that others share",
    ),
    Counter(
        name="pages_sharing",
        unit=Unit.PAGES,
        since="2.6.32",
        meaning="further mappings of the pages kept: the pages saved",
    ),
    Counter(
        name="pages_unshared",
        unit=Unit.PAGES,
        since="2.6.32",
        meaning="pages that were looked at, did not change and have no twin",
    ),
    Counter(
        name="pages_volatile",
        unit=Unit.PAGES,
        since="2.6.32",
        meaning="pages that changed between two looks, or were not looked at twice yet",
    ),
    Counter(
        name="full_scans",
        unit=Unit.PASSES,
        since="2.6.32",
        meaning="passes over all registered memory",
        note="Set to 0 by run=2.",
        monotone=True,
    ),
    Counter(
        name="pages_scanned",
        unit=Unit.PAGES,
        since="6.6",
        meaning="pages looked at since the start",
        monotone=True,
    ),
    Counter(
        name="pages_skipped",
        unit=Unit.PAGES,
        since="6.7",
        meaning="looks that smart_scan has saved since the start",
        monotone=True,
    ),
    Counter(
        name="ksm_zero_pages",
        type=Type.LONG,
        unit=Unit.PAGES,
        since="6.6",
        meaning="pages that were replaced by the zero page (use_zero_pages)",
    ),
    Counter(
        name="general_profit",
        type=Type.LONG,
        unit=Unit.BYTES,
        since="6.4",
        meaning="bytes saved: pages_sharing and ksm_zero_pages, less the metadata",
        note="The kernel counts 64 bytes of metadata a page visited (since 6.6 with zero pages); "
        "the engine its metadata_bytes. Below 0: merging costs more than it saves.",
    ),
    Counter(
        name="stable_node_chains",
        unit=Unit.CONTENTS,
        since="4.13",
        meaning="contents of which max_page_sharing needs more than one page kept",
    ),
    Counter(
        name="stable_node_dups",
        unit=Unit.PAGES,
        since="4.13",
        meaning="pages kept in those chains",
    ),
    Counter(
        name="rmap_items",
        unit=Unit.PAGES,
        since=None,
        meaning="pages that ksmd keeps a record of",
    ),
    Counter(
        name="pool_bytes",
        unit=Unit.BYTES,
        since=None,
        meaning="memory of the pool's segments in use: the pages kept, and dead ones among them",
    ),
    Counter(
        name="pool_retired_bytes",
        unit=Unit.BYTES,
        since=None,
        meaning="memory of segments that are being emptied, beside pool_bytes",
    ),
    Counter(
        name="metadata_bytes",
        unit=Unit.BYTES,
        since=None,
        meaning="memory of the daemon's records of pages",
    ),
    Counter(
        name="merges_left_for_vmas",
        unit=Unit.PAGES,
        since=None,
        meaning="equal pages that are not merged because a process would have more mappings "
        "than vm.max_map_count allows",
    ),
    Counter(
        name="breaks",
        unit=Unit.PAGES,
        since=None,
        meaning="merged pages that were found private again: written to, or unmerged",
        monotone=True,
    ),
    Counter(
        name="bytes_read",
        unit=Unit.BYTES,
        since=None,
        meaning="memory of processes that was read",
        monotone=True,
    ),
    Counter(
        name="merge_requests",
        unit=Unit.TIMES,
        since=None,
        meaning="requests to merge that were sent to agents",
        monotone=True,
    ),
    Counter(
        name="segments",
        unit=Unit.TIMES,
        since=None,
        meaning="segments of the pool",
        is_detail=True,
    ),
    Counter(
        name="segments_retired",
        unit=Unit.TIMES,
        since=None,
        meaning="segments whose pages were given up, to be emptied",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="segments_dropped",
        unit=Unit.TIMES,
        since=None,
        meaning="segments given back to the kernel",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="vmas",
        unit=Unit.TIMES,
        since=None,
        meaning="mappings of the processes that are registered",
        is_detail=True,
    ),
    Counter(
        name="pages_pending",
        unit=Unit.PAGES,
        since=None,
        meaning="pages that agents have been asked, or are to be asked, to merge",
        is_detail=True,
    ),
    Counter(
        name="unmerge_requests",
        unit=Unit.TIMES,
        since=None,
        meaning="requests to unmerge that were sent to agents",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="merge_failures_differs",
        unit=Unit.PAGES,
        since=None,
        meaning="pages that an agent did not merge: they were not equal to the pool's",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="merge_failures_written",
        unit=Unit.PAGES,
        since=None,
        meaning="pages that an agent did not merge: they were written to meanwhile",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="merge_failures_gone",
        unit=Unit.PAGES,
        since=None,
        meaning="pages that an agent did not merge: their mapping had gone or changed",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="merge_failures_vmas",
        unit=Unit.PAGES,
        since=None,
        meaning="pages that an agent did not merge: the process had too many mappings",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="merge_failures_barrier",
        unit=Unit.PAGES,
        since=None,
        meaning="pages that an agent did not merge: writers could not be kept out in time",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="merge_failures_stack",
        unit=Unit.PAGES,
        since=None,
        meaning="pages that an agent did not merge: a stopped thread's stack was among them",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="merge_failures_system",
        unit=Unit.PAGES,
        since=None,
        meaning="pages that an agent did not merge: a system call failed",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="gap_pages",
        unit=Unit.PAGES,
        since=None,
        meaning="pages copied to keep one mapping where there would be three",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="thp_splits",
        unit=Unit.TIMES,
        since=None,
        meaning="huge pages that were split to merge a part of them",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="bytes_hashed",
        unit=Unit.BYTES,
        since=None,
        meaning="memory of processes that was hashed",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="read_errors",
        unit=Unit.TIMES,
        since=None,
        meaning="reads of a process's memory that failed",
        monotone=True,
        is_detail=True,
    ),
    Counter(
        name="write_errors",
        unit=Unit.TIMES,
        since=None,
        meaning="times that the pool could not be written or made larger, for want of memory",
        monotone=True,
        is_detail=True,
    ),
)

PROCESS_ITEMS: Final = (
    ProcessItem(
        name="ksm_rmap_items",
        type=Type.ULONG,
        unit=Unit.PAGES,
        since="6.1",
        meaning="pages of the process that ksmd keeps a record of",
    ),
    ProcessItem(
        name="ksm_zero_pages",
        type=Type.LONG,
        unit=Unit.PAGES,
        since="6.6",
        meaning="pages of the process that were replaced by the zero page",
    ),
    ProcessItem(
        name="ksm_merging_pages",
        type=Type.ULONG,
        unit=Unit.PAGES,
        since="5.19",
        meaning="pages of the process that are merged, zero pages apart",
        note="Also the file /proc/PID/ksm_merging_pages; in ksm_stat since 6.4.",
    ),
    ProcessItem(
        name="ksm_process_profit",
        type=Type.LONG,
        unit=Unit.BYTES,
        since="6.4",
        meaning="bytes that the process saves, less the metadata",
        note="Counts every merged mapping, so that the sum over processes is more than "
        "general_profit, which leaves out one for each page kept.",
    ),
    ProcessItem(
        name="ksm_merge_any",
        type=Type.BOOL,
        since="6.14",
        meaning="whether the whole process was asked for, by prctl(PR_SET_MEMORY_MERGE)",
    ),
    ProcessItem(
        name="ksm_mergeable",
        type=Type.BOOL,
        since="6.14",
        meaning="whether any of its regions may be merged",
    ),
)


def _fields(text: str) -> tuple[EventField, ...]:
    """Read `type name; type name`."""
    pairs = (part.strip().rsplit(" ", 1) for part in text.split(";"))
    return tuple(EventField(name, type_) for type_, name in pairs)


EVENTS: Final = (
    EventKind(
        name="ksm_start_scan",
        since="6.4",
        fields=_fields("int seq; u32 rmap_entries"),
        meaning="a pass begins; seq is full_scans before it",
    ),
    EventKind(
        name="ksm_stop_scan",
        since="6.4",
        fields=_fields("int seq; u32 rmap_entries"),
        meaning="a pass has ended; rmap_entries are the pages that ksmd keeps a record of",
    ),
    EventKind(
        name="ksm_enter",
        since="6.4",
        fields=_fields("void* mm"),
        meaning="a process is registered",
        note="Comes from the process itself; of a fork, from the parent.",
    ),
    EventKind(
        name="ksm_exit",
        since="6.4",
        fields=_fields("void* mm"),
        meaning="a registered process ends",
    ),
    EventKind(
        name="ksm_merge_one_page",
        since="6.4",
        fields=_fields("unsigned long pfn; void* rmap_item; void* mm; int err"),
        meaning="a page was to be replaced by the zero page",
    ),
    EventKind(
        name="ksm_merge_with_ksm_page",
        since="6.4",
        fields=_fields("void* ksm_page; unsigned long pfn; void* rmap_item; void* mm; int err"),
        meaning="a page was to be merged; ksm_page 0: it is the first of its content",
    ),
    EventKind(
        name="ksm_remove_ksm_page",
        since="6.4",
        fields=_fields("unsigned long pfn"),
        meaning="a page kept has lost its last user",
    ),
    EventKind(
        name="ksm_remove_rmap_item",
        since="6.4",
        fields=_fields("unsigned long pfn; void* rmap_item; void* mm"),
        meaning="a user of a page kept that is being given up",
        note="Not for a write, an exit or an munmap of one of several users.",
    ),
    EventKind(
        name="ksm_advisor",
        since="6.8",
        fields=_fields("s64 scan_time; unsigned long pages_to_scan; unsigned int cpu_percent"),
        meaning="the advisor has set pages_to_scan after a pass of scan_time seconds",
    ),
)

_KNOBS_BY_NAME: Final = {knob.name: knob for knob in KNOBS}


def find_knob(name: str) -> Knob | None:
    """Find a knob by its name; None where there is none of that name."""
    return _KNOBS_BY_NAME.get(name)
