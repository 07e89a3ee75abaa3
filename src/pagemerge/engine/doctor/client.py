"""Causes that lie with a process, as the engine sees it: its agent, and what that says. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Final

from pagemerge.engine.doctor.facts import ClientFacts, EngineFacts
from pagemerge.ksm.doctor import Evidence, Finding, Severity, finding_of
from pagemerge.units import PAGE_SIZE, render_bytes

__all__ = ["CLIENT_CHECKS", "REFUSALS", "ClientCheck"]

PROBLEM, WARNING, NOTE = Severity

ClientCheck = Callable[[EngineFacts, ClientFacts], Finding | None]

# What agents say (native/agent/refusal.c), and what it means.
REFUSALS: Final = {
    "io_uring": "it uses io_uring, whose buffers the kernel writes to from outside of the process",
    "aio": "it uses asynchronous I/O (io_setup), whose buffers the kernel writes to from outside",
    "userfaultfd": "it uses userfaultfd itself, and counts on the mappings it has registered",
    "mlockall": "it has locked all its memory, which is to stay where it is until munlockall",
    "clone-vm": "another process runs in its memory (clone with CLONE_VM), and can't be stopped",
    "process_vm": "it writes to other processes by process_vm_writev, as they may to it, unseen",
    "xdp": "a network device writes to memory that it has registered with a socket of AF_XDP",
    "pinned": "the kernel counts pages of it as pinned (VmPin in /proc/PID/status)",
    "vfio": "a device writes to its pinned memory (vfio)",
    "vhost": "the kernel writes to its memory for a guest's devices (vhost)",
    "rdma": "a device writes to its pinned memory (rdma)",
    "gpu": "a device writes to its pinned memory (a GPU)",
    "v4l2": "a device writes to its memory (v4l2)",
    "accelerator": "a device writes to its pinned memory (an accelerator)",
}


def other_user(_facts: EngineFacts, process: ClientFacts) -> Finding | None:
    """The engine merges nothing across users."""
    if process.is_client or not process.is_foreign:
        return None
    return finding_of(
        process,
        "other_user",
        PROBLEM,
        f"{process.label} belongs to {process.user or 'another user'}. A daemon merges the memory "
        "of its own user's processes only, so that nobody can find out what another has.",
        Evidence("user", process.user, f"/proc/{process.pid}"),
        cure=(f"pagemerge enable {process.pid} --ksm kernel",),
    )


def other_daemon(facts: EngineFacts, process: ClientFacts) -> Finding | None:
    """Its environment leads it to another daemon."""
    if process.is_client or process.elsewhere is None:
        return None
    return finding_of(
        process,
        "other_daemon",
        PROBLEM,
        f"{process.label} speaks to another daemon than this one: that of {process.elsewhere}.",
        Evidence("folder in its environment", process.elsewhere, process.file("environ")),
        Evidence("folder looked at", _folder(facts), "PAGEMERGE_RUNTIME_DIR"),
        cure=(
            f"export PAGEMERGE_RUNTIME_DIR={shlex.quote(process.elsewhere)}",
            facts.machine.command(f"doctor {process.pid}"),
        ),
    )


def no_agent(_facts: EngineFacts, process: ClientFacts) -> Finding | None:
    """The agent is not in it, and can't be brought into a running process."""
    if process.is_client or process.is_foreign or process.has_agent is not False:
        return None
    why = f"{process.obstacle}, so that the agent can't be preloaded" if process.obstacle else None
    return finding_of(
        process,
        "no_agent",
        PROBLEM,
        f"The agent is not in {process.label}: "
        + (why or "it was not started by 'pagemerge run', and does not import pagemerge")
        + ". It can't be brought into a program that runs already; the kernel's KSM can be.",
        Evidence("libpagemerge-agent.so mapped", "no", process.file("maps")),
        cure=(
            *(() if why else ("pagemerge run --ksm engine -- COMMAND",)),
            f"pagemerge enable {process.pid} --ksm kernel",
        ),
    )


def not_asked(facts: EngineFacts, process: ClientFacts) -> Finding | None:
    """The agent is there and has not come to the daemon: nothing was asked for."""
    if process.is_client or not process.has_agent or process.elsewhere or facts.machine.trouble:
        return None
    return finding_of(
        process,
        "not_asked",
        PROBLEM,
        f"{process.label} has the agent, and has asked for nothing to be merged yet: the agent "
        "comes to the daemon when the program first marks memory. If it has, the daemon's log "
        "says why it was turned away.",
        Evidence("known to the daemon", "no", f"{facts.machine.place}processes"),
        cure=("pagemerge run --ksm engine --all -- COMMAND",),
    )


def refused(_facts: EngineFacts, process: ClientFacts) -> Finding | None:
    """Its agent merges nothing, since its pages may be written to unseen."""
    if not process.refused:
        return None
    why = REFUSALS.get(process.refused, "its agent can't rule out writers that it does not see")
    return finding_of(
        process,
        "refused",
        PROBLEM,
        f"Nothing is merged in {process.label} as long as it is so: {why}. The kernel's KSM "
        "leaves out only the pages in use.",
        Evidence("refused", process.refused, process.row),
        cure=(f"pagemerge enable {process.pid} --ksm kernel",),
    )


def agent_gone(_facts: EngineFacts, process: ClientFacts) -> Finding | None:
    """Its agent has hung up, or owes an answer."""
    if not process.is_client or (process.is_connected and not process.is_silent):
        return None
    what = (
        "has not answered for 10 seconds and more: the process is stopped, or starved of CPU time"
        if process.is_connected
        else "has closed its connection. What is merged stays merged"
    )
    return finding_of(
        process,
        "agent_gone",
        WARNING if process.is_connected else PROBLEM,
        f"The agent of {process.label} {what}; passes go on without it.",
        Evidence("connected", "yes" if process.is_connected else "no", process.row),
        Evidence("silent", "yes" if process.is_silent else "no", process.row),
    )


def not_mergeable(facts: EngineFacts, process: ClientFacts) -> Finding | None:
    """Nothing of it was asked to be merged, or only what never can be."""
    if not process.is_connected or process.refused or process.has_asked:
        return None
    return finding_of(
        process,
        "not_mergeable",
        PROBLEM,
        f"No memory of {process.label} is marked. Calls of the C library are seen, bare system "
        "calls are not; shared, executable, locked and unreadable memory is left out. "
        f"{render_bytes(process.able_anonymous)} of it could be marked.",
        Evidence("regions", process.regions, process.row),
        cure=(facts.machine.command(f"enable {process.pid}"),) if process.able_anonymous else (),
    )


def nothing_equal(facts: EngineFacts, process: ClientFacts) -> Finding | None:
    """Its pages are stable and have no twin among this daemon's processes."""
    pages = (process.ksm.ksm_rmap_items if process.ksm else None) or 0
    if pages < 64 or facts.machine.count("full_scans") < 3 or process.unshared * 5 < pages * 4:
        return None
    if process.merged_pages * 50 > pages:
        return None
    return finding_of(
        process,
        "nothing_equal",
        PROBLEM,
        f"Of {pages} pages of {process.label} {process.merged_pages} have an equal one among the "
        "processes of this daemon and domain. Data that begins at another offset within its page, "
        "and pages with pointers, counts or times in them, are not equal.",
        Evidence("ksm_rmap_items", pages, process.row),
        Evidence("pages_unshared", process.unshared, process.row),
        cure=(f"pagemerge estimate {process.pid}",),
    )


def rewritten(facts: EngineFacts, process: ClientFacts) -> Finding | None:
    """Its pages change between two looks."""
    pages = (process.ksm.ksm_rmap_items if process.ksm else None) or 0
    if pages < 64 or facts.machine.count("full_scans") < 3 or process.volatile * 2 < pages:
        return None
    return finding_of(
        process,
        "rewritten",
        WARNING,
        f"{process.volatile / pages:.0%} of the pages of {process.label} have changed since the "
        "look before, or are new. A page that changes between two looks is not merged.",
        Evidence("pages_volatile", process.volatile, process.row),
        Evidence("ksm_rmap_items", pages, process.row),
        cure=(f"pagemerge estimate {process.pid} --settle 10s", f"pagemerge advise {process.pid}"),
    )


def not_tracked(_facts: EngineFacts, process: ClientFacts) -> Finding | None:
    """The kernel does not tell what was written to, so that all is read again and again."""
    if not process.regions or process.tracked or not process.is_connected or process.refused:
        return None
    size = process.marked_anonymous // PAGE_SIZE
    return finding_of(
        process,
        "not_tracked",
        NOTE,
        f"What {process.label} writes to is not told by the kernel (userfaultfd is forbidden, "
        "often by a container's seccomp profile, or older than Linux 6.7): each pass reads its "
        f"{size} pages again, as the kernel's ksmd does.",
        Evidence("regions_tracked", process.tracked, process.row),
        Evidence("regions", process.regions, process.row),
    )


CLIENT_CHECKS: Final[tuple[ClientCheck, ...]] = (
    other_user,
    other_daemon,
    no_agent,
    not_asked,
    refused,
    agent_gone,
    not_mergeable,
    nothing_equal,
    rewritten,
    not_tracked,
)


def _folder(facts: EngineFacts) -> str:
    return facts.machine.place.rpartition("/")[0]
