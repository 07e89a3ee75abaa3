"""The scan-time advisor: how many pages a batch needs so that a pass takes the time asked for.

The arithmetic is the kernel's (mm/ksm.c, Linux 6.8), truncation by truncation, so that the same
passes give the same advice.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Advice", "ScanTimeAdvisor"]

EWMA_WEIGHT = 30  # per cent that the newest change counts


@dataclass(frozen=True, slots=True)
class Advice:
    """The fields of the `ksm_advisor` event: seconds, pages, per cent."""

    scan_time: int
    pages_to_scan: int
    cpu_percent: int


class ScanTimeAdvisor:
    """State between passes; made anew whenever advisor_mode becomes scan-time."""

    def __init__(self, min_pages: int) -> None:
        """Start from advisor_min_pages_to_scan, which is a start value and no floor."""
        self.pages = min_pages
        self._scan_time = 0
        self._change = 0
        self._cpu_ns = 0

    def end_of_pass(
        self, elapsed_ms: int, ksmd_cpu_ns: int, target: int, max_cpu: int, max_pages: int
    ) -> Advice:
        """Advise the next pass.

        Args:
            elapsed_ms: wall time of the pass, sleeps included.
            ksmd_cpu_ns: CPU time of ksmd since it started.
            target: advisor_target_scan_time, seconds.
            max_cpu: advisor_max_cpu, per cent of one CPU.
            max_pages: advisor_max_pages_to_scan.
        """
        scan = elapsed_ms // 1000 or 1
        cpu_ms = (ksmd_cpu_ns - self._cpu_ns) // 1_000_000
        cpu_percent = cpu_ms * 100 // (scan * 1000) or 1
        last = self._scan_time or scan
        factor = target * 100 // scan or 1
        change = scan * 100 // last or 1
        change = (EWMA_WEIGHT * change + (100 - EWMA_WEIGHT) * self._change) // 100
        pages = self.pages * 100 // factor * change // 100
        per_percent = self.pages // cpu_percent or 1
        pages = min(max(min(pages, per_percent * max_cpu), per_percent * 10), max_pages)
        self._change, self._scan_time, self._cpu_ns, self.pages = change, scan, ksmd_cpu_ns, pages
        return Advice(scan, pages, cpu_percent)
