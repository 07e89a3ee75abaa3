"""Arithmetic of ksmd: pages kept and saved under max_page_sharing, and the time that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["RMAP_ITEM_BYTES", "EngineCost", "KsmdCost", "engine_cost", "ksm_counts", "ksmd_cost"]

RMAP_ITEM_BYTES: Final = 64  # bytes of metadata a visited page (mm/ksm.c, 64-bit)

# Nanoseconds of ksmd's CPU a page, on a machine that copies 10 GB/s (benchmarks/prediction.py).
_KSMD_CHECKSUM_NS: Final = 700  # a page's first look
_KSMD_SEARCH_NS: Final = 4500  # the look that finds no twin
_KSMD_MERGE_NS: Final = 5500  # the look that merges it
_KSMD_ZERO_NS: Final = 1500  # ... with the zero page
# The engine: reading and hashing, then comparing and mapping, by run and by page.
_ENGINE_LOOK_NS: Final = 700
_ENGINE_RUN_NS: Final = 8000
_ENGINE_MERGE_NS: Final = 800


def ksm_counts(pages: int, max_page_sharing: int) -> tuple[int, int]:
    """Give pages_shared and pages_sharing of one content, once ksmd has settled.

    A KSM page holds at most `max_page_sharing` mappings; a single left-over page stays alone.

    >>> ksm_counts(10, 256), ksm_counts(11, 10), ksm_counts(12, 10), ksm_counts(1, 256)
    ((1, 9), (1, 9), (2, 10), (0, 0))
    """
    full, rest = divmod(pages, max_page_sharing)
    shared = full + (rest >= 2)
    return shared, pages - shared - (rest == 1)


@dataclass(frozen=True, slots=True)
class KsmdCost:
    """What ksmd needs until it has merged all there is, two passes.

    Attributes:
        pass_seconds: one pass once settled, its sleeps included; None: never (pages_to_scan=0).
        settle_seconds: until all is merged; None: never.
        cpu_seconds: CPU time of that.
        cpu_percent: of a core, while it settles.
    """

    pages_to_scan: int
    sleep_millisecs: int
    pass_seconds: float | None
    settle_seconds: float | None
    cpu_seconds: float
    cpu_percent: float


def ksmd_cost(
    pages: int, merging: int, zero: int, *, pages_to_scan: int, sleep_millisecs: int
) -> KsmdCost:
    """Estimate ksmd's time: a pass to see each page, one to merge, `pages_to_scan` a batch.

    Args:
        pages: eligible pages.
        merging: of these merged with each other.
        zero: of these merged with the zero page.
        pages_to_scan: pages a batch; 0 never ends.
        sleep_millisecs: between two batches.
    """
    others = max(0, pages - merging - zero)
    first = pages * _KSMD_CHECKSUM_NS * 1e-9
    second = (merging * _KSMD_MERGE_NS + zero * _KSMD_ZERO_NS + others * _KSMD_SEARCH_NS) * 1e-9
    if not pages_to_scan:
        return KsmdCost(0, sleep_millisecs, None, None, 0.0, 0.0)
    sleeps = -(-pages // pages_to_scan) * sleep_millisecs / 1000
    settle = 2 * sleeps + first + second
    later = sleeps + (merging * _KSMD_CHECKSUM_NS / 2 + others * _KSMD_SEARCH_NS) * 1e-9
    return KsmdCost(
        pages_to_scan,
        sleep_millisecs,
        later,
        settle,
        first + second,
        100 * (first + second) / settle if settle else 0.0,
    )


@dataclass(frozen=True, slots=True)
class EngineCost:
    """What this project's engine needs to merge the same.

    Attributes:
        runs: mappings that it makes.
        pages: pages in them.
        run_lengths: how many runs have 1, 2-3, 4-7, ... pages.
        vmas: VMAs that merging adds, all processes together.
        vmas_most: VMAs of the process that comes to have the most.
        max_map_count: what a process may have; None where it isn't known.
        cpu_seconds: for one settling.
    """

    runs: int
    pages: int
    run_lengths: tuple[int, ...]
    vmas: int
    vmas_most: int
    max_map_count: int | None
    cpu_seconds: float


def engine_cost(
    present: int,
    runs: int,
    pages: int,
    run_lengths: tuple[int, ...],
    *,
    vmas: int,
    vmas_most: int,
    max_map_count: int | None,
) -> EngineCost:
    """Estimate the engine's time from what it would map."""
    cpu = (present * _ENGINE_LOOK_NS + runs * _ENGINE_RUN_NS + pages * _ENGINE_MERGE_NS) * 1e-9
    return EngineCost(runs, pages, run_lengths, vmas, vmas_most, max_map_count, cpu)
