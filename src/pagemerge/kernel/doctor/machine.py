"""Causes that only the kernel's KSM has: ksmd, the kernel's counters, other users."""

from __future__ import annotations

from typing import Final

from pagemerge.ksm.doctor import (
    COMMON_CHECKS,
    Check,
    Evidence,
    Facts,
    Finding,
    Severity,
    evidence_of,
)
from pagemerge.units import render_count

__all__ = ["MACHINE_CHECKS"]

PROBLEM, WARNING, NOTE = Severity
KSM: Final = "/sys/kernel/mm/ksm/"
BREAKS_PER_SECOND: Final = 1000
_SHARED: Final = ("pages_shared", "pages_sharing")


def no_ksm(facts: Facts) -> Finding | None:
    """The kernel was built without it."""
    if facts.machine.has_ksm:
        return None
    return Finding(
        "no_ksm",
        PROBLEM,
        "This kernel has no KSM (CONFIG_KSM is off, or /sys is not mounted).",
        (Evidence("exists", "no", KSM.rstrip("/")),),
        ("pagemerge run --ksm engine -- COMMAND",),
    )


def counters_frozen(facts: Facts) -> Finding | None:
    """run=0 with something shared: the counters stand still, whatever happens."""
    if facts.machine.knob("run") != 0 or not facts.machine.count("pages_shared"):
        return None
    return Finding(
        "counters_frozen",
        NOTE,
        "While ksmd is stopped the counters stand still: they may tell of pages whose processes "
        "have long ended or written to them. smaps' KSM lines are always true.",
        evidence_of(facts, "run", *_SHARED),
        ("pagemerge regions PID", "pagemerge run-state on --ksm kernel"),
    )


def nobody_registered(facts: Facts) -> Finding | None:
    """No process has asked for merging."""
    asked = [p for p in facts.processes if p.marked_regions or (p.ksm and p.ksm.ksm_merge_any)]
    if not facts.machine.has_ksm or facts.were_named or asked or facts.machine.rmap_items:
        return None
    if facts.unread:
        return None  # there may be some that this user may not see
    return Finding(
        "nobody_registered",
        PROBLEM,
        "No process has asked for merging: switching KSM on merges nothing by itself. Programs "
        "ask by madvise(MADV_MERGEABLE) or prctl(PR_SET_MEMORY_MERGE), or are made to.",
        (Evidence("processes with merging on", 0, "/proc/PID/ksm_stat"),),
        ("pagemerge enable PID", "pagemerge run --ksm kernel -- COMMAND"),
    )


def breaks_often(facts: Facts) -> Finding | None:
    """Merged pages are written to all the time."""
    machine = facts.machine
    breaks = machine.vmstat.get("cow_ksm", 0)
    rate = breaks / machine.look_seconds if machine.look_seconds else 0.0
    if rate < BREAKS_PER_SECOND:
        return None
    return Finding(
        "breaks_often",
        WARNING,
        f"{render_count(round(rate))} merged pages a second are written to and copied again, "
        "some 3 to 5 µs each, and ksmd merges them anew. Leave out the memory that changes.",
        (Evidence("cow_ksm, growth", breaks, "/proc/vmstat"),),
        ("pagemerge regions PID", "pagemerge disable PID --region START-END"),
    )


def swap_copies(facts: Facts) -> Finding | None:
    """Swapping tears merged pages apart."""
    copies = facts.machine.vmstat.get("ksm_swpin_copy", 0)
    if not copies:
        return None
    return Finding(
        "swap_copies",
        WARNING,
        "Merged pages come back from swap as copies, which must be found and merged again.",
        (Evidence("ksm_swpin_copy, growth", copies, "/proc/vmstat"),),
    )


def side_channel(facts: Facts) -> Finding | None:
    """Is it safe: who can learn what from a write that takes longer."""
    users = sorted({p.user for p in facts.processes if p.user and p.merged_pages})
    if len(users) < 2:
        return None
    return Finding(
        "side_channel",
        NOTE,
        "Memory of several users is merged with each other. No content is ever mixed up (pages "
        "are compared byte by byte), but who guesses a page's content can find out by the time "
        "of a write whether another has the same page. Merge only those who may know that.",
        (Evidence("users", ", ".join(users), "/proc/PID/ksm_merging_pages"),),
        ("pagemerge disable PID",),
    )


MACHINE_CHECKS: Final[tuple[Check, ...]] = (
    *COMMON_CHECKS,
    no_ksm,
    counters_frozen,
    nobody_registered,
    breaks_often,
    swap_copies,
    side_channel,
)
