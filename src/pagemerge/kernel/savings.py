"""What the kernel's KSM saves a command while it runs: /proc/PID/ksm_stat, smaps_rollup, sysfs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pagemerge.errors import NotPermittedError, NotSupportedError, ProcessGoneError
from pagemerge.kernel.ksm import KernelKsm
from pagemerge.kernel.processes import RMAP_ITEM_BYTES, read_process
from pagemerge.ksm import Process
from pagemerge.memory import read_smaps_rollup, read_tree
from pagemerge.units import PAGE_SIZE

__all__ = ["KernelSample", "KernelSavings"]

LOOKS_SHARE: Final = 0.02  # of the time, at most, is spent looking
LOOK_SECONDS_MIN: Final = 0.1
LOOK_SECONDS_MAX: Final = 5.0
PASSES_TO_MERGE: Final = 3  # two over a page; one may have been half over

# The machine's, shown as they were when most was saved.
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
)
_STAT: Final = ("ksm_merging_pages", "ksm_zero_pages", "ksm_rmap_items", "ksm_process_profit")


@dataclass(frozen=True, slots=True)
class KernelSample:
    """One look.

    Attributes:
        seconds: since the start.
        counters: the machine's.
        stat: sums over the command's processes, by the names of /proc/PID/ksm_stat.
        pss_bytes: sum of the processes' Pss.
        processes: how many the command has.
    """

    seconds: float
    counters: dict[str, int | None]
    stat: dict[str, int]
    pss_bytes: int
    processes: int

    @property
    def sharing_pages(self) -> int:
        """Pages that the command does without, zero pages apart.

        The kernel tells by process how many mappings are merged, not how many pages they lead to:
        of the pages kept, the command's part is taken to be as large as its part of the mappings.
        """
        shared = self.counters["pages_shared"] or 0
        sharing = self.counters["pages_sharing"] or 0
        merging = self.stat["ksm_merging_pages"]
        return merging * sharing // (shared + sharing) if shared + sharing else 0

    @property
    def metadata_bytes(self) -> int:
        """What the kernel's records of the command's pages take."""
        return self.stat["ksm_rmap_items"] * RMAP_ITEM_BYTES

    @property
    def saved_bytes(self) -> int:
        """Pages saved, less the records."""
        pages = self.sharing_pages + self.stat["ksm_zero_pages"]
        return pages * PAGE_SIZE - self.metadata_bytes

    @property
    def is_alone(self) -> bool:
        """Whether nobody else on this machine has merged pages."""
        whole = (self.counters["pages_shared"] or 0) + (self.counters["pages_sharing"] or 0)
        # the counters lag behind: what was forked is in the processes' sums a little later
        return self.stat["ksm_merging_pages"] >= 0.98 * whole


@dataclass(slots=True)
class KernelSavings:
    """Samples of a command, and what they come to; the one with the most saved is kept (`best`).

    Attributes:
        everything: whether the command runs with prctl(PR_SET_MEMORY_MERGE) set.
    """

    ksm: KernelKsm
    everything: bool = True
    started: float = field(default_factory=time.monotonic)
    best: KernelSample | None = None
    samples: int = 0
    notes: list[str] = field(default_factory=list)
    _pss_peak: int = 0
    _most_processes: int = 0
    _was_asked: bool | None = False
    _cpu: tuple[float, float] = (0.0, 0.0)
    _scans: tuple[int, int] = (0, 0)
    _ran: bool = False

    def begin(self) -> None:
        """Note what ksmd has done before the command starts."""
        self._cpu = (self._ksmd_cpu(),) * 2
        self._scans = (self._full_scans(),) * 2
        self._ran = self.ksm.knobs["run"] == 1
        self.started = time.monotonic()

    def look(self, pid: int) -> float:
        """Take a sample of a command and its descendants; returns when to look again, seconds."""
        began = time.monotonic()
        self._take(read_tree([pid]), began)
        now = time.monotonic()
        # a short command would be over before the share of the time allows a second look
        early = max(LOOK_SECONDS_MIN, (now - self.started) / 10)
        wanted = max(LOOK_SECONDS_MIN, (now - began) / LOOKS_SHARE)
        return min(wanted, early, LOOK_SECONDS_MAX)

    def finish(self) -> None:
        """Read what ksmd has done until now."""
        self._cpu = (self._cpu[0], self._ksmd_cpu())
        self._scans = (self._scans[0], self._full_scans())

    def report(self, command: Sequence[str], exit_status: int) -> dict[str, Any]:
        """Sum up: kernel names as of the best sample, and what ends in its unit.

        The keys are those of the engine's report where they mean the same
        (docs/reference/run-report.md).
        """
        best = self.best
        counters = best.counters if best else {}
        after = best.pss_bytes if best else None
        return {
            "command": list(command),
            "exit_status": exit_status,
            "ksm": self.ksm.implementation,
            "duration_seconds": time.monotonic() - self.started,
            **{name: counters.get(name) for name in _COUNTERS},
            "ksm_stat": best.stat if best else None,
            "metadata_bytes": best.metadata_bytes if best else None,
            "saved_bytes": best.saved_bytes if best else None,
            "saved_at_seconds": best.seconds if best else None,
            "pss_before_bytes": best and best.pss_bytes + best.sharing_pages * PAGE_SIZE,
            "pss_after_bytes": after,
            "pss_peak_bytes": self._pss_peak,
            "daemon_cpu_seconds": self._cpu[1] - self._cpu[0],
            "command_cpu_seconds": _children_cpu_seconds(),
            "passes": max(0, self._scans[1] - self._scans[0]),
            "processes": self._most_processes,
            "samples": self.samples,
            "notes": [*self.notes, *self._explain()],
        }

    def _take(self, tree: Iterable[int], now: float) -> None:
        stats, pss = [], 0
        for pid in tree:
            try:
                process = read_process(pid)
                pss += read_smaps_rollup(pid).get("Pss", 0)
            except ProcessGoneError:
                continue
            except NotPermittedError:
                self._note(f"process {pid} may not be looked at, and is in none of the sums")
                continue
            except NotSupportedError as error:
                self._note(f"{error}; {error.hint}")
                return
            if process is not None:
                stats.append(process)
        if not stats:
            return
        self._ask(stats)
        counters = self.ksm.counters()
        sample = KernelSample(
            seconds=now - self.started,
            counters={name: counters.get(name) for name in _COUNTERS},
            stat={name: sum(getattr(stat, name) or 0 for stat in stats) for name in _STAT},
            pss_bytes=pss,
            processes=len(stats),
        )
        self.samples += 1
        self._most_processes = max(self._most_processes, sample.processes)
        self._pss_peak = max(self._pss_peak, pss)
        self._ran = self._ran or self.ksm.knobs["run"] == 1
        if self.best is None or sample.saved_bytes >= self.best.saved_bytes:
            self.best = sample

    def _ask(self, stats: Sequence[Process]) -> None:
        """Keep whether any process had merging on; None where this kernel does not tell."""
        if self._was_asked:
            return
        told = [flag for stat in stats for flag in (stat.ksm_merge_any, stat.ksm_mergeable)]
        if any(told) or any(stat.ksm_rmap_items for stat in stats):
            self._was_asked = True
        elif all(flag is None for flag in told):
            self._was_asked = None

    def _explain(self) -> list[str]:
        """Say why nothing was merged, or what the numbers leave out."""
        if not self.samples:
            return ["it ended before it could be looked at"]
        notes = []
        if self._was_asked is False:
            notes.append(
                "merging is on for none of its processes: before Linux 6.7 it is lost over exec"
                if self.everything
                else "no process asked for merging, by madvise(MADV_MERGEABLE) or "
                "prctl(PR_SET_MEMORY_MERGE); --all merges all memory"
            )
        if not self._ran:
            return [*notes, "ksmd did not run (run is not 1), so that nothing was merged"]
        passes = self._scans[1] - self._scans[0]
        if 0 <= passes < PASSES_TO_MERGE:
            notes.append(
                f"ksmd ended {passes} passes while it ran; merging takes {PASSES_TO_MERGE}: "
                "'pagemerge set pages_to_scan=...' makes it faster"
            )
        if self.best and self.best.stat["ksm_merging_pages"] and not self.best.is_alone:
            notes.append(
                "others on this machine merge, too: the counters are of them all, and of the pages "
                "kept the command's part is reckoned by its part of the mappings"
            )
        return notes

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _ksmd_cpu(self) -> float:
        return float(str(self.ksm.facts().get("cpu_seconds", 0.0)))

    def _full_scans(self) -> int:
        return self.ksm.counters()["full_scans"] or 0


def _children_cpu_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system
