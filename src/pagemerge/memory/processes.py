"""Processes: their names, times, sizes, and who is whose child (/proc/PID/stat, statm)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pagemerge.errors import FormatError, NotSupportedError, ProcessGoneError
from pagemerge.memory.files import PROC, iter_pids, read_process_text, reading

__all__ = [
    "ProcessStat",
    "Statm",
    "parse_stat",
    "parse_statm",
    "read_comm",
    "read_cpu_seconds",
    "read_live_threads",
    "read_stat",
    "read_statm",
    "read_thread_states",
    "read_tree",
]


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """Some fields of /proc/PID/stat.

    Attributes:
        state: one letter; `Z` is a zombie.
        utime: user-mode CPU time, clock ticks.
        stime: kernel-mode CPU time, clock ticks.
        starttime: when it started after boot, clock ticks; a pid and this name one process.
        is_kernel_thread: whether it has no memory of its own (PF_KTHREAD).
    """

    pid: int
    comm: str
    state: str
    ppid: int
    utime: int
    stime: int
    starttime: int
    is_kernel_thread: bool

    @property
    def cpu_seconds(self) -> float:
        """CPU time it has used, its ended threads included."""
        return (self.utime + self.stime) / _ticks_per_second()


class Statm(NamedTuple):
    """/proc/PID/statm, pages."""

    size: int
    resident: int
    shared: int
    text: int
    lib: int
    data: int
    dt: int


_PF_KTHREAD = 0x00200000


def parse_stat(text: str, path: str = "stat") -> ProcessStat:
    """Read a stat line; the name may hold blanks and parentheses.

    Raises:
        FormatError: it is none.
    """
    try:
        head, _, tail = text.rpartition(")")
        pid, _, comm = head.partition(" (")
        fields = tail.split()
        return ProcessStat(
            pid=int(pid),
            comm=comm,
            state=fields[0],
            ppid=int(fields[1]),
            utime=int(fields[11]),
            stime=int(fields[12]),
            starttime=int(fields[19]),
            is_kernel_thread=bool(int(fields[6]) & _PF_KTHREAD),
        )
    except (ValueError, IndexError) as error:
        raise FormatError(f"{path}: {text[:80]!r} is no stat line") from error


def parse_statm(text: str, path: str = "statm") -> Statm:
    """Read a statm line.

    Raises:
        FormatError: it is none.
    """
    try:
        return Statm(*map(int, text.split()))
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path}: {text[:80]!r} is no statm line") from error


def read_stat(pid: int, proc: Path = PROC) -> ProcessStat:
    """Read /proc/PID/stat.

    Raises:
        ProcessGoneError: it has ended.
    """
    return parse_stat(read_process_text(pid, "stat", proc), f"{proc}/{pid}/stat")


def read_statm(pid: int, proc: Path = PROC) -> Statm:
    """Read /proc/PID/statm.

    Raises:
        ProcessGoneError: it has ended.
    """
    return parse_statm(read_process_text(pid, "statm", proc), f"{proc}/{pid}/statm")


def read_thread_states(pid: int, proc: Path = PROC) -> list[str]:
    """Read the state of each of a process's threads: one letter, as in /proc/PID/task/*/stat.

    Raises:
        ProcessGoneError: it has ended.
    """
    tasks = proc / str(pid) / "task"
    with reading(pid, tasks, proc):
        names = [entry.name for entry in tasks.iterdir()]
    states = []
    for name in names:
        try:
            text = read_process_text(pid, f"task/{name}/stat", proc)
        except (ProcessGoneError, NotSupportedError):  # the thread has ended
            continue
        states.append(parse_stat(text, f"{tasks}/{name}/stat").state)
    return states


def read_live_threads(pid: int, proc: Path = PROC) -> list[int]:
    """Read the numbers of a process's threads that have not exited; the first may be none of them.

    Empty when the process has ended.
    """
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for entry in (proc / str(pid) / "task").iterdir():
            with suppress(ProcessGoneError, NotSupportedError):
                text = read_process_text(pid, f"task/{entry.name}/stat", proc)
                if parse_stat(text, str(entry)).state not in "ZX":
                    found.append(int(entry.name))
    return found


def read_comm(pid: int, proc: Path = PROC) -> str:
    """Read a process's short name.

    Raises:
        ProcessGoneError: it has ended.
    """
    return read_process_text(pid, "comm", proc).rstrip("\n")


def read_cpu_seconds(pid: int, proc: Path = PROC) -> float:
    """Read the CPU time that a process has used, all its threads.

    Raises:
        ProcessGoneError: it has ended.
    """
    return read_stat(pid, proc).cpu_seconds


def read_tree(roots: Iterable[int], proc: Path = PROC) -> list[int]:
    """Find processes and all their descendants that are there, parents before children.

    It is a walk over all of /proc: processes that start or end meanwhile may be missed.
    """
    children: dict[int, list[int]] = defaultdict(list)
    for pid in iter_pids(proc):
        try:
            children[read_stat(pid, proc).ppid].append(pid)
        except ProcessGoneError:
            continue
    found: dict[int, None] = {}
    waiting = [pid for pid in roots if (proc / str(pid)).exists()]
    while waiting:
        pid = waiting.pop(0)
        if pid not in found:
            found[pid] = None
            waiting.extend(children[pid])
    return list(found)


@cache
def _ticks_per_second() -> int:
    return os.sysconf("SC_CLK_TCK")
