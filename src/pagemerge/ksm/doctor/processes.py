"""Causes that lie with a process, whoever merges: what of its memory is there, and fit. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pagemerge.ksm.doctor.facts import Facts, ProcessFacts
from pagemerge.ksm.doctor.finding import Evidence, Finding, Severity
from pagemerge.units import PAGE_SIZE, render_bytes

__all__ = [
    "LITTLE_BYTES",
    "ProcessCheck",
    "finding_of",
    "in_huge_pages",
    "little_marked",
    "never_mergeable",
    "not_touched",
    "not_visited",
    "process_costs_more",
    "swapped",
]

PROBLEM, WARNING, NOTE = Severity
LITTLE_BYTES: Final = 1 << 20  # below it, memory that does not merge is not worth a word

ProcessCheck = Callable[[Facts, ProcessFacts], Finding | None]


def little_marked(facts: Facts, process: ProcessFacts) -> Finding | None:
    """The bulk of its memory is not marked."""
    able = process.able_anonymous
    if not process.marked_regions or able < LITTLE_BYTES or able < 4 * process.marked_anonymous:
        return None
    return finding_of(
        process,
        "little_marked",
        NOTE,
        f"{process.label} has marked {render_bytes(process.marked_anonymous)}; "
        f"{render_bytes(able)} more could be marked.",
        Evidence("unmarked anonymous bytes", able, process.file("smaps")),
        cure=(f"pagemerge estimate {process.pid}", facts.machine.command(f"enable {process.pid}")),
    )


def never_mergeable(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """Most of its memory is shared, of hugetlbfs, or a device's."""
    total = sum(process.unable.values())
    own = process.marked_anonymous + process.able_anonymous
    if total < LITTLE_BYTES or total < own:
        return None
    why, most = max(process.unable.items(), key=lambda item: item[1])
    return finding_of(
        process,
        "never_mergeable",
        WARNING,
        f"Most of the memory of {process.label} can never be merged, whatever is asked: "
        f"{render_bytes(most)} are {why}. KSM merges private anonymous memory only.",
        *(
            Evidence(f"{why}, bytes", amount, process.file("smaps"))
            for why, amount in process.unable.items()
            if amount
        ),
    )


def not_touched(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """Memory that was never written to is no memory yet."""
    there = process.marked_anonymous + process.marked_file + process.marked_swap
    size = process.marked_size
    if not size or process.merged_pages or there * 10 > size:
        return None
    return finding_of(
        process,
        "not_touched",
        WARNING,
        f"{process.label} has marked {render_bytes(size)}, of which only "
        f"{render_bytes(there)} are there: memory that was not written to yet (reading leads to "
        "the zero page) has no pages to merge.",
        Evidence("marked bytes", size, process.file("smaps")),
        Evidence("Anonymous, bytes", process.marked_anonymous, process.file("smaps")),
    )


def not_visited(facts: Facts, process: ProcessFacts) -> Finding | None:
    """Ksmd has not come to it yet."""
    pages = process.marked_anonymous // PAGE_SIZE
    if process.ksm is None or process.ksm.ksm_rmap_items is None:
        return None
    seen = process.ksm.ksm_rmap_items + (process.ksm.ksm_zero_pages or 0)
    if pages < 2 or seen * 2 > pages:
        return None
    return finding_of(
        process,
        "not_visited",
        WARNING,
        f"ksmd has seen {seen} of the {pages} pages of {process.label} that it could look at: "
        "it has not come there yet, or it does not run.",
        Evidence("ksm_rmap_items", process.ksm.ksm_rmap_items, process.stat_file),
        Evidence("Anonymous, bytes", process.marked_anonymous, process.file("smaps")),
        cure=(facts.machine.command("status"),),
    )


def in_huge_pages(facts: Facts, process: ProcessFacts) -> Finding | None:
    """Merging splits huge pages; khugepaged may make them whole again."""
    huge = process.marked_huge
    if not huge:
        return None
    machine = facts.machine
    undone = (
        f" khugepaged may copy merged pages back into a huge one where at most {most} of its "
        "pages are shared."
        if (most := machine.max_ptes_shared)
        else ""
    )
    return finding_of(
        process,
        "in_huge_pages",
        NOTE,
        f"{render_bytes(huge)} of the marked memory of {process.label} lie in transparent huge "
        "pages. ksmd splits one as soon as a page in it has a twin, which saves memory and may "
        f"cost speed.{undone}",
        Evidence("AnonHugePages, bytes", huge, process.file("smaps")),
        Evidence("enabled", machine.thp, "/sys/kernel/mm/transparent_hugepage/enabled"),
        cure=(f"pagemerge estimate {process.pid}",),
    )


def swapped(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """What is in swap is not looked at."""
    swap = process.marked_swap
    if not swap or swap * 10 < process.marked_anonymous:
        return None
    return finding_of(
        process,
        "swapped",
        WARNING,
        f"{render_bytes(swap)} of the marked memory of {process.label} are in swap, where ksmd "
        "does not look. Merged pages come back from there as copies and merge anew.",
        Evidence("Swap, bytes", swap, process.file("smaps")),
    )


def process_costs_more(facts: Facts, process: ProcessFacts) -> Finding | None:
    """Its records take more than merging saves."""
    profit = process.ksm.ksm_process_profit if process.ksm else None
    if profit is None or profit >= 0 or facts.machine.count("full_scans") < 3:
        return None
    return finding_of(
        process,
        "process_costs_more",
        NOTE if -profit < LITTLE_BYTES else WARNING,
        f"Merging takes {render_bytes(-profit)} more than it saves in {process.label}.",
        Evidence("ksm_process_profit", profit, process.stat_file),
        cure=(facts.machine.command(f"disable {process.pid}"),),
    )


def finding_of(
    process: ProcessFacts,
    name: str,
    severity: Severity,
    cause: str,
    *evidence: Evidence,
    cure: tuple[str, ...] = (),
) -> Finding:
    """Make a finding about a process."""
    return Finding(name, severity, cause, evidence, cure, process.pid)
