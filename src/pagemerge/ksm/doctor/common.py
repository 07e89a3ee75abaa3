"""Causes that lie with the knobs and the machine's memory, whoever merges. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pagemerge.ksm.doctor.facts import Facts, Machine
from pagemerge.ksm.doctor.finding import Evidence, Finding, Severity
from pagemerge.ksm.worth import estimate_pass_seconds, estimate_spare_bytes
from pagemerge.units import PAGE_SIZE, render_bytes, render_count, render_duration

__all__ = ["COMMON_CHECKS", "Check", "breakage_bytes", "evidence_of"]

PROBLEM, WARNING, NOTE = Severity
LONG_SLEEP_MS: Final = 10_000
LONG_PASS_SECONDS: Final = 600.0
BUSY_CPU_RATIO: Final = 0.5
PASSES_PER_SECOND: Final = 12.0  # more is no use to anybody: nothing merges before the second
VAIN_CPU_RATIO: Final = 0.1
SHORTEST_LOOK_SECONDS: Final = 0.05  # below it rates say nothing
SETTLED_SLEEP_MS: Final = 1000

Check = Callable[[Facts], Finding | None]


def breakage_bytes(machine: Machine) -> int:
    """Say how much memory it takes when every merged page is written to."""
    return (machine.count("pages_sharing") + machine.count("ksm_zero_pages")) * PAGE_SIZE


def not_running(facts: Facts) -> Finding | None:
    """run=0: ksmd stands still."""
    if facts.machine.knob("run") != 0:
        return None
    return Finding(
        "not_running",
        PROBLEM,
        "Merging is switched off: ksmd looks at nothing. What was merged before stays merged.",
        evidence_of(facts, "run"),
        (facts.machine.command("run-state on"),),
    )


def unmerged(facts: Facts) -> Finding | None:
    """run=2: everything was unmerged and ksmd stands still."""
    if facts.machine.knob("run") != 2:
        return None
    return Finding(
        "unmerged",
        PROBLEM,
        "Merging is switched off and everything was unmerged (run=2). "
        "It stays so until run is 1 again.",
        evidence_of(facts, "run"),
        (facts.machine.command("run-state on"),),
    )


def scans_nothing(facts: Facts) -> Finding | None:
    """pages_to_scan=0: ksmd wakes and does nothing."""
    if facts.machine.knob("pages_to_scan") != 0:
        return None
    return Finding(
        "scans_nothing",
        PROBLEM,
        "ksmd is told to look at 0 pages each time it wakes.",
        evidence_of(facts, "pages_to_scan"),
        (facts.machine.command("set pages_to_scan=1000"),),
    )


def long_sleep(facts: Facts) -> Finding | None:
    """sleep_millisecs so long that ksmd as good as never wakes."""
    sleep = facts.machine.knob("sleep_millisecs")
    if sleep is None or sleep < LONG_SLEEP_MS:
        return None
    return Finding(
        "long_sleep",
        PROBLEM,
        f"ksmd sleeps {render_duration(sleep / 1000)} between two batches. Switching it off and "
        "on does not wake it; another value of sleep_millisecs does, at once.",
        evidence_of(facts, "sleep_millisecs"),
        (facts.machine.command("set sleep_millisecs=20"),),
    )


def too_few_passes(facts: Facts) -> Finding | None:
    """Nothing merges before the second pass."""
    machine = facts.machine
    if machine.knob("run") != 1 or machine.count("full_scans") >= 3:
        return None
    if machine.count("pages_sharing") or not (machine.rmap_items or facts.processes):
        return None
    return Finding(
        "too_few_passes",
        WARNING,
        "ksmd has not been over the memory often enough: a page is merged at its second visit at "
        "the earliest, and only if it did not change in between. pages_volatile is high until "
        f"then. {_pass_words(facts)}",
        evidence_of(facts, "full_scans", "pages_volatile", "pages_to_scan", "sleep_millisecs"),
        (facts.machine.command("set pages_to_scan=5000"),),
    )


def slow_pass(facts: Facts) -> Finding | None:
    """A pass takes so long that pages change before they are seen twice."""
    seconds = _pass_seconds(facts)
    if seconds is None or seconds < LONG_PASS_SECONDS or facts.machine.knob("run") != 1:
        return None
    return Finding(
        "slow_pass",
        WARNING,
        f"{_pass_words(facts)} Two are needed to merge a page.",
        evidence_of(facts, "pages_to_scan", "sleep_millisecs", "pages_unshared", "pages_volatile"),
        (
            facts.machine.command("set advisor_mode=scan-time"),
            facts.machine.command("set pages_to_scan=5000"),
        ),
    )


def advisor_drives(facts: Facts) -> Finding | None:
    """advisor_mode=scan-time: pages_to_scan is not the user's."""
    if facts.machine.knobs.get("advisor_mode") != "scan-time":
        return None
    return Finding(
        "advisor_drives",
        NOTE,
        "The advisor sets pages_to_scan after each pass, aiming at advisor_target_scan_time; "
        "writing pages_to_scan is refused (EINVAL) meanwhile. Switching it off sets 100.",
        evidence_of(facts, "advisor_mode", "pages_to_scan", "advisor_target_scan_time"),
        (facts.machine.command("set advisor_mode=none pages_to_scan=1000"),),
    )


def smart_scan_skips(facts: Facts) -> Finding | None:
    """Old pages without a twin are left out of most passes."""
    machine = facts.machine
    skipped, scanned = machine.growth("pages_skipped"), machine.growth("pages_scanned")
    if machine.knob("smart_scan") != 1 or skipped <= scanned:
        return None
    return Finding(
        "smart_scan_skips",
        NOTE,
        f"smart_scan left out {skipped / (skipped + scanned):.0%} of the pages just now: a page "
        "that found no twin is looked at in every ninth pass in the end, and two new twins must "
        "be looked at in the same one. It saves CPU time; what became equal late merges late.",
        (
            *evidence_of(facts, "smart_scan"),
            Evidence("pages_skipped, growth", skipped, f"{machine.place}pages_skipped"),
            Evidence("pages_scanned, growth", scanned, f"{machine.place}pages_scanned"),
        ),
        (facts.machine.command("set smart_scan=0"),),
    )


def nodes_apart(facts: Facts) -> Finding | None:
    """merge_across_nodes=0 on a machine with several nodes."""
    if facts.machine.knob("merge_across_nodes") != 0 or facts.machine.nodes < 2:
        return None
    return Finding(
        "nodes_apart",
        WARNING,
        f"Equal pages on different ones of the {facts.machine.nodes} NUMA nodes are kept apart "
        "(merge_across_nodes=0). It can be changed while nothing is merged.",
        (
            *evidence_of(facts, "merge_across_nodes"),
            Evidence("nodes", facts.machine.nodes, "/sys/devices/system/node/has_memory"),
        ),
        (
            facts.machine.command("set run=2 merge_across_nodes=1"),
            facts.machine.command("run-state on"),
        ),
    )


def sharing_limit(facts: Facts) -> Finding | None:
    """max_page_sharing: contents with more users than that have several copies."""
    machine = facts.machine
    chains, dups = machine.count("stable_node_chains"), machine.count("stable_node_dups")
    extra = max(0, dups - chains)
    saved = machine.count("pages_sharing")
    if extra * 100 <= saved:
        return None
    return Finding(
        "sharing_limit",
        WARNING if extra * 10 > saved else NOTE,
        f"{render_count(chains)} contents have more users than max_page_sharing allows for one "
        f"copy: {render_bytes(extra * PAGE_SIZE)} are spent on further copies. It can be changed "
        "while nothing is merged"
        + (
            "; a higher limit makes unmapping and migrating such pages slower."
            if machine.implementation == "kernel"
            else "."
        ),
        evidence_of(facts, "max_page_sharing", "stable_node_chains", "stable_node_dups"),
        (
            facts.machine.command("set run=2 max_page_sharing=4096"),
            facts.machine.command("run-state on"),
        ),
    )


def zero_pages_apart(facts: Facts) -> Finding | None:
    """use_zero_pages=1: zero pages are counted elsewhere."""
    machine = facts.machine
    zero = machine.count("ksm_zero_pages")
    mostly = any(
        p.ksm and (p.ksm.ksm_zero_pages or 0) > (p.ksm.ksm_merging_pages or 0)
        for p in facts.processes
    )
    if not zero or not (mostly or zero > machine.count("pages_sharing")):
        return None
    return Finding(
        "zero_pages_apart",
        NOTE,
        f"{render_bytes(zero * PAGE_SIZE)} are merged as zero pages. They are in ksm_zero_pages "
        "and the profits, not in pages_shared, pages_sharing, ksm_merging_pages or smaps.",
        evidence_of(facts, "use_zero_pages", "ksm_zero_pages", "pages_sharing"),
    )


def mostly_volatile(facts: Facts) -> Finding | None:
    """Pages change between two visits."""
    machine = facts.machine
    items, volatile = machine.rmap_items, machine.count("pages_volatile")
    if machine.count("full_scans") < 3 or not items or volatile * 2 < items:
        return None
    smart = machine.knob("smart_scan") == 1
    return Finding(
        "mostly_volatile",
        NOTE if smart else WARNING,
        f"{volatile / items:.0%} of the pages are in no tree. Either they changed since ksmd's "
        "last visit (memory that is written to all the time does not merge), or they are shared "
        "since fork, or were swapped in lately" + (", or smart_scan skips them." if smart else "."),
        evidence_of(facts, "pages_volatile", "pages_unshared", "pages_sharing", "full_scans"),
        ("pagemerge estimate PID --settle 10s",),
    )


def contents_differ(facts: Facts) -> Finding | None:
    """Pages are stable and have no twin."""
    machine = facts.machine
    items, unshared = machine.rmap_items, machine.count("pages_unshared")
    if machine.count("full_scans") < 3 or not items or unshared < 0.8 * items:
        return None
    return Finding(
        "contents_differ",
        WARNING,
        f"{unshared / items:.0%} of the pages that ksmd looks at have no equal page anywhere: "
        "their content differs. Data that begins at another offset within its page, and pages "
        "with pointers, counts or times in them, are not equal.",
        evidence_of(facts, "pages_unshared", "pages_sharing", "full_scans"),
        ("pagemerge estimate PID", facts.machine.command("disable PID")),
    )


def ksmd_busy(facts: Facts) -> Finding | None:
    """Ksmd eats a core."""
    machine = facts.machine
    spent, sleep = machine.ksmd_cpu_seconds, machine.knob("sleep_millisecs")
    # the engine naps by itself when there is nothing new
    spins = machine.implementation == "kernel" and machine.knob("run") == 1 and sleep == 0
    ratio = spent / machine.look_seconds if spent and machine.look_seconds else 0.0
    if ratio < BUSY_CPU_RATIO and not (spins and machine.rmap_items):
        return None
    why = (
        "it never sleeps (sleep_millisecs=0) and begins the next pass at once"
        if spins
        else "its batches are long beside its sleeps"
    )
    words = f"ksmd used {ratio:.0%} of a core just now: {why}."
    return Finding(
        "ksmd_busy",
        WARNING,
        words,
        (
            Evidence("CPU ratio", round(ratio, 3), machine.ksmd_place),
            *evidence_of(facts, "sleep_millisecs", "pages_to_scan", "smart_scan"),
        ),
        (
            facts.machine.command("set sleep_millisecs=20"),
            facts.machine.command("set advisor_mode=scan-time"),
        ),
    )


def scans_in_vain(facts: Facts) -> Finding | None:
    """Ksmd goes over the same settled pages again and again."""
    machine = facts.machine
    if machine.look_seconds < SHORTEST_LOOK_SECONDS or not machine.ksmd_cpu_seconds:
        return None
    passes = machine.growth("full_scans") / machine.look_seconds
    ratio = machine.ksmd_cpu_seconds / machine.look_seconds
    if passes < PASSES_PER_SECOND or ratio < VAIN_CPU_RATIO:
        return None
    if any(
        machine.growth(name) > 0 for name in ("pages_shared", "pages_sharing", "ksm_zero_pages")
    ):
        return None
    looked = machine.growth("pages_scanned")
    return Finding(
        "scans_in_vain",
        WARNING,
        f"ksmd went over all memory {render_count(round(passes))} times a second just now, at "
        f"{ratio:.0%} of a core, and merged nothing new: what there is, is settled. A pass every "
        "some seconds finds what changes as well. Let it sleep longer, look at fewer pages at a "
        "time, or have the advisor aim at a time for a pass.",
        (
            Evidence(
                "full_scans, growth", machine.growth("full_scans"), f"{machine.place}full_scans"
            ),
            Evidence("pages_scanned, growth", looked, f"{machine.place}pages_scanned"),
            Evidence(
                "pages_sharing, growth",
                machine.growth("pages_sharing"),
                f"{machine.place}pages_sharing",
            ),
            Evidence("CPU ratio", round(ratio, 3), machine.ksmd_place),
            *evidence_of(facts, "sleep_millisecs", "pages_to_scan"),
        ),
        (
            facts.machine.command(f"set sleep_millisecs={SETTLED_SLEEP_MS}"),
            facts.machine.command("set pages_to_scan=100 sleep_millisecs=20"),
            facts.machine.command("set advisor_mode=scan-time"),
        ),
    )


def costs_more(facts: Facts) -> Finding | None:
    """The records take more than merging saves."""
    profit = facts.machine.count("general_profit")
    if profit >= 0:
        return None
    early = facts.machine.count("full_scans") < 3
    return Finding(
        "costs_more",
        NOTE if early else WARNING,
        f"Merging takes {render_bytes(-profit)} more than it saves, for the records of the pages "
        + (
            "looked at: 64 bytes each. It pays once one page in 64 is merged"
            if facts.machine.implementation == "kernel"
            else "looked at. It pays once some pages in 1,000 are merged"
        )
        + (", which needs some passes." if early else "."),
        evidence_of(facts, "general_profit", "pages_sharing", "pages_unshared", "pages_volatile"),
        () if early else (facts.machine.command("ps"), facts.machine.command("disable PID")),
    )


def breakage(facts: Facts) -> Finding | None:
    """What if it all breaks apart again."""
    machine = facts.machine
    needed, spare = breakage_bytes(machine), estimate_spare_bytes(machine.meminfo)
    if not needed or spare is None or needed * 2 < spare:
        return None
    tight = needed > spare
    return Finding(
        "breakage",
        PROBLEM if tight else WARNING,
        f"If every merged page were written to, the machine would need {render_bytes(needed)}; "
        f"{render_bytes(spare)} are available, free swap included. "
        + (
            "That would end in processes being killed for want of memory, and so would run=2."
            if tight
            else "That is more than half of it."
        ),
        (
            *evidence_of(facts, "pages_sharing", "ksm_zero_pages"),
            Evidence("MemAvailable", machine.meminfo.get("MemAvailable"), "/proc/meminfo"),
            Evidence("SwapFree", machine.meminfo.get("SwapFree"), "/proc/meminfo"),
        ),
        (facts.machine.command("ps"), facts.machine.command("disable PID"), "add swap"),
    )


COMMON_CHECKS: Final[tuple[Check, ...]] = (
    not_running,
    unmerged,
    scans_nothing,
    long_sleep,
    too_few_passes,
    slow_pass,
    advisor_drives,
    smart_scan_skips,
    nodes_apart,
    sharing_limit,
    zero_pages_apart,
    mostly_volatile,
    contents_differ,
    ksmd_busy,
    scans_in_vain,
    costs_more,
    breakage,
)


def evidence_of(facts: Facts, *names: str) -> tuple[Evidence, ...]:
    """Give knobs and counters with their files; those that this kernel lacks are left out."""
    machine = facts.machine
    values = {**machine.knobs, **machine.counters, **machine.later}
    return tuple(
        Evidence(name, values[name], machine.place + name)
        for name in names
        if values.get(name) is not None
    )


def _pass_seconds(facts: Facts) -> float | None:
    machine = facts.machine
    marked = sum(process.marked_anonymous for process in facts.processes) // PAGE_SIZE
    return estimate_pass_seconds(
        max(machine.rmap_items, marked),
        machine.knob("pages_to_scan"),
        machine.knob("sleep_millisecs"),
        machine.scan_ns,
    )


def _pass_words(facts: Facts) -> str:
    seconds = _pass_seconds(facts)
    if seconds is None:
        return "At today's settings a pass never ends."
    return f"At today's settings a pass takes about {render_duration(seconds)}."
