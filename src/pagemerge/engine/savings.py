"""What merging saves a command while it runs, seen by the kernel (Pss) and by the engine."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pagemerge.engine.launch import Session
from pagemerge.errors import EngineError, NotPermittedError, NotSupportedError, ProcessGoneError
from pagemerge.ksm import Process
from pagemerge.memory import read_smaps_rollup, read_tree
from pagemerge.units import PAGE_SIZE

__all__ = ["Sample", "Savings"]

LOOKS_SHARE: Final = 0.02  # of the time, at most, is spent looking
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


@dataclass(frozen=True, slots=True)
class Sample:
    """One look.

    Attributes:
        seconds: since the start.
        counters: of the daemon.
        pss_bytes: the sum of the command's processes, by smaps_rollup.
        daemon_pss_bytes: of the daemon; None where others use it, too.
        processes: how many the command has.
    """

    seconds: float
    counters: dict[str, int | None]
    pss_bytes: int
    daemon_pss_bytes: int | None
    processes: int

    @property
    def saved_bytes(self) -> int:
        """Pages saved, less the daemon's records of pages."""
        pages = (self.counters["pages_sharing"] or 0) + (self.counters["ksm_zero_pages"] or 0)
        return pages * PAGE_SIZE - (self.counters["metadata_bytes"] or 0)


@dataclass(slots=True)
class Savings:
    """Samples of a command, and what they come to.

    What is kept: the sample with the most saved (`best`), and the highest Pss sum until then.
    """

    session: Session
    started: float = field(default_factory=time.monotonic)
    best: Sample | None = None
    samples: int = 0
    notes: list[str] = field(default_factory=list)
    _pss_peak: int = 0
    _pss_before: int = 0
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
        cost = time.monotonic() - began
        return min(max(LOOK_SECONDS_MIN, cost / LOOKS_SHARE), LOOK_SECONDS_MAX)

    def finish(self) -> None:
        """Read what the daemon has used until now."""
        try:
            self._take_facts(self.session.ksm.facts())
        except EngineError as error:
            self._note(f"the daemon was lost while the command ran: {error}")

    def report(self, command: Sequence[str], exit_status: int) -> dict[str, Any]:
        """Sum up: kernel names as of the best sample, and what ends in its unit.

        `pss_before_bytes` is the highest sum of the processes' Pss until the best sample,
        `pss_after_bytes` their sum in it and the daemon's own Pss, which holds its records and
        its part of the pool, so that each page of the pool counts once.
        """
        best = self.best
        counters = best.counters if best else {}
        after = best.pss_bytes + (best.daemon_pss_bytes or 0) if best else None
        notes = list(self.notes)
        if not self.samples:
            notes.append("it ended before it could be looked at")
        elif not self._most_agents:
            notes.append(
                "the agent came into none of its processes: statically linked, set-user-ID, "
                "or they drop LD_PRELOAD"
            )
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
            "pss_before_bytes": self._pss_before if best else None,
            "pss_after_bytes": after,
            "pss_peak_bytes": self._pss_peak,
            "daemon_pss_bytes": best.daemon_pss_bytes if best else None,
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
        found = [pss for pss in map(_read_pss, ours) if pss is not None]
        if not found:
            return
        counters = {name: status["counters"].get(name) for name in _COUNTERS}
        daemon_pss = _read_pss(int(str(facts["pid"]))) if self.session.is_own else None
        sample = Sample(now - self.started, counters, sum(found), daemon_pss, len(found))
        self.samples += 1
        self._most_processes = max(self._most_processes, sample.processes)
        self._left_for_vmas = max(self._left_for_vmas, counters["merges_left_for_vmas"] or 0)
        self._pss_peak = max(self._pss_peak, sample.pss_bytes)
        if self.best is None or sample.saved_bytes >= self.best.saved_bytes:
            self.best = sample
            self._pss_before = self._pss_peak

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

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _read_pss(pid: int) -> int | None:
    """Read the Pss of a process, bytes; None when it has ended or may not be looked at."""
    try:
        return read_smaps_rollup(pid).get("Pss")
    except (ProcessGoneError, NotPermittedError, NotSupportedError):
        return None


def _children_cpu_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system
