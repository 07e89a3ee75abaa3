"""Reading the facts: the daemon's `status`, `processes` and `regions`; smaps and environ."""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pagemerge.engine import paths
from pagemerge.engine.client import EngineKsm
from pagemerge.engine.doctor.facts import ClientFacts, DaemonFacts, EngineFacts
from pagemerge.engine.preloading import why_not_preloaded
from pagemerge.errors import EngineError, KernelError, PagemergeError, ProcessGoneError
from pagemerge.ksm import Process, Region
from pagemerge.memory import (
    PROC,
    read_comm,
    read_max_map_count,
    read_meminfo,
    read_process_file,
    read_smaps_rows,
    reading,
)
from pagemerge.memory.ownership import read_user

__all__ = ["read_facts"]

_SIZES: Final = ("Size", "Rss", "Anonymous", "AnonHugePages", "Swap")
_AGENT: Final = "libpagemerge-agent.so"
# VmFlags of what the agent never merges (native/agent/marks.c), and what people call it.
_OBSTACLES: Final = (
    ("ht", "huge pages of hugetlbfs"),
    ("io", "memory of a device"),
    ("pf", "memory of a device"),
    ("sh", "shared"),
    ("lo", "locked"),
    ("ex", "executable"),
    ("gd", "a stack that grows"),
)


def read_facts(
    pids: Sequence[int] = (),
    *,
    look_seconds: float = 0.5,
    runtime: Path | None = None,
    proc: Path = PROC,
) -> EngineFacts:
    """Read everything that the checks look at; what may not be read is named in `unread`.

    Args:
        pids: the processes; none: all clients that have asked for merging.
        look_seconds: between two looks at the counters, which show rates.
        runtime: the daemon's folder; None: this user's own.
        proc: /proc.

    Raises:
        ProcessGoneError: one of `pids` has ended.
    """
    unread: list[str] = []
    try:
        ksm = EngineKsm(runtime)
    except EngineError as error:
        place = f"{runtime or paths.RUNTIME_DIR_VARIABLE}/{paths.CONTROL_SOCKET}: "
        return _look(pids, _without_daemon(error, place, proc), {}, None, proc, unread)
    place = f"{ksm.runtime / paths.CONTROL_SOCKET}: "
    with ksm:
        try:
            machine = _daemon(ksm, look_seconds, place, proc)
            rows = {row.pid: row for row in ksm.processes()}
        except EngineError as error:
            return _look(pids, _without_daemon(error, place, proc), {}, None, proc, unread)
        return _look(pids, machine, rows, ksm, proc, unread)


def _look(
    pids: Sequence[int],
    machine: DaemonFacts,
    rows: Mapping[int, Process],
    ksm: EngineKsm | None,
    proc: Path,
    unread: list[str],
) -> EngineFacts:
    processes: list[ClientFacts] = []
    for pid in dict.fromkeys(pids) if pids else rows:
        try:
            processes.append(_process(pid, rows.get(pid), ksm, machine, proc, unread))
        except ProcessGoneError:
            if pids:
                raise
    if not pids:
        processes = [p for p in processes if p.has_asked or p.refused or not p.is_connected]
    return EngineFacts(
        machine=machine,
        processes=tuple(processes),
        were_named=bool(pids),
        unread=tuple(unread),
    )


def _without_daemon(error: EngineError, place: str, proc: Path) -> DaemonFacts:
    return DaemonFacts(
        implementation="engine",
        place=place,
        has_ksm=False,
        trouble=str(error),
        hint=error.hint,
        meminfo=read_meminfo(proc),
    )


def _daemon(ksm: EngineKsm, look_seconds: float, place: str, proc: Path) -> DaemonFacts:
    """Ask the daemon twice.

    Raises:
        EngineError: it does not answer.
    """
    begin, first = time.monotonic(), ksm.status()
    time.sleep(max(0.0, begin + look_seconds - time.monotonic()))
    last = ksm.status()
    daemon, before = last["daemon"], first["daemon"]
    scanned = last["counters"].get("pages_scanned")
    return DaemonFacts(
        implementation="engine",
        place=place,
        ksmd_place=f"{place}daemon.cpu_seconds",
        knobs=last["knobs"],
        counters=first["counters"],
        later=last["counters"],
        look_seconds=time.monotonic() - begin,
        ksmd_cpu_seconds=daemon["cpu_seconds"] - before["cpu_seconds"],
        meminfo=read_meminfo(proc),
        scan_ns=daemon["cpu_seconds"] * 1e9 / scanned if scanned else None,
        domains=tuple(daemon["domains"]),
        registered=daemon["registered"],
        max_map_count=read_max_map_count(proc),
    )


def _process(
    pid: int,
    row: Process | None,
    ksm: EngineKsm | None,
    machine: DaemonFacts,
    proc: Path,
    unread: list[str],
) -> ClientFacts:
    own: Mapping[str, Any] = row.own if row else {}
    regions: list[Region] = []
    if row is not None and ksm is not None and own.get("regions"):
        try:
            regions = ksm.regions(pid)
        except PagemergeError as error:
            unread.append(f"the regions of process {pid}: {error}")
    sums, unable, has_agent = _read_memory(pid, regions, proc, unread)
    comm, user = read_comm(pid, proc), read_user(pid, proc)
    with reading(pid, proc / str(pid), proc):
        is_foreign = (proc / str(pid)).stat().st_uid != os.geteuid()
    return ClientFacts(
        pid=pid,
        comm=comm,
        user=user,
        ksm=row,
        has_asked=bool(row and (row.ksm_mergeable or row.ksm_merge_any)),
        has_smaps=has_agent is not None,
        unable=dict(unable),
        row=f"{machine.place}processes",
        is_client=row is not None,
        has_agent=has_agent,
        is_foreign=is_foreign,
        obstacle=None if has_agent or row else _why_no_agent(pid, proc),
        elsewhere=None if row or not has_agent else _other_folder(pid, machine, proc),
        domain=own.get("domain", ""),
        refused=own.get("refused", ""),
        is_connected=own.get("connected", False),
        is_silent=own.get("silent", False),
        left_for_vmas=own.get("merges_left_for_vmas", 0),
        vmas=own.get("vmas", 0),
        unshared=own.get("pages_unshared", 0),
        volatile=own.get("pages_volatile", 0),
        regions=own.get("regions", 0),
        tracked=own.get("regions_tracked", 0),
        **sums,
    )


def _read_memory(
    pid: int, regions: Sequence[Region], proc: Path, unread: list[str]
) -> tuple[Counter[str], Counter[str], bool | None]:
    """Sum up smaps, in the daemon's regions and outside; say whether the agent is there."""
    sums: Counter[str] = Counter(marked_regions=len(regions))
    unable: Counter[str] = Counter()
    has_agent = False
    ordered = sorted((region.start, region.end) for region in regions)
    try:
        for vma, sizes, flags in read_smaps_rows(pid, _SIZES, proc):
            size, rss, anonymous, huge, swap = (value or 0 for value in sizes)
            has_agent = has_agent or _AGENT in vma.path
            if _lies_in(vma.start, ordered):
                # what is merged was a page like any other; in Rss it is only once it was read
                merged = size - anonymous if vma.path.startswith(paths.POOL_NAME) else 0
                sums.update(
                    marked_size=size,
                    marked_anonymous=anonymous + merged,
                    marked_huge=huge,
                    marked_swap=swap,
                )
                continue
            if vma.path.startswith(paths.POOL_NAME):
                continue  # the agent's own view of it
            why = next((words for flag, words in _OBSTACLES if flag in flags), None)
            if why is None:
                sums["able_anonymous"] += anonymous
            elif rss and (why != "executable" or anonymous):
                unable[why] += rss
    except ProcessGoneError:
        raise
    except KernelError as error:
        unread.append(f"{error} ({error.hint})" if error.hint else str(error))
        return sums, unable, None
    return sums, unable, has_agent


def _lies_in(address: int, regions: Sequence[tuple[int, int]]) -> bool:
    at = bisect_right(regions, (address, 1 << 64))
    return at > 0 and address < regions[at - 1][1]


def _why_no_agent(pid: int, proc: Path) -> str | None:
    try:
        program = (proc / str(pid) / "exe").readlink()
    except OSError:
        return None
    return why_not_preloaded(str(program), {})


def _other_folder(pid: int, machine: DaemonFacts, proc: Path) -> str | None:
    """Find which daemon's folder its environment names, if it is not this one's."""
    try:
        data = read_process_file(pid, "environ", proc)
    except KernelError:
        return None
    named = dict(entry.partition("=")[::2] for entry in os.fsdecode(data).split("\0"))
    socket = named.get("PAGEMERGE_AGENT_SOCKET")
    folder = str(Path(socket).parent) if socket else named.get(paths.RUNTIME_DIR_VARIABLE)
    here = machine.place.rpartition("/")[0]
    return folder if folder and Path(folder).resolve() != Path(here).resolve() else None
