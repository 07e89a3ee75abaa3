"""Causes that lie with a process, as the kernel's KSM sees it."""

from __future__ import annotations

from typing import Final

from pagemerge.ksm.doctor import (
    LITTLE_BYTES,
    Evidence,
    Facts,
    Finding,
    ProcessCheck,
    ProcessFacts,
    Severity,
    finding_of,
    in_huge_pages,
    little_marked,
    never_mergeable,
    not_touched,
    not_visited,
    process_costs_more,
    swapped,
)
from pagemerge.units import PAGE_SIZE, render_bytes

__all__ = ["PROCESS_CHECKS"]

PROBLEM, WARNING, NOTE = Severity


def engine_merges(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """It has the engine's agent: what it asks for goes there."""
    if not process.has_agent:
        return None
    return finding_of(
        process,
        "engine_merges",
        NOTE,
        f"{process.label} has the engine's agent: what it marks as mergeable is merged by the "
        "engine, and the kernel is not told of it.",
        Evidence("libpagemerge-agent.so mapped", "yes", process.file("maps")),
        cure=(f"pagemerge doctor {process.pid} --ksm engine",),
    )


def no_memory(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """A kernel thread or a zombie."""
    if not process.has_smaps or process.ksm is not None:
        return None
    if process.marked_regions or process.able_anonymous or process.unable:
        return None
    return finding_of(
        process,
        "no_memory",
        PROBLEM,
        f"{process.label} has no memory of its own: it is a kernel thread or has ended.",
        Evidence("mappings", 0, process.file("smaps")),
    )


def not_mergeable(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """Nothing of it was asked to be merged, or only what never can be."""
    if not process.has_smaps or process.marked_regions:
        return None
    if not process.able_anonymous and not process.unable:
        return None
    return finding_of(
        process,
        "not_mergeable",
        PROBLEM,
        f"No region of {process.label} is marked mergeable. Where the program has called "
        "madvise(MADV_MERGEABLE): it returns 0 without effect on shared memory, huge pages of "
        f"hugetlbfs and devices. {render_bytes(process.able_anonymous)} of it could be marked.",
        Evidence("regions with mg in VmFlags", 0, process.file("smaps")),
        cure=(f"pagemerge enable {process.pid}",) if process.able_anonymous else (),
    )


def file_backed(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """What is marked are pages of files."""
    if process.marked_file < LITTLE_BYTES or process.marked_file < process.marked_anonymous:
        return None
    return finding_of(
        process,
        "file_backed",
        NOTE,
        f"{render_bytes(process.marked_file)} of what {process.label} has marked are pages of "
        "files that nobody has written to. KSM leaves them alone; the page cache has one copy "
        "for all anyway.",
        Evidence("Rss - Anonymous, bytes", process.marked_file, process.file("smaps")),
    )


def pinned(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """Pages that a device may write to are left alone."""
    if not process.pinned:
        return None
    return finding_of(
        process,
        "pinned",
        WARNING if process.pinned * 2 > process.marked_anonymous else NOTE,
        f"{render_bytes(process.pinned)} of {process.label} are pinned for a device or for "
        "io_uring; pinned pages are never merged.",
        Evidence("VmPin, bytes", process.pinned, process.file("status")),
    )


def fork_shared(_facts: Facts, process: ProcessFacts) -> Finding | None:
    """What fork left shared is one page already."""
    if process.marked_ksm is None:
        return None
    shared = process.marked_shared_dirty - process.marked_ksm
    if shared < LITTLE_BYTES or shared * 2 < process.marked_anonymous:
        return None
    return finding_of(
        process,
        "fork_shared",
        NOTE,
        f"{render_bytes(shared)} of {process.label} are shared with its parent or children since "
        "fork: one physical page each, so that there is nothing to save. They count as volatile.",
        Evidence("Shared_Dirty - KSM, bytes", shared, process.file("smaps")),
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


PROCESS_CHECKS: Final[tuple[ProcessCheck, ...]] = (
    engine_merges,
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
