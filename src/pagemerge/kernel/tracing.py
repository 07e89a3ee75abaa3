"""Following ksmd's trace events (tracefs events/ksm) in a private instance.

Two instances are used. The first has the events that come in floods, merges above all; when it
overflows, merges are lost and counted. The second has the rare ones that tell whose an address
space is, so that a flood does not make the trace forget who is who.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Collection, Generator, Iterator
from pathlib import Path
from typing import Any, Final

from pagemerge.errors import NotSupportedError
from pagemerge.kernel.attribution import Attribution, Owner, read_tgid
from pagemerge.kernel.trace_buffers import Buffers
from pagemerge.kernel.trace_pages import Record
from pagemerge.kernel.tracefs import TRACEFS, Instances, find_tracefs
from pagemerge.ksm import EVENTS, Event, EventKind, LostEvents, Stop, known_events
from pagemerge.memory import PROC, iter_pids

__all__ = ["KernelTrace", "trace_events"]

_GROUP: Final = "ksm"
_NEWTASK: Final = "task/task_newtask"
_LOCK: Final = "mmap_lock/mmap_lock_start_locking"
_RARE: Final = ("ksm_enter", "ksm_exit")
_TELLING: Final = frozenset({*_RARE, "task_newtask", "mmap_lock_start_locking"})

_BUFFERS_BYTES: Final = 256 << 20  # of all CPUs together
_BUFFER_MAX: Final = 16 << 20  # of one; some 300,000 events
_BUFFER_MIN: Final = 1 << 20
_RARE_BYTES: Final = 1 << 20
_WAKE_PERCENT: Final = 10  # of a buffer, that wakes the reader early
_WAIT_SECONDS: Final = 0.05
# Events are handed out so much later: who an address space belongs to is often told just after it.
_HOLD_NS: Final = 100_000_000
_LOOKUP_SECONDS: Final = 1.0  # between two walks over /proc
_LOOKUP_PIDS: Final = 500  # of a walk, between two readings of the buffers

_INIT_PID_NAMESPACE: Final = "pid:[4026531836]"  # PROC_PID_INIT_INO


class KernelTrace:
    """The trace events of ksmd; a context manager, whose end removes all that was made."""

    def __init__(
        self,
        names: Collection[str] | None = None,
        *,
        buffer_bytes: int | None = None,
        tracefs: Path | None = None,
        proc: Path = PROC,
    ) -> None:
        """Make the instances and begin to record.

        Raises:
            CommandError: there is no event of such a name.
            NotSupportedError: this kernel lacks one that was asked for, or tracing.
            NotPermittedError: tracing takes root.
            KernelError: tracefs is not mounted.
        """
        wanted = known_events(names)
        self._proc = proc
        root = tracefs or find_tracefs(TRACEFS, proc)
        kinds = _kinds_there(root, wanted, is_choice=names is not None)
        self._wanted = frozenset(kind.name for kind in kinds)
        self._pids_are_ours = _read_pid_namespace(proc) in (None, _INIT_PID_NAMESPACE)
        self._attribution = Attribution(lambda tid: read_tgid(tid, proc))
        self._looked_up = float("-inf")
        self._reported = 0  # losses that were handed out
        self._lost_rare = 0  # losses that the attribution has been told of
        self._waiting: deque[tuple[str, int, dict[str, int], Owner | None]] = deque()
        with contextlib.ExitStack() as stack:
            instances = stack.enter_context(Instances(root, 2, proc))
            self._main, self._rare = instances[0], instances[1]
            size = buffer_bytes or default_buffer_bytes(os.cpu_count() or 1)
            for instance, share in ((self._main, size), (self._rare, _RARE_BYTES)):
                instance.write("trace_clock", "mono")  # the clock of time.monotonic()
                instance.write("buffer_size_kb", str(max(4, share // 1024)))
                with contextlib.suppress(NotSupportedError):
                    instance.write("buffer_percent", str(_WAKE_PERCENT))
            main = {}
            for kind in kinds:
                if kind.name not in _RARE:
                    layout = self._main.read_format(f"{_GROUP}/{kind.name}")
                    main[layout.id] = layout
            rare = {}
            for name in (*(f"{_GROUP}/{name}" for name in _RARE), _NEWTASK, _LOCK):
                if self._rare.has_event(name):
                    layout = self._rare.read_format(name)
                    rare[layout.id] = layout
            self._tids: dict[int, int | None] = {}  # threads of this process, as events have them
            self._can_look_up = self._rare.has_event(_LOCK) and self._own_tid() is not None
            self._buffers = Buffers(
                [(self._main, main), (self._rare, rare)], self._main.read_layout()
            )
            stack.callback(self._buffers.close)
            for name in (*(f"{_GROUP}/{name}" for name in _RARE), _NEWTASK):
                if self._rare.has_event(name):
                    self._rare.enable(name)
            self._look_up()
            for layout in main.values():
                self._main.enable(f"{_GROUP}/{layout.name}")
            self._stack = stack.pop_all()

    def read(self) -> Iterator[Event | LostEvents]:
        """Wait a moment, and hand out what has become known; call it again and again."""
        buffers = self._buffers
        buffers.wait(_WAIT_SECONDS)
        buffers.fill()
        now = time.monotonic_ns()
        records = buffers.take()
        self._note_losses()
        self._learn(records)
        if self._attribution.unknown and time.monotonic() - self._looked_up > _LOOKUP_SECONDS:
            self._look_up()
        yield from self._lost(sum(buffers.lost))
        known_until = records[-1].time if records and buffers.has_backlog else now
        yield from self._hand_out(known_until - _HOLD_NS)

    def finish(self) -> Iterator[Event | LostEvents]:
        """End the recording, and hand out the rest, with all losses that were not told yet."""
        for instance in (self._main, self._rare):
            instance.write("tracing_on", "0")
        buffers = self._buffers
        while True:
            buffers.fill()
            records = buffers.take()
            self._learn(records)
            yield from self._lost(sum(buffers.lost))
            yield from self._hand_out(records[-1].time - _HOLD_NS if records else 0)
            if not buffers.has_backlog:
                break
        self._learn(buffers.take_rest())
        yield from self._hand_out(None)
        yield from self._lost(buffers.read_lost(0) + buffers.read_lost(1))

    def close(self) -> None:
        """Remove the instances."""
        self._stack.close()

    def __del__(self) -> None:
        """Remove the instances of a trace that nobody has read."""
        if hasattr(self, "_stack"):
            self.close()

    def __enter__(self) -> KernelTrace:
        """Trace."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the instances."""
        self.close()

    # what is learned

    def _learn(self, records: list[Record]) -> None:
        """Tell the attribution of records in the order of their times, and queue the events."""
        owner_of, rare = self._attribution.owner, self._learn_rare
        queue, wanted = self._waiting.append, self._wanted
        for nanoseconds, layout, values in records:
            name = layout.name
            fields: dict[str, Any] = dict(zip(layout.names, values, strict=False))
            if name in _TELLING:
                owner = rare(name, nanoseconds, fields)
            else:
                mm = fields.get("mm")
                owner = None if mm is None else owner_of(mm)
            if name in wanted:
                queue((name, nanoseconds, fields, owner))

    def _learn_rare(self, name: str, nanoseconds: int, fields: dict[str, Any]) -> Owner | None:
        """Tell the attribution of a record that says whose an address space is."""
        attribution = self._attribution
        if name == "mmap_lock_start_locking":
            attribution.locked(nanoseconds, fields["mm"], os.getpid())
            return None
        if name == "ksm_exit":
            return attribution.exit(fields["mm"])
        if not self._pids_are_ours:  # the thread that it comes from means nobody here
            return attribution.begin(fields["mm"]) if name == "ksm_enter" else None
        if name == "ksm_enter":
            return attribution.enter(fields["common_pid"], fields["mm"])
        attribution.newtask(fields["common_pid"], fields["pid"], fields["clone_flags"])
        return None

    def _look_up(self) -> None:
        """Read a file of every process that takes its address space's lock, and see which it is.

        What the reading sets off in the second instance is learned with its other records.
        """
        if not self._can_look_up:
            return
        attribution = self._attribution
        attribution.begin_round()
        # other threads of this process may take locks at the same time
        self._rare.enable(_LOCK, only=f"common_pid == {self._own_tid()}")
        try:
            own = os.getpid()
            pids = [own, *(pid for pid in iter_pids(self._proc) if pid != own)]
            for count, pid in enumerate(pids, 1):
                begin = time.monotonic_ns()
                with (
                    contextlib.suppress(OSError),
                    (self._proc / str(pid) / "cmdline").open("rb", buffering=0) as file,
                ):
                    begin = time.monotonic_ns()
                    file.read(1)
                attribution.looked_up(pid, begin, time.monotonic_ns())
                if count % _LOOKUP_PIDS == 0:
                    self._buffers.fill()
        finally:
            self._rare.enable(_LOCK, on=False)
            self._looked_up = time.monotonic()

    def _own_tid(self) -> int | None:
        """Give this thread's number as events have it: that of the first pid namespace."""
        tid = threading.get_native_id()
        if self._pids_are_ours:
            return tid
        if tid not in self._tids:
            self._tids[tid] = self._rare.read_writer_tid()
        return self._tids[tid]

    # what is lost

    def _note_losses(self) -> None:
        """Trust no address any more when events were lost that tell of them."""
        lost = self._buffers.lost[1]
        if lost > self._lost_rare:
            self._lost_rare = lost
            self._attribution.forget()

    def _lost(self, total: int) -> Iterator[LostEvents]:
        if total > self._reported:
            yield LostEvents(total - self._reported)
            self._reported = total

    # what is handed out

    def _hand_out(self, until: int | None) -> Iterator[Event]:
        waiting = self._waiting
        while waiting and (until is None or waiting[0][1] <= until):
            name, nanoseconds, fields, owner = waiting.popleft()
            if owner is None:
                yield Event(name, nanoseconds / 1e9, fields)
            else:
                yield Event(name, nanoseconds / 1e9, fields, owner.pid, owner.how)


def trace_events(
    seconds: float | None = None,
    *,
    names: Collection[str] | None = None,
    stop: Stop | None = None,
    buffer_bytes: int | None = None,
    proc: Path = PROC,
) -> Generator[Event | LostEvents, None, None]:
    """Follow the trace events; see `KernelKsm.events`. What is refused is told at once."""
    trace = KernelTrace(names, buffer_bytes=buffer_bytes, proc=proc)
    return _follow(trace, seconds, stop)


def _follow(
    trace: KernelTrace, seconds: float | None, stop: Stop | None
) -> Generator[Event | LostEvents, None, None]:
    with trace:
        deadline = None if seconds is None else time.monotonic() + seconds
        while not (stop is not None and stop.is_set()):
            if deadline is not None and time.monotonic() >= deadline:
                break
            yield from trace.read()
        yield from trace.finish()


def default_buffer_bytes(cpus: int) -> int:
    """Give the buffer for each CPU; merges come from one CPU at a time, from any.

    >>> default_buffer_bytes(2) >> 20, default_buffer_bytes(64) >> 20
    (16, 4)
    """
    return max(_BUFFER_MIN, min(_BUFFER_MAX, _BUFFERS_BYTES // cpus))


def _kinds_there(tracefs: Path, wanted: Collection[str], *, is_choice: bool) -> list[EventKind]:
    folder = tracefs / "events" / _GROUP
    if not folder.is_dir():
        raise NotSupportedError(
            "this kernel has no trace events of KSM",
            where=str(folder),
            hint="Linux 6.4 brought them, where it is built with CONFIG_KSM",
        )
    found = []
    for kind in EVENTS:
        if kind.name not in wanted:
            continue
        if (folder / kind.name).is_dir():
            found.append(kind)
        elif is_choice:
            raise NotSupportedError(
                f"this kernel has no event {kind.name}",
                where=str(folder / kind.name),
                hint=f"Linux {kind.since} brought it",
            )
    return found


def _read_pid_namespace(proc: Path) -> str | None:
    """Tell this process's pid namespace: events have the pids of the first one."""
    try:
        return os.readlink(proc / "self/ns/pid")  # noqa: PTH115
    except OSError:
        return None
