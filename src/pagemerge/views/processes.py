"""`ps` and `regions` for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache

from pagemerge.ksm import Process, Region, RegionGroup
from pagemerge.units import pages_to_bytes, render_bytes, render_count
from pagemerge.views.terminal import print_list

__all__ = ["print_groups", "print_hidden", "print_processes", "print_regions"]


def print_processes(implementation: str, processes: Sequence[Process], top: int = 0) -> None:
    """Print a row a process, the first `top` of them; 0: all."""
    if not processes:
        sys.stderr.write(f"{implementation}: no process has merging on\n")
        return
    profit = sum(process.ksm_process_profit or 0 for process in processes)
    count = render_count(len(processes))
    print_list(
        f"{implementation}: {count} {_plural('process', len(processes))} with merging on, "
        f"profit {render_bytes(profit)} in all{_shown(top, len(processes))}",
        ("pid", "merging", "zero", "rmap_items", "profit", "any", "mergeable", "comm", "note"),
        [
            (
                str(process.pid),
                _pages(process.ksm_merging_pages),
                _pages(process.ksm_zero_pages),
                _count(process.ksm_rmap_items),
                _bytes(process.ksm_process_profit),
                _flag(process.ksm_merge_any),
                _flag(process.ksm_mergeable),
                process.comm,
                _note(process),
            )
            for process in processes[: top or None]
        ],
        left=("any", "mergeable", "comm", "note"),
        spare=("zero", "mergeable", "rmap_items"),
    )


def print_hidden(pids: Sequence[int]) -> None:
    """Say on stderr how many processes could not be looked at, so that none is taken for absent."""
    if pids:
        what = f"{render_count(len(pids))} {_plural('process', len(pids))} of other users"
        sys.stderr.write(f"note: {what} may not be looked at; root sees all\n")


def print_regions(implementation: str, pid: int, regions: Sequence[Region], top: int = 0) -> None:
    """Print a row a region, the first `top` of them; 0: all."""
    if not regions:
        sys.stderr.write(f"{implementation}: no region of process {pid} is looked at\n")
        return
    merged = sum((region.merged_bytes or 0) + (region.zero_bytes or 0) for region in regions)
    looked = sum(region.end - region.start for region in regions if region.mergeable)
    count = render_count(len(regions))
    print_list(
        f"{implementation}: process {pid}, {count} {_plural('region', len(regions))}, "
        f"{render_bytes(looked)} mergeable, {render_bytes(merged)} merged"
        f"{_shown(top, len(regions))}",
        ("region", "size", "present", "own", "merged", "zero", "unshared", "mergeable", "name"),
        [
            (
                f"{region.start:x}-{region.end:x}",
                _bytes(region.end - region.start),
                _bytes(region.present_bytes),
                _bytes(region.anonymous_bytes),
                _bytes(region.merged_bytes),
                _bytes(region.zero_bytes),
                _pages(region.unshared_pages),
                _mergeable(region),
                region.name or "[anon]",
            )
            for region in regions[: top or None]
        ],
        left=("region", "mergeable", "name"),
        spare=("present", "own", "size"),
    )


def print_groups(
    implementation: str, what: str, groups: Sequence[RegionGroup], top: int = 0
) -> None:
    """Print a row a name that is mapped, the first `top` of them; 0: all."""
    if not groups:
        sys.stderr.write(f"{implementation}: no region of {what} is looked at\n")
        return
    merged = sum((group.merged_bytes or 0) + (group.zero_bytes or 0) for group in groups)
    print_list(
        f"{implementation}: {what}, {render_bytes(merged)} merged{_shown(top, len(groups))}",
        ("processes", "regions", "size", "present", "own", "merged", "zero", "mergeable", "name"),
        [
            (
                render_count(group.processes),
                render_count(group.regions),
                render_bytes(group.size_bytes),
                _bytes(group.present_bytes),
                _bytes(group.anonymous_bytes),
                _bytes(group.merged_bytes),
                _bytes(group.zero_bytes),
                f"no: {group.obstacle}" if group.obstacle else render_bytes(group.mergeable_bytes),
                group.name or "[anon]",
            )
            for group in groups[: top or None]
        ],
        left=("mergeable", "name"),
        spare=("present", "regions", "size", "processes"),
    )


def _mergeable(region: Region) -> str:
    """Say whether ksmd looks at it, and else why not."""
    if region.mergeable:
        return "yes"
    if region.obstacle:
        return f"no: {region.obstacle}"
    return "no: nothing of its own" if region.anonymous_bytes == 0 else "not marked"


def _note(process: Process) -> str:
    """Say what keeps the engine from merging it."""
    refused = process.own.get("refused")
    if refused:
        return f"not merged: {refused}"
    return "does not answer" if process.own.get("silent") else ""


def _shown(top: int, count: int) -> str:
    return f"; the first {render_count(top)}" if 0 < top < count else ""


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}es" if word.endswith("s") else f"{word}s"


def _pages(value: int | None) -> str:
    return "-" if value is None else _bytes(pages_to_bytes(value))


@lru_cache(maxsize=4096)  # most of 30,000 regions have the same few sizes
def _bytes(value: int | None) -> str:
    return "-" if value is None else render_bytes(value)


def _count(value: int | None) -> str:
    return "-" if value is None else render_count(value)


def _flag(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"
