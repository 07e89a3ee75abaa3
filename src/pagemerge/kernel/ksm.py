"""`KernelKsm`: Linux's own samepage merging behind the common interface."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Generator, Iterator
from pathlib import Path
from typing import ClassVar, Final

from pagemerge.errors import NotSupportedError, PagemergeError, ProcessGoneError
from pagemerge.kernel.guard import Guard
from pagemerge.kernel.knobs import SYS_KSM, KernelKnobs, read_counters
from pagemerge.kernel.processes import read_hidden_pids, read_processes, read_regions
from pagemerge.kernel.requests import advise_region, set_memory_merge
from pagemerge.ksm import Event, Ksm, LostEvents, Process, Region, Stop
from pagemerge.memory import PROC, iter_pids, read_comm, read_stat, read_uptime_seconds, read_vmstat

__all__ = ["KernelKsm"]

_LOOK_SECONDS = 0.01
# $1 is the file of the knob run, $2 what stood there.
_PUT_BACK: Final = 'read -r now < "$1"; [ "$now" = 1 ] && echo "$2" > "$1"'


class KernelKsm(Ksm):
    """The kernel's KSM, through /sys/kernel/mm/ksm and /proc."""

    implementation: ClassVar[str] = "kernel"

    def __init__(self, sys_ksm: Path = SYS_KSM, proc: Path = PROC) -> None:
        """Use this machine's kernel, or the files of a recorded one.

        Raises:
            NotSupportedError: this kernel has no KSM.
        """
        if not sys_ksm.is_dir():
            raise NotSupportedError(
                f"this kernel has no KSM: {sys_ksm} is missing",
                where=str(sys_ksm),
                hint="it takes Linux 2.6.32, built with CONFIG_KSM; or use --ksm engine",
            )
        self._sys_ksm = sys_ksm
        self._proc = proc
        self._knobs = KernelKnobs(sys_ksm)

    @property
    def knobs(self) -> KernelKnobs:
        """The settings (/sys/kernel/mm/ksm)."""
        return self._knobs

    def counters(self) -> dict[str, int | None]:
        """Read all counters (/sys/kernel/mm/ksm); None where this kernel has none."""
        return read_counters(self._sys_ksm)

    def processes(self) -> list[Process]:
        """List the processes that have merging on (/proc/PID/ksm_stat).

        Others' are left out where this user may not look at them.

        Raises:
            NotSupportedError: this kernel tells nothing of processes (before 5.19).
        """
        return read_processes(self._proc)

    def hidden_pids(self) -> list[int]:
        """List the processes that `processes` leaves out, being another user's."""
        return read_hidden_pids(self._proc)

    def regions(self, pid: int) -> list[Region]:
        """List a process's memory (/proc/PID/smaps); see `Ksm.regions`.

        Raises:
            ProcessGoneError, NotPermittedError: it ended, or may not be looked at.
        """
        return read_regions(pid, self._proc)

    def events(
        self,
        seconds: float | None = None,
        *,
        names: Collection[str] | None = None,
        stop: Stop | None = None,
        buffer_bytes: int | None = None,
    ) -> Generator[Event | LostEvents, None, None]:
        """Follow the trace events (tracefs events/ksm); see `Ksm.events`.

        Args:
            seconds: how long; None: until `stop` or closed.
            names: those wanted; None: all that this kernel has.
            stop: ends it once set.
            buffer_bytes: the kernel's buffer for each CPU; None: 16 MiB, less where there are many.

        Raises:
            CommandError: there is no event of such a name.
            NotSupportedError: this kernel has no such events (before 6.4), or no tracing.
            NotPermittedError: tracing takes root.
            KernelError: tracefs is not mounted.
        """
        from pagemerge.kernel.tracing import trace_events

        return trace_events(
            seconds, names=names, stop=stop, buffer_bytes=buffer_bytes, proc=self._proc
        )

    def enable(self, pid: int) -> None:
        """Have a running process call prctl(PR_SET_MEMORY_MERGE, 1); see `set_memory_merge`."""
        set_memory_merge(pid, on=True)

    def disable(self, pid: int) -> None:
        """Have a running process call prctl(PR_SET_MEMORY_MERGE, 0); see `set_memory_merge`."""
        set_memory_merge(pid, on=False)

    def advise(self, pid: int, start: int, end: int, *, on: bool = True) -> None:
        """Have a running process call madvise for a part of its memory; see `advise_region`."""
        advise_region(pid, start, end, on=on)

    def settle(self, passes: int = 3, timeout: float = 60.0) -> None:
        """Wait until that many passes of ksmd have ended (full_scans).

        Raises:
            PagemergeError: they have not, in `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        last = self._full_scans()
        left = passes
        while left > 0:
            if time.monotonic() > deadline:
                raise PagemergeError(
                    f"ksmd has not ended {passes} passes in {timeout:g} seconds",
                    hint="it needs run=1, pages_to_scan above 0 and a process with merging on",
                )
            time.sleep(_LOOK_SECONDS)
            now = self._full_scans()
            left -= now - last if now >= last else now  # run=2 starts it anew
            last = now

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Set run=1 for as long as this lasts, then put back what was there.

        A guard puts it back when this process is killed. What somebody else sets meanwhile stays.

        Raises:
            NotPermittedError: it takes root.
            KernelError: the guard can't be started.
        """
        found = self._knobs["run"]
        if found == 1 or found is None:
            yield
            return
        file = str(self._sys_ksm / "run")
        guard = Guard("pagemerge-run-guard", _PUT_BACK, [file, str(found)])
        try:
            self._knobs.set(run=1)
            yield
        finally:
            try:
                if self._knobs["run"] == 1:  # else somebody has decided otherwise meanwhile
                    self._knobs.set(run=found)
            finally:
                guard.dismiss()

    def facts(self) -> dict[str, object]:
        """Say ksmd's pid and times, and vmstat's cow_ksm and ksm_swpin_copy."""
        facts: dict[str, object] = {}
        pid = self._ksmd()
        if pid is not None:
            facts["pid"] = pid
            facts["cpu_seconds"] = read_stat(pid, self._proc).cpu_seconds
            uptime = read_uptime_seconds(self._proc)
            if uptime is not None:
                facts["uptime_seconds"] = uptime
        vmstat = read_vmstat(self._proc)
        for name in ("cow_ksm", "ksm_swpin_copy"):
            if name in vmstat:
                facts[name] = vmstat[name]
        return facts

    def _full_scans(self) -> int:
        return self.counters()["full_scans"] or 0

    def _ksmd(self) -> int | None:
        """Find it: a child of kthreadd (2), started with the machine, so that few come before."""
        try:
            if read_comm(2, self._proc).strip() != "kthreadd":
                return None  # a container's /proc shows no kernel threads: don't look through it
        except ProcessGoneError:
            pass
        for pid in iter_pids(self._proc):
            try:
                if read_comm(pid, self._proc) != "ksmd":
                    continue
                if read_stat(pid, self._proc).is_kernel_thread:
                    return pid
            except ProcessGoneError:
                continue
        return None
