"""Causes that lie with a process: what of its memory is marked, there, and fit to be merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pagemerge.kernel.doctor.facts import Facts, ProcessFacts
from pagemerge.kernel.doctor.finding import Evidence, Finding, Severity
from pagemerge.units import PAGE_SIZE, render_bytes

__all__ = ["PROCESS_CHECKS"]

PROBLEM, WARNING, NOTE = Severity
LITTLE_BYTES: Final = 1 << 20  # below it, memory that does not merge is not worth a word

Check = Callable[[Facts, ProcessFacts], Finding | None]


def no_memory(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """A kernel thread or a zombie."""
    if not process.has_smaps or process.ksm is not None:
        return None
    if process.marked_regions or process.able_anonymous or process.unable:
        return None
    return _finding(
        process,
        "no_memory",
        PROBLEM,
        f"{process.label} has no memory of its own: it is a kernel thread or has ended.",
        Evidence("mappings", 0, _path(process, "smaps")),
    )


def not_mergeable(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """Nothing of it was asked to be merged, or only what never can be."""
    if not process.has_smaps or process.marked_regions:
        return None
    if not process.able_anonymous and not process.unable:
        return None
    return _finding(
        process,
        "not_mergeable",
        PROBLEM,
        f"No region of {process.label} is marked mergeable. Where the program has called "
        "madvise(MADV_MERGEABLE): it returns 0 without effect on shared memory, huge pages of "
        f"hugetlbfs and devices. {render_bytes(process.able_anonymous)} of it could be marked.",
        Evidence("regions with mg in VmFlags", 0, _path(process, "smaps")),
        cure=(f"pagemerge enable {process.pid}",) if process.able_anonymous else (),
    )


def little_marked(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """The bulk of its memory is not marked."""
    able = process.able_anonymous
    if not process.marked_regions or able < LITTLE_BYTES or able < 4 * process.marked_anonymous:
        return None
    return _finding(
        process,
        "little_marked",
        NOTE,
        f"{process.label} has marked {render_bytes(process.marked_anonymous)}; "
        f"{render_bytes(able)} more could be marked.",
        Evidence("unmarked anonymous bytes", able, _path(process, "smaps")),
        cure=(f"pagemerge estimate {process.pid}", f"pagemerge enable {process.pid}"),
    )


def never_mergeable(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """Most of its memory is shared, of hugetlbfs, or a device's."""
    total = sum(process.unable.values())
    own = process.marked_anonymous + process.able_anonymous
    if total < LITTLE_BYTES or total < own:
        return None
    why, most = max(process.unable.items(), key=lambda item: item[1])
    return _finding(
        process,
        "never_mergeable",
        WARNING,
        f"Most of the memory of {process.label} can never be merged, whatever is asked: "
        f"{render_bytes(most)} are {why}. KSM merges private anonymous memory only.",
        *(
            Evidence(f"{why}, bytes", amount, _path(process, "smaps"))
            for why, amount in process.unable.items()
            if amount
        ),
    )


def file_backed(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """What is marked are pages of files."""
    if process.marked_file < LITTLE_BYTES or process.marked_file < process.marked_anonymous:
        return None
    return _finding(
        process,
        "file_backed",
        NOTE,
        f"{render_bytes(process.marked_file)} of what {process.label} has marked are pages of "
        "files that nobody has written to. KSM leaves them alone; the page cache has one copy "
        "for all anyway.",
        Evidence("Rss - Anonymous, bytes", process.marked_file, _path(process, "smaps")),
    )


def not_touched(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """Memory that was never written to is no memory yet."""
    there = process.marked_anonymous + process.marked_file + process.marked_swap
    size = process.marked_size
    if not size or process.merged_pages or there * 10 > size:
        return None
    return _finding(
        process,
        "not_touched",
        WARNING,
        f"{process.label} has marked {render_bytes(size)}, of which only "
        f"{render_bytes(there)} are there: memory that was not written to yet (reading leads to "
        "the zero page) has no pages to merge.",
        Evidence("marked bytes", size, _path(process, "smaps")),
        Evidence("Anonymous, bytes", process.marked_anonymous, _path(process, "smaps")),
    )


def not_visited(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """Ksmd has not come to it yet."""
    pages = process.marked_anonymous // PAGE_SIZE
    if process.ksm is None or process.ksm.ksm_rmap_items is None:
        return None
    seen = process.ksm.ksm_rmap_items + (process.ksm.ksm_zero_pages or 0)
    if pages < 2 or seen * 2 > pages:
        return None
    return _finding(
        process,
        "not_visited",
        WARNING,
        f"ksmd has seen {seen} of the {pages} pages of {process.label} that it could look at: "
        "it has not come there yet, or it does not run.",
        Evidence("ksm_rmap_items", process.ksm.ksm_rmap_items, _path(process, "ksm_stat")),
        Evidence("Anonymous, bytes", process.marked_anonymous, _path(process, "smaps")),
        cure=("pagemerge status --ksm kernel",),
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
    return _finding(
        process,
        "in_huge_pages",
        NOTE,
        f"{render_bytes(huge)} of the marked memory of {process.label} lie in transparent huge "
        "pages. ksmd splits one as soon as a page in it has a twin, which saves memory and may "
        f"cost speed.{undone}",
        Evidence("AnonHugePages, bytes", huge, _path(process, "smaps")),
        Evidence("enabled", machine.thp, "/sys/kernel/mm/transparent_hugepage/enabled"),
        cure=(f"pagemerge estimate {process.pid}",),
    )


def swapped(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """What is in swap is not looked at."""
    swap = process.marked_swap
    if not swap or swap * 10 < process.marked_anonymous:
        return None
    return _finding(
        process,
        "swapped",
        WARNING,
        f"{render_bytes(swap)} of the marked memory of {process.label} are in swap, where ksmd "
        "does not look. Merged pages come back from there as copies and merge anew.",
        Evidence("Swap, bytes", swap, _path(process, "smaps")),
    )


def pinned(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """Pages that a device may write to are left alone."""
    if not process.pinned:
        return None
    return _finding(
        process,
        "pinned",
        WARNING if process.pinned * 2 > process.marked_anonymous else NOTE,
        f"{render_bytes(process.pinned)} of {process.label} are pinned for a device or for "
        "io_uring; pinned pages are never merged.",
        Evidence("VmPin, bytes", process.pinned, _path(process, "status")),
    )


def fork_shared(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """What fork left shared is one page already."""
    if process.marked_ksm is None:
        return None
    shared = process.marked_shared_dirty - process.marked_ksm
    if shared < LITTLE_BYTES or shared * 2 < process.marked_anonymous:
        return None
    return _finding(
        process,
        "fork_shared",
        NOTE,
        f"{render_bytes(shared)} of {process.label} are shared with its parent or children since "
        "fork: one physical page each, so that there is nothing to save. They count as volatile.",
        Evidence("Shared_Dirty - KSM, bytes", shared, _path(process, "smaps")),
    )


def process_costs_more(facts: Facts, process: ProcessFacts) -> Finding | None:
    """Its records take more than merging saves."""
    profit = process.ksm.ksm_process_profit if process.ksm else None
    if profit is None or profit >= 0 or facts.machine.count("full_scans") < 3:
        return None
    return _finding(
        process,
        "process_costs_more",
        NOTE if -profit < LITTLE_BYTES else WARNING,
        f"Merging takes {render_bytes(-profit)} more than it saves in {process.label}.",
        Evidence("ksm_process_profit", profit, _path(process, "ksm_stat")),
        cure=(f"pagemerge disable {process.pid}",),
    )


def nothing_equal(facts: Facts, process: ProcessFacts) -> Finding | None:
    """Its content was read, and there are no equal pages. Told once, for all that were named."""
    contents = facts.contents
    if contents is None or process is not facts.processes[0] or not contents.present:
        return None
    alike = contents.merging + contents.zero + contents.already
    if alike * 50 > contents.present:
        return None
    names = ", ".join(other.label for other in facts.processes[:5])
    return Finding(
        "nothing_equal",
        PROBLEM,
        f"The marked memory of {names} was read: of {contents.present} pages {alike} have an equal "
        "one among these processes. There is nothing to merge.",
        (
            Evidence("pages read", contents.present, "/proc/PID/mem"),
            Evidence("pages with an equal one", alike, "/proc/PID/mem"),
        ),
        (f"pagemerge estimate {' '.join(str(other.pid) for other in facts.processes)}",),
    )


def rewritten(facts: Facts, process: ProcessFacts) -> Finding | None:
    """It was seen to change while the doctor looked. Told once."""
    contents = facts.contents
    if contents is None or process is not facts.processes[0] or not contents.present:
        return None
    if contents.volatile * 5 < contents.present:
        return None
    return Finding(
        "rewritten",
        WARNING,
        f"{contents.volatile / contents.present:.0%} of the pages changed within "
        f"{contents.look_seconds:g} seconds. A page that changes between two visits of ksmd is "
        "not merged.",
        (Evidence("pages changed", contents.volatile, "/proc/PID/mem"),),
        tuple(f"pagemerge advise {other.pid}" for other in facts.processes[:5]),
    )


def zero_unused(facts: Facts, process: ProcessFacts) -> Finding | None:
    """Much of it is zero, and use_zero_pages is off. Told once."""
    contents = facts.contents
    if contents is None or process is not facts.processes[0]:
        return None
    if facts.machine.knob("use_zero_pages") != 0 or contents.zero * PAGE_SIZE < LITTLE_BYTES:
        return None
    return Finding(
        "zero_unused",
        NOTE,
        f"{render_bytes(contents.zero * PAGE_SIZE)} of the memory are zeros. With use_zero_pages=1 "
        "ksmd maps the kernel's zero page there, which needs no record and has no limit of users; "
        "only what is merged from then on.",
        (Evidence("zero pages", contents.zero, "/proc/PID/mem"),),
        ("pagemerge set --ksm kernel use_zero_pages=1",),
    )


PROCESS_CHECKS: Final[tuple[Check, ...]] = (
    no_memory,
    not_mergeable,
    little_marked,
    never_mergeable,
    file_backed,
    not_touched,
    not_visited,
    in_huge_pages,
    swapped,
    pinned,
    fork_shared,
    process_costs_more,
    nothing_equal,
    rewritten,
    zero_unused,
)


def _finding(
    process: ProcessFacts,
    name: str,
    severity: Severity,
    cause: str,
    *evidence: Evidence,
    cure: tuple[str, ...] = (),
) -> Finding:
    return Finding(name, severity, cause, evidence, cure, process.pid)


def _path(process: ProcessFacts, name: str) -> str:
    return f"/proc/{process.pid}/{name}"
