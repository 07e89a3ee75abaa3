"""What merging saves a command while it runs, seen by the kernel (Pss) and by the engine."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final

from pagemerge.engine.footprint import (
    Footprint,
    Lineage,
    read_family,
    read_footprint,
    read_pool_bytes,
    sum_footprints,
)
from pagemerge.engine.launch import Session
from pagemerge.errors import EngineError, NotPermittedError, ProcessGoneError
from pagemerge.ksm import Process
from pagemerge.memory import read_tree
from pagemerge.units import PAGE_SIZE

__all__ = ["Sample", "Savings", "part_of_pool"]

LOOKS_SHARE: Final = 0.02  # of the time, at most, is spent looking
EARLY_SHARE: Final = 0.1  # of the time so far, to the next look, at most
LOOK_SECONDS_MIN: Final = 0.1
LOOK_SECONDS_MAX: Final = 5.0

# Shown as they were when most was saved.
_COUNTERS: Final = (
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_volatile",
    "ksm_zero_pages",
    "general_profit",
    "full_scans",
    "pages_scanned",
    "pages_skipped",
    "stable_node_chains",
    "stable_node_dups",
    "pool_bytes",
    "metadata_bytes",
    "merges_left_for_vmas",
)

_NO_AGENT: Final = (
    "the agent came into none of its processes: statically linked, set-user-ID, "
    "or LD_PRELOAD was dropped"
)
_NOTHING_ASKED: Final = (
    "no process asked for merging, by madvise(MADV_MERGEABLE) or prctl(PR_SET_MEMORY_MERGE); "
    "--all merges all memory"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One look.

    Attributes:
        seconds: since the start.
        counters: of the daemon.
        footprint: of the command's processes, by the kernel.
        pool_bytes: of the pool: all of it, or the command's part where others use the daemon, too.
        daemon_bytes: Pss of the daemon without the pool; None where others use it, too.
        processes: how many the command has.
    """

    seconds: float
    counters: dict[str, int | None]
    footprint: Footprint
    pool_bytes: int
    daemon_bytes: int | None
    processes: int

    @property
    def saved_bytes(self) -> int:
        """Pages saved, less the daemon's records of pages."""
        pages = (self.counters["pages_sharing"] or 0) + (self.counters["ksm_zero_pages"] or 0)
        return pages * PAGE_SIZE - (self.counters["metadata_bytes"] or 0)

    @property
    def rank(self) -> int:
        """Order samples by what is saved, of the kernel's word and the engine's the smaller.

        The counters lag behind processes that end; the kernel shows an agent at work with more
        mappings than it leaves. Zero pages leave no trace and are taken from the counters.
        """
        zero = (self.counters["ksm_zero_pages"] or 0) * PAGE_SIZE
        seen = self.footprint.unmerged_bytes - self.footprint.own_bytes - self.pool_bytes
        return min(seen + zero, self.saved_bytes)

    @property
    def after_bytes(self) -> int:
        """What the command takes: its own, the pool once, and what the daemon costs."""
        return self.footprint.own_bytes + self.pool_bytes + (self.daemon_bytes or 0)


@dataclass(slots=True)
class Savings:
    """Samples of a command, and what they come to.

    What is kept is the sample with the most saved (`best`).

    Attributes:
        everything: whether the command runs with `--all`.
    """

    session: Session
    everything: bool = False
    started: float = field(default_factory=time.monotonic)
    best: Sample | None = None
    samples: int = 0
    notes: list[str] = field(default_factory=list)
    _lineage: Lineage = field(default_factory=Lineage)
    _pss_peak: int = 0
    _most_processes: int = 0
    _most_agents: int = 0
    _agents_cpu: dict[int, float] = field(default_factory=dict)
    _stopped: dict[int, float] = field(default_factory=dict)
    _cpu_at_start: float = 0.0
    _cpu_seconds: float = 0.0
    _left_for_vmas: int = 0

    def begin(self) -> None:
        """Note what the daemon has used before the command starts."""
        self._cpu_at_start = self._cpu_seconds = float(str(self.session.ksm.facts()["cpu_seconds"]))
        self.started = time.monotonic()

    def look(self, pid: int) -> float:
        """Take a sample of a command and its descendants; returns when to look again, seconds."""
        began = time.monotonic()
        try:
            self._take(pid, began)
        except EngineError as error:
            self._note(f"the daemon was lost while the command ran: {error}")
        now = time.monotonic()
        # a short command would be over before the share of the time allows a second look
        early = max(LOOK_SECONDS_MIN, (now - self.started) * EARLY_SHARE)
        wanted = max(LOOK_SECONDS_MIN, (now - began) / LOOKS_SHARE)
        return min(wanted, early, LOOK_SECONDS_MAX)

    def finish(self) -> None:
        """Read what the daemon has used until now, and who of the command's still runs."""
        try:
            self._take_facts(self.session.ksm.facts())
            if self.session.is_own:
                self._take_survivors(self.session.ksm.processes())
        except EngineError as error:
            self._note(f"the daemon was lost while the command ran: {error}")

    def report(self, command: Sequence[str], exit_status: int) -> dict[str, Any]:
        """Sum up: kernel names as of the best sample, and what ends in its unit.

        `pss_after_bytes` is the processes' Pss without the pool, the pool once, and the daemon's
        own; `pss_before_bytes` what it would be if each process had the pages of the pool that
        it maps for itself (docs/reference/run-report.md).
        """
        best = self.best
        counters = best.counters if best else {}
        notes = list(self.notes)
        if not self.samples:
            notes.append("it ended before it could be looked at")
        elif not self._most_agents:
            notes.append(_NO_AGENT if self.everything else _NOTHING_ASKED)
        if not self.session.is_own:
            notes.append("the daemon has other clients, too: its counters and CPU are of them all")
        return {
            "command": list(command),
            "exit_status": exit_status,
            "ksm": self.session.ksm.implementation,
            "duration_seconds": time.monotonic() - self.started,
            **{name: counters.get(name) for name in _COUNTERS},
            "merges_left_for_vmas": self._left_for_vmas,
            "saved_bytes": best.saved_bytes if best else None,
            "saved_at_seconds": best.seconds if best else None,
            "pss_before_bytes": best.footprint.unmerged_bytes if best else None,
            "pss_after_bytes": best.after_bytes if best else None,
            "pss_peak_bytes": self._pss_peak,
            "pool_resident_bytes": best.pool_bytes if best else None,
            "daemon_pss_bytes": best.daemon_bytes if best else None,
            "daemon_cpu_seconds": self._cpu_seconds - self._cpu_at_start,
            "agents_cpu_seconds": sum(self._agents_cpu.values()),
            "stopped_seconds": sum(self._stopped.values()),
            "command_cpu_seconds": _children_cpu_seconds(),
            "processes": self._most_processes,
            "agents": self._most_agents,
            "samples": self.samples,
            "notes": notes,
        }

    def _take(self, pid: int, now: float) -> None:
        ksm = self.session.ksm
        status = ksm.status()
        facts: dict[str, object] = status["daemon"]
        self._take_facts(facts)
        clients = ksm.processes()
        tree = set(read_tree([pid]))
        # what has daemonized is no descendant any more, but an own daemon knows it is of ours
        ours = tree | {client.pid for client in clients} if self.session.is_own else tree
        self._take_clients([client for client in clients if client.pid in ours])
        found = [
            self._lineage.attribute(one, read_family(one), footprint)
            for one in sorted(ours)
            if (footprint := _read_footprint(one)) is not None
        ]
        if not found:
            return
        counters = {name: status["counters"].get(name) for name in _COUNTERS}
        footprint, daemon, pool = sum_footprints(found), None, 0
        if self.session.is_own:
            daemon_pid = int(str(facts["pid"]))
            daemon = _read_footprint(daemon_pid)
            pool = read_pool_bytes(daemon_pid)
        sample = Sample(
            seconds=now - self.started,
            counters=counters,
            footprint=footprint,
            pool_bytes=pool
            or part_of_pool(footprint.pool_bytes, counters["pages_shared"] or 0, clients, tree),
            daemon_bytes=daemon.own_bytes if daemon else None,
            processes=len(found),
        )
        self.samples += 1
        self._most_processes = max(self._most_processes, sample.processes)
        self._left_for_vmas = max(self._left_for_vmas, counters["merges_left_for_vmas"] or 0)
        self._pss_peak = max(self._pss_peak, footprint.own_bytes + sample.pool_bytes)
        if self.best is None or sample.rank >= self.best.rank:
            self.best = sample

    def _take_facts(self, facts: dict[str, object]) -> None:
        self._cpu_seconds = float(str(facts["cpu_seconds"]))

    def _take_clients(self, clients: Sequence[Process]) -> None:
        self._most_agents = max(self._most_agents, len(clients))
        for client in clients:
            for sums, name in (
                (self._agents_cpu, "agent_cpu_seconds"),
                (self._stopped, "stopped_seconds"),
            ):
                value = client.own.get(name)
                if isinstance(value, int | float):
                    sums[client.pid] = max(sums.get(client.pid, 0.0), value)
            refused = client.own.get("refused")
            if refused:
                self._note(f"process {client.pid} ({client.comm}) was not merged: {refused}")

    def _take_survivors(self, clients: Sequence[Process]) -> None:
        found = [_read_footprint(client.pid) for client in clients]
        alive = sum(1 for one in found if one and one.own_bytes)  # a zombie has no memory
        if alive:
            self._note(
                f"{alive} of its processes still run, and are merged no further: to have them "
                "merged, too, start 'pagemerge daemon --detach' before"
            )

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _read_footprint(pid: int) -> Footprint | None:
    """Read the footprint of a process; None when it has ended or may not be looked at."""
    try:
        return read_footprint(pid)
    except (ProcessGoneError, NotPermittedError):
        return None


def part_of_pool(mapped: int, kept: int, clients: Sequence[Process], ours: Set[int]) -> int:
    """Say how much of a pool that others use, too, is the command's, as Pss would: bytes.

    Each of its pages is divided by its users; the command's part is taken to be as large as its
    part of all merged mappings.

    Args:
        mapped: what of the pool the command maps, each page once, bytes: it is no more than that.
        kept: pages of the pool in use.
        clients: of the daemon.
        ours: the command's processes.
    """
    merging = {client.pid: client.ksm_merging_pages or 0 for client in clients}
    everybody = sum(merging.values())
    if not everybody:
        return mapped
    mine = sum(pages for pid, pages in merging.items() if pid in ours)
    return min(mapped, kept * PAGE_SIZE * mine // everybody)


def _children_cpu_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system
