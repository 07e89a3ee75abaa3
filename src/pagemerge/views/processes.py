"""`ps` and `regions` for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pagemerge.ksm import Process, Region
from pagemerge.units import pages_to_bytes, render_bytes, render_count
from pagemerge.views.terminal import print_table

__all__ = ["print_processes", "print_regions"]


def print_processes(processes: Sequence[Process]) -> None:
    """Print a row a process."""
    if not processes:
        sys.stderr.write("no process has merging on\n")
        return
    print_table(
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
            for process in processes
        ],
        left=("any", "mergeable", "comm", "note"),
    )


def print_regions(regions: Sequence[Region]) -> None:
    """Print a row a region."""
    if not regions:
        sys.stderr.write("no region of it is looked at\n")
        return
    print_table(
        ("start", "end", "size", "present", "merged", "zero", "unshared", "mergeable", "name"),
        [
            (
                f"{region.start:x}",
                f"{region.end:x}",
                render_bytes(region.end - region.start),
                _bytes(region.present_bytes),
                _bytes(region.merged_bytes),
                _bytes(region.zero_bytes),
                _pages(region.unshared_pages),
                region.obstacle or _flag(region.mergeable),
                region.name or "[anon]",
            )
            for region in regions
        ],
        left=("mergeable", "name"),
    )


def _note(process: Process) -> str:
    """Say what keeps the engine from merging it."""
    refused = process.own.get("refused")
    if refused:
        return f"not merged: {refused}"
    return "does not answer" if process.own.get("silent") else ""


def _pages(value: int | None) -> str:
    return "-" if value is None else render_bytes(pages_to_bytes(value))


def _bytes(value: int | None) -> str:
    return "-" if value is None else render_bytes(value)


def _count(value: int | None) -> str:
    return "-" if value is None else render_count(value)


def _flag(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"
