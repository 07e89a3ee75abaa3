"""Causes that lie with the engine's daemon: whether it is there, its pool, its domains. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pagemerge.engine.doctor.facts import EngineFacts
from pagemerge.ksm.doctor import Evidence, Finding, Severity, evidence_of
from pagemerge.units import PAGE_SIZE, render_bytes, render_count

__all__ = ["DAEMON_CHECKS", "DaemonCheck"]

PROBLEM, WARNING, NOTE = Severity
BREAKS_PER_SECOND: Final = 1000

DaemonCheck = Callable[[EngineFacts], Finding | None]


def no_daemon(facts: EngineFacts) -> Finding | None:
    """Nobody merges: the daemon is not there, or can't be spoken to."""
    trouble = facts.machine.trouble
    if trouble is None:
        return None
    hint = (
        f" {facts.machine.hint[:1].upper()}{facts.machine.hint[1:]}." if facts.machine.hint else ""
    )
    return Finding(
        "no_daemon",
        PROBLEM,
        f"The engine's daemon does not answer: {trouble}.{hint} Each user, and each "
        "PAGEMERGE_RUNTIME_DIR, has one of its own; programs that have the agent wait for it.",
        (Evidence("answers", "no", facts.machine.place.rstrip(": ")),),
        ("pagemerge daemon --detach", "pagemerge run --ksm engine -- COMMAND"),
    )


def nobody_registered(facts: EngineFacts) -> Finding | None:
    """No process has asked for merging."""
    machine = facts.machine
    if facts.were_named or machine.trouble or machine.registered:
        return None
    return Finding(
        "nobody_registered",
        PROBLEM,
        "No process has asked this daemon for merging. Only programs that were started by "
        "'pagemerge run', or import pagemerge, have the agent; they ask by "
        "madvise(MADV_MERGEABLE) or prctl(PR_SET_MEMORY_MERGE), or --all asks for them.",
        (Evidence("registered", machine.registered, f"{machine.place}daemon.registered"),),
        ("pagemerge run --ksm engine --all -- COMMAND",),
    )


def pool_full(facts: EngineFacts) -> Finding | None:
    """What is merged goes into the pool, which can't be written or extended."""
    machine = facts.machine
    if not machine.count("write_errors"):
        return None
    now = machine.growth("write_errors") > 0 or not machine.count("pages_sharing")
    return Finding(
        "pool_full",
        PROBLEM if now else WARNING,
        "The pool, which holds the one copy of what is merged, could not be written or made "
        "larger: the machine's memory, the limit of the daemon's memory cgroup (to which the pool "
        "is charged), of its open files or of its files' size (ulimit -f) is reached. "
        + ("Nothing new is merged until then." if now else "It happened since the daemon started."),
        (
            *evidence_of(facts, "write_errors", "pool_bytes", "pool_retired_bytes"),
            Evidence(
                "write_errors, growth",
                machine.growth("write_errors"),
                f"{machine.place}write_errors",
            ),
            Evidence("MemAvailable", machine.meminfo.get("MemAvailable"), "/proc/meminfo"),
        ),
        ("raise the limit", "pagemerge stop && pagemerge daemon --detach"),
    )


def left_for_vmas(facts: EngineFacts) -> Finding | None:
    """Each run of merged pages takes a mapping, and a process may have only so many."""
    machine = facts.machine
    left, most = machine.count("merges_left_for_vmas"), machine.max_map_count
    if not left:
        return None
    worst = max(facts.processes, key=lambda process: process.left_for_vmas, default=None)
    return Finding(
        "left_for_vmas",
        WARNING,
        f"{render_count(left)} equal pages ({render_bytes(left * PAGE_SIZE)}) are not merged "
        "because a process would have more mappings than the kernel allows: each run of merged "
        "pages takes one. A higher limit takes root; the kernel's KSM needs no mappings.",
        (
            *evidence_of(facts, "merges_left_for_vmas"),
            *((Evidence(f"vmas of {worst.label}", worst.vmas, worst.row),) if worst else ()),
            Evidence("vm.max_map_count", most, "/proc/sys/vm/max_map_count"),
        ),
        (f"sysctl vm.max_map_count={max(1 << 20, 4 * (most or 0))}",),
    )


def domains_apart(facts: EngineFacts) -> Finding | None:
    """Pages are shared only within a domain."""
    named = {process.domain for process in facts.processes if process.is_client}
    if len(named) < 2:
        return None
    words = ", ".join(repr(name) if name else "the unnamed one" for name in sorted(named))
    return Finding(
        "domains_apart",
        NOTE,
        f"These processes are in different domains ({words}): pages are shared only within one.",
        (Evidence("domains", ", ".join(sorted(named)), f"{facts.machine.place}daemon.domains"),),
        ("pagemerge run --ksm engine --domain NAME -- COMMAND",),
    )


def breaks_often(facts: EngineFacts) -> Finding | None:
    """Merged pages are written to all the time."""
    machine = facts.machine
    breaks = machine.growth("breaks")
    if not machine.look_seconds or breaks / machine.look_seconds < BREAKS_PER_SECOND:
        return None
    return Finding(
        "breaks_often",
        WARNING,
        f"{render_count(round(breaks / machine.look_seconds))} merged pages a second are written "
        "to and copied again, and ksmd merges them anew. Leave out the memory that changes.",
        (Evidence("breaks, growth", breaks, f"{machine.place}breaks"),),
        (
            machine.command("regions PID"),
            machine.command("disable PID --region START-END"),
        ),
    )


DAEMON_CHECKS: Final[tuple[DaemonCheck, ...]] = (
    no_daemon,
    nobody_registered,
    pool_full,
    left_for_vmas,
    domains_apart,
    breaks_often,
)
