"""Is it worth it? What knobs and counters come to, as values with units; pure."""

from __future__ import annotations

from collections.abc import Mapping

from pagemerge.units import PAGE_SIZE

__all__ = ["derive_worth", "estimate_pass_seconds", "estimate_spare_bytes"]

Worth = dict[str, int | float | None]


def estimate_pass_seconds(
    pages: int, pages_to_scan: int | None, sleep_millisecs: int | None, scan_ns: float | None
) -> float | None:
    """Say how long a pass over so many pages takes; None where it never ends, or nobody knows.

    Args:
        pages: that ksmd looks at.
        pages_to_scan: pages a batch.
        sleep_millisecs: between two batches; a pass ends with one, too.
        scan_ns: nanoseconds of CPU a page; None: only the sleeps are counted.

    >>> estimate_pass_seconds(262144, 100, 20, None)
    52.44
    """
    if not pages_to_scan or sleep_millisecs is None:
        return None
    batches = max(1, -(-pages // pages_to_scan))
    return batches * sleep_millisecs / 1000 + pages * (scan_ns or 0.0) / 1e9


def estimate_spare_bytes(meminfo: Mapping[str, int]) -> int | None:
    """Say how much memory may still be written to: MemAvailable and free swap.

    None before Linux 3.14, which shows no MemAvailable.
    """
    available = meminfo.get("MemAvailable")
    return None if available is None else available + meminfo.get("SwapFree", 0)


def derive_worth(
    knobs: Mapping[str, int | str | None],
    counters: Mapping[str, int | None],
    facts: Mapping[str, object],
    meminfo: Mapping[str, int],
) -> Worth:
    """Derive what tells whether merging is worth its price; None where nothing tells.

    Args:
        knobs: by their kernel names.
        counters: by their kernel names.
        facts: the implementation's: cpu_seconds, uptime_seconds, cow_ksm, ksm_swpin_copy.
        meminfo: the machine's, bytes.

    Returns:
        saved_bytes: pages saved, zero pages included, before the records are taken off.
        profit_bytes: general_profit: the same, after.
        sharing_ratio: further users of a kept page.
        sharing_per_scanned_ratio: pages saved now for each page ever scanned.
        volatile_ratio, unshared_ratio: of the pages with a record.
        skipped_ratio: of all looks, those that smart_scan left out.
        scan_ns: CPU time a scanned page, nanoseconds, mean over ksmd's life.
        pass_seconds: a full pass at today's settings.
        cpu_ratio: of one core, over ksmd's life.
        running_cpu_ratio: of one core, to be expected while it runs at today's settings.
        cow_bytes, swpin_bytes: copied since boot when merged pages were written to, swapped in.
        breakage_bytes: needed if every merged page were written to; spare_bytes: what there is.
    """

    def count(name: str) -> int:
        return counters.get(name) or 0

    shared, sharing, zero = map(count, ("pages_shared", "pages_sharing", "ksm_zero_pages"))
    volatile, unshared = count("pages_volatile"), count("pages_unshared")
    records = shared + sharing + unshared + volatile
    scanned, skipped = counters.get("pages_scanned"), counters.get("pages_skipped")
    cpu = _number(facts.get("cpu_seconds"))
    scan_ns = cpu * 1e9 / scanned if cpu and scanned else None
    to_scan, sleep = _whole(knobs.get("pages_to_scan")), _whole(knobs.get("sleep_millisecs"))
    needed = (sharing + zero) * PAGE_SIZE
    return {
        "saved_bytes": needed,
        "profit_bytes": counters.get("general_profit"),
        "sharing_ratio": _ratio(sharing, shared),
        "sharing_per_scanned_ratio": _ratio(sharing + zero, scanned),
        "volatile_ratio": _ratio(volatile, records),
        "unshared_ratio": _ratio(unshared, records),
        "skipped_ratio": None if skipped is None else _ratio(skipped, skipped + (scanned or 0)),
        "scan_ns": scan_ns,
        "pass_seconds": estimate_pass_seconds(records, to_scan, sleep, scan_ns),
        "cpu_ratio": _ratio(cpu, _number(facts.get("uptime_seconds"))),
        "running_cpu_ratio": _running(to_scan, sleep, scan_ns, records),
        "cow_bytes": _pages(facts.get("cow_ksm")),
        "swpin_bytes": _pages(facts.get("ksm_swpin_copy")),
        "breakage_bytes": needed,
        "spare_bytes": estimate_spare_bytes(meminfo),
    }


def _running(
    to_scan: int | None, sleep: int | None, scan_ns: float | None, pages: int
) -> float | None:
    """A batch's work beside its sleep; a batch ends with the pass."""
    if not to_scan or sleep is None or scan_ns is None:
        return None
    work = min(to_scan, pages) * scan_ns / 1e9
    return _ratio(work, work + sleep / 1000)


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _pages(value: object) -> int | None:
    return value * PAGE_SIZE if isinstance(value, int) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None
