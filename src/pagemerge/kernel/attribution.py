"""Whose memory a trace event is about: what the kernel lets one know, and how it is known.

KSM's events name an address space (`mm`, a kernel address) and come from ksmd's context, so that
they don't tell a process. Three things do:

- **context**: `ksm_enter` comes from the process that registers itself (madvise, prctl, exec);
- **fork**: when a registered process forks, its child is registered in the parent's context, and
  `task_newtask` follows in the same thread, with the child's pid;
- **lookup**: reading /proc/PID/cmdline takes the lock of PID's address space, and the event
  `mmap_lock_start_locking` of this very thread has its address. That finds processes that were
  registered before, and proves the two others right or wrong.

`Attribution` is fed the records in the order of their times and reads no file but /proc/TID/status.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pagemerge.errors import PagemergeError
from pagemerge.memory import PROC, read_process_text

__all__ = ["Attribution", "Owner", "read_tgid"]

CLONE_VM: Final = 0x100
CLONE_THREAD: Final = 0x10000
_TASKS_MAX: Final = 1 << 16  # threads that are remembered


class Owner:
    """Who has an address space: `pid`, None while unknown, and `how` that is known.

    It is one object for all events of the address space, so that an event that waits to be handed
    out profits from what is learned meanwhile.
    """

    __slots__ = ("how", "pid", "round")

    def __init__(self, pid: int | None = None, how: str | None = None) -> None:
        """Begin with what is known."""
        self.pid = pid
        self.how = how if pid is not None else None
        self.round = 0

    def __repr__(self) -> str:
        """Show it."""
        return f"Owner({self.pid}, {self.how!r})"


class Attribution:
    """What is known of address spaces."""

    def __init__(self, tgid_of: Callable[[int], int | None]) -> None:
        """Begin with nothing; `tgid_of` gives the process of a thread that was there before."""
        self._tgid_of = tgid_of
        self._owners: dict[int, Owner] = {}
        self._last_enter: dict[int, int] = {}  # of a thread, the address space it registered last
        self._tgids: dict[int, int] = {}  # threads that were seen to begin, or looked up
        self._windows: list[tuple[int, int, int]] = []  # when /proc of which pid was read
        self._round = 0
        self._round_begin = 0  # in _windows
        self._own_mm: int | None = None
        self.unknown = False

    def owner(self, mm: int) -> Owner:
        """Give the owner of an address space; `unknown` is set where a lookup may tell it."""
        found = self._owners.get(mm)
        if found is None:
            found = self._owners[mm] = Owner()
        if found.pid is None:
            self.unknown = True
        return found

    def enter(self, tid: int, mm: int) -> Owner:
        """Take a ksm_enter: the address may have been another process's before."""
        owner = self._owners[mm] = Owner(self._process(tid), "context")
        self._last_enter[tid] = mm
        return owner

    def begin(self, mm: int) -> Owner:
        """Take a ksm_enter of which nobody knows whose it is, until a lookup tells."""
        self._owners.pop(mm, None)
        return self.owner(mm)

    def exit(self, mm: int) -> Owner:
        """Take a ksm_exit, which also makes the address free for others."""
        owner = self._owners.pop(mm, None) or Owner()
        for tid in [tid for tid, entered in self._last_enter.items() if entered == mm]:
            del self._last_enter[tid]
        return owner

    def newtask(self, tid: int, child: int, clone_flags: int) -> None:
        """Take a task_newtask: a thread, or a process that may have just been registered."""
        if clone_flags & CLONE_THREAD:
            self._remember(child, self._process(tid))
            return
        self._remember(child, child)
        # With memory of its own it is registered exactly when its parent is: the last address space
        # that this thread has registered is the child's. Taken only once.
        mm = None if clone_flags & CLONE_VM else self._last_enter.pop(tid, None)
        if mm is not None and mm in self._owners:
            owner = self._owners[mm]
            owner.pid, owner.how = child, "fork"

    def begin_round(self) -> None:
        """Begin to look all processes up: `looked_up` tells of each."""
        self._round += 1
        # the records of the round before may still be on their way
        del self._windows[: self._round_begin]
        self._round_begin = len(self._windows)
        self.unknown = False

    def looked_up(self, pid: int, begin: int, end: int) -> None:
        """Tell when /proc/PID was read, nanoseconds of the trace's clock."""
        self._windows.append((begin, end, pid))
        self._remember(pid, pid)  # it may have ended when its ksm_enter is read

    def locked(self, time: int, mm: int, own_pid: int) -> None:
        """Take an mmap_lock event of this very thread."""
        at = bisect_right(self._windows, time, key=lambda window: window[0]) - 1
        if at < 0 or time > self._windows[at][1]:
            return
        pid = self._windows[at][2]
        if pid == own_pid:
            self._own_mm = mm
        elif mm == self._own_mm:
            return  # a page fault of this process, not what it was reading
        owner = self._owners.get(mm)
        if owner is None:
            owner = self._owners[mm] = Owner()
        # A child of vfork shares its parent's memory: the first, which is the older, has it.
        if owner.pid != pid and owner.round < self._round:
            owner.pid, owner.how = pid, "lookup"
        owner.round = self._round

    def forget(self) -> None:
        """Trust nothing any more: events that tell of address spaces were lost."""
        self._owners.clear()
        self._last_enter.clear()
        self._tgids.clear()
        self.unknown = True

    def _remember(self, tid: int, process: int | None) -> None:
        self._tgids.pop(tid, None)  # another's before, or to be the youngest again
        if process is not None:
            self._tgids[tid] = process
        if len(self._tgids) > _TASKS_MAX:
            del self._tgids[next(iter(self._tgids))]

    def _process(self, tid: int) -> int | None:
        return self._tgids.get(tid) or self._tgid_of(tid)


def read_tgid(tid: int, proc: Path = PROC) -> int | None:
    """Find the process of a thread (/proc/TID/status); None when it has ended."""
    try:
        text = read_process_text(tid, "status", proc)
    except PagemergeError:
        return None
    for line in text.splitlines():
        if line.startswith("Tgid:"):
            return int(line.split()[1])
    return None
