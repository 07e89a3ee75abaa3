"""Who has the kernel's KSM on, and what it does for them: /proc/PID/ksm_stat, ksm_merging_pages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pagemerge.errors import (
    NotPermittedError,
    NotSupportedError,
    ProcessGoneError,
)
from pagemerge.ksm import Process, Region
from pagemerge.memory import (
    PROC,
    iter_pids,
    read_comm,
    read_process_text,
    read_smaps_rows,
    read_stat,
)

__all__ = [
    "RMAP_ITEM_BYTES",
    "obstacle_of",
    "parse_ksm_stat",
    "read_hidden_pids",
    "read_process",
    "read_processes",
    "read_regions",
]

RMAP_ITEM_BYTES: Final = 64  # sizeof(struct ksm_rmap_item) on 64-bit machines

# VmFlags that vma_ksm_compatible() refuses (mm/ksm.c), in the order in which they are told.
_OBSTACLES = (
    ("ht", "huge pages of hugetlbfs"),
    ("io", "memory of a device"),
    ("pf", "memory of a device"),
    ("mm", "memory of a device"),
    ("de", "memory of the kernel or a device"),
    ("dp", "droppable"),
    ("sh", "shared"),
    ("ms", "shared"),
)


_KERNELS_OWN = ("[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]")


def parse_ksm_stat(text: str) -> dict[str, int | bool]:
    r"""Read ksm_stat; the kernel writes some names with a colon and some without.

    >>> parse_ksm_stat("ksm_rmap_items 5\nksm_merge_any: yes\n")
    {'ksm_rmap_items': 5, 'ksm_merge_any': True}
    """
    found: dict[str, int | bool] = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        found[name.removesuffix(":")] = value == "yes" if value in ("yes", "no") else int(value)
    return found


def read_process(pid: int, proc: Path = PROC) -> Process | None:
    """Read what the kernel's KSM does for a process; None for kernel threads and zombies.

    Before Linux 6.14 the kernel does not tell whether merging is on for a process.

    Raises:
        ProcessGoneError, NotPermittedError: it ended, or is another user's.
        NotSupportedError: this kernel tells nothing of processes (before 5.19).
    """
    try:
        text = read_process_text(pid, "ksm_stat", proc)
    except NotSupportedError:
        return _read_old_process(pid, proc)
    if not text:
        return None
    stat = parse_ksm_stat(text)
    merging = _number(stat, "ksm_merging_pages")
    if merging is None:  # Linux 6.1 to 6.3
        merging = int(read_process_text(pid, "ksm_merging_pages", proc))
    return Process(
        pid=pid,
        comm=read_comm(pid, proc),
        ksm_merging_pages=merging,
        ksm_zero_pages=_number(stat, "ksm_zero_pages"),
        ksm_rmap_items=_number(stat, "ksm_rmap_items"),
        ksm_process_profit=_number(stat, "ksm_process_profit"),
        ksm_merge_any=_flag(stat, "ksm_merge_any"),
        ksm_mergeable=_flag(stat, "ksm_mergeable"),
    )


def read_processes(proc: Path = PROC) -> list[Process]:
    """List the processes that have merging on, as far as this user may look at them.

    Raises:
        NotSupportedError: this kernel tells nothing of processes (before 5.19).
    """
    found = []
    for pid in iter_pids(proc):
        try:
            process = read_process(pid, proc)
        except (ProcessGoneError, NotPermittedError):
            continue
        if process and (
            process.ksm_merge_any
            or process.ksm_mergeable
            or process.ksm_rmap_items
            or process.ksm_merging_pages
            or process.ksm_zero_pages
        ):
            found.append(process)
    return found


def read_hidden_pids(proc: Path = PROC) -> list[int]:
    """List the processes of which this user may not know what KSM does for them.

    Kernel threads are none of them.
    """
    hidden = []
    for pid in iter_pids(proc):
        path = proc / str(pid) / "ksm_stat"
        if os.access(path, os.R_OK, effective_ids=True):
            continue
        if not path.exists():  # it has ended, or the kernel is an older one
            path = path.with_name("ksm_merging_pages")
            if not path.exists() or os.access(path, os.R_OK, effective_ids=True):
                continue
        try:
            if not read_stat(pid, proc).is_kernel_thread:
                hidden.append(pid)
        except ProcessGoneError:
            continue
    return hidden


def read_regions(pid: int, proc: Path = PROC) -> list[Region]:
    """List a process's memory, with what is merged in each region (/proc/PID/smaps).

    Pages that KSM replaced by the zero page are in no line of smaps: `zero_bytes` is None.

    Raises:
        ProcessGoneError: there is no such process.
        NotPermittedError: its memory may not be looked at.
    """
    names = ("KSM", "Rss", "Anonymous")
    obstacles: dict[tuple[frozenset[str], bool], str | None] = {}
    regions = []
    for vma, (ksm, rss, anonymous), flags in read_smaps_rows(pid, names, proc):
        kind = (flags, vma.path.startswith("[v"))
        if kind not in obstacles:
            obstacles[kind] = obstacle_of(vma.path, flags)
        regions.append(
            Region(
                start=vma.start,
                end=vma.end,
                name=vma.path,
                merged_bytes=ksm,
                present_bytes=rss,
                perms=vma.perms,
                mergeable="mg" in flags,
                obstacle=obstacles[kind],
                anonymous_bytes=anonymous,
            )
        )
    return regions


def obstacle_of(path: str, flags: frozenset[str]) -> str | None:
    """Say why the kernel would not merge a region whatever it is asked; None where it would.

    Args:
        path: what is mapped, as in /proc/PID/maps.
        flags: the VmFlags of smaps.
    """
    if "mg" in flags:
        return None
    if path in _KERNELS_OWN:
        return "the kernel's own"
    return next((why for flag, why in _OBSTACLES if flag in flags), None)


def _read_old_process(pid: int, proc: Path) -> Process | None:
    """Read what Linux 5.19 to 6.0 tell."""
    try:
        text = read_process_text(pid, "ksm_merging_pages", proc)
    except NotSupportedError as error:
        raise NotSupportedError(
            "this kernel does not tell what KSM does for a process",
            where=error.where,
            hint="Linux 5.19 brought /proc/PID/ksm_merging_pages",
        ) from error
    if not text:
        return None
    return Process(pid=pid, comm=read_comm(pid, proc), ksm_merging_pages=int(text))


def _number(stat: dict[str, int | bool], name: str) -> int | None:
    value = stat.get(name)
    return None if value is None else int(value)


def _flag(stat: dict[str, int | bool], name: str) -> bool | None:
    value = stat.get(name)
    return None if value is None else bool(value)
