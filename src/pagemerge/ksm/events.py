"""The trace events (the kernel's group `ksm`)."""

from __future__ import annotations

from typing import Final

from pagemerge.ksm.items import EventField, EventKind

__all__ = ["EVENTS"]


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
