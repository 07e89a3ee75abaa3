"""Reading the facts: /sys/kernel/mm/ksm, /proc/vmstat, meminfo; ksm_stat, smaps of processes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pagemerge.errors import KernelError, NotSupportedError, ProcessGoneError
from pagemerge.kernel.ksm import KernelKsm
from pagemerge.kernel.processes import (
    obstacle_of,
    read_hidden_pids,
    read_process,
    read_processes,
)
from pagemerge.ksm import Process
from pagemerge.ksm.doctor import Contents, Facts, Machine, ProcessFacts
from pagemerge.memory import (
    PROC,
    read_comm,
    read_meminfo,
    read_process_text,
    read_smaps_rows,
    read_vmstat,
)
from pagemerge.memory.ownership import read_user

__all__ = ["read_facts"]

SYS: Final = Path("/sys")
VMSTAT: Final = ("cow_ksm", "ksm_swpin_copy")
_AGENT: Final = "libpagemerge-agent.so"
_SIZES: Final = ("Size", "Rss", "Anonymous", "AnonHugePages", "Swap", "Shared_Dirty", "KSM")


def read_facts(
    pids: Sequence[int] = (),
    *,
    look_seconds: float = 0.5,
    contents: Contents | None = None,
    proc: Path = PROC,
    sys: Path = SYS,
) -> Facts:
    """Read everything that the checks look at; what may not be read is named in `unread`.

    Args:
        pids: the processes; none: all that have KSM on.
        look_seconds: between two looks at the counters, which show rates.
        contents: what the memory of the processes holds, where somebody has read it.
        proc: /proc, or a recorded machine's.
        sys: /sys, or a recorded machine's.

    Raises:
        ProcessGoneError: one of `pids` has ended.
    """
    folder = sys / "kernel/mm/ksm"
    if not folder.is_dir():
        return Facts(machine=Machine(has_ksm=False), were_named=bool(pids))
    unread: list[str] = []
    ksm = KernelKsm(folder, proc)
    begin, knobs, first, facts = time.monotonic(), ksm.knobs.read(), ksm.counters(), ksm.facts()
    processes = _processes(pids, proc, unread)
    time.sleep(max(0.0, begin + look_seconds - time.monotonic()))
    last, after, vmstat = ksm.counters(), ksm.facts(), read_vmstat(proc)
    seconds = time.monotonic() - begin
    cpu, before = after.get("cpu_seconds"), facts.get("cpu_seconds")
    if not isinstance(cpu, float) or not isinstance(before, float):
        unread.append("ksmd's CPU time: ksmd is not to be seen in this /proc (a container?)")
        spent = scan_ns = None
    else:
        spent = cpu - before
        scanned = last.get("pages_scanned") or 0
        scan_ns = cpu * 1e9 / scanned if scanned else None
    machine = Machine(
        knobs=knobs,
        counters=first,
        later=last,
        look_seconds=seconds,
        ksmd_cpu_seconds=spent,
        vmstat={name: vmstat[name] - _int(facts.get(name)) for name in VMSTAT if name in vmstat},
        vmstat_total={name: vmstat[name] for name in VMSTAT if name in vmstat},
        meminfo=read_meminfo(proc),
        nodes=_nodes(sys),
        thp=_chosen(sys / "kernel/mm/transparent_hugepage/enabled"),
        max_ptes_shared=_number(sys / "kernel/mm/transparent_hugepage/khugepaged/max_ptes_shared"),
        scan_ns=scan_ns,
    )
    return Facts(
        machine=machine,
        processes=tuple(processes),
        were_named=bool(pids),
        contents=contents,
        unread=tuple(unread),
    )


def _processes(pids: Sequence[int], proc: Path, unread: list[str]) -> list[ProcessFacts]:
    if pids:
        return [_process(pid, None, proc, unread) for pid in dict.fromkeys(pids)]
    try:
        listed = read_processes(proc)
    except NotSupportedError as error:
        unread.append(f"which processes have KSM on: {error} ({error.hint})")
        return []
    hidden = len(read_hidden_pids(proc))
    if hidden:
        unread.append(f"what {hidden} processes of other users have to do with KSM (root sees all)")
    found = []
    for process in listed:
        try:
            found.append(_process(process.pid, process, proc, unread))
        except ProcessGoneError:
            continue
    return found


def _process(pid: int, ksm: Process | None, proc: Path, unread: list[str]) -> ProcessFacts:
    comm, user = read_comm(pid, proc), read_user(pid, proc)
    try:
        ksm = ksm or read_process(pid, proc)
    except KernelError as error:
        unread.append(_told(error))
    sums: Counter[str] = Counter()
    unable: Counter[str] = Counter()
    ksm_bytes: int | None = None
    has_smaps, has_agent = True, False
    try:
        for vma, sizes, flags in read_smaps_rows(pid, _SIZES, proc):
            size, rss, anonymous, huge, swap, shared, merged = (value or 0 for value in sizes)
            has_agent = has_agent or _AGENT in vma.path
            if "mg" in flags:
                sums.update(
                    marked_regions=1,
                    marked_size=size,
                    marked_anonymous=anonymous,
                    marked_file=rss - anonymous,
                    marked_huge=huge,
                    marked_swap=swap,
                    marked_shared_dirty=shared,
                )
                if sizes[-1] is not None:
                    ksm_bytes = (ksm_bytes or 0) + merged
                continue
            why = obstacle_of(vma.path, flags)
            if why is None:
                sums["able_anonymous"] += anonymous
            else:
                unable[why] += rss
    except KernelError as error:
        unread.append(_told(error))
        has_smaps = False
    return ProcessFacts(
        pid=pid,
        comm=comm,
        user=user,
        ksm=ksm,
        has_smaps=has_smaps,
        has_agent=has_agent if has_smaps else None,
        marked_ksm=ksm_bytes,
        unable=dict(unable),
        pinned=_pinned(pid, proc),
        **sums,
    )


def _pinned(pid: int, proc: Path) -> int:
    try:
        text = read_process_text(pid, "status", proc)
    except KernelError:
        return 0
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == "VmPin":
            return int(rest.split()[0]) * 1024
    return 0


def _told(error: KernelError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


def _nodes(sys: Path) -> int:
    """Count the nodes that have memory ("0-1,3"); 1 where the kernel knows none."""
    try:
        text = (sys / "devices/system/node/has_memory").read_text().strip()
    except OSError:
        return 1
    count = 0
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count or 1


def _chosen(path: Path) -> str | None:
    try:
        text = path.read_text()
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
