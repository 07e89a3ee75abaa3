"""The engine's daemon, spoken to over its control socket (docs/reference/control-protocol.md)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Collection, Generator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pagemerge import errors
from pagemerge.engine import paths
from pagemerge.errors import (
    EngineError,
    PagemergeError,
    ProcessGoneError,
    RejectedError,
)
from pagemerge.ksm import (
    COUNTERS,
    KNOBS,
    PROCESS_ITEMS,
    Change,
    Event,
    Knobs,
    KnobValue,
    Ksm,
    LostEvents,
    Process,
    Region,
    Stop,
    known_events,
    plan_changes,
    render_knob,
)
from pagemerge.memory import read_maps
from pagemerge.units import PAGE_SIZE

__all__ = ["ControlConnection", "EngineKnobs", "EngineKsm", "daemon_answers", "no_client"]

ANSWER_SECONDS = 30.0  # the daemon answers between slices of work of some 10 ms
STOP_SECONDS = 0.1  # how soon the end of a trace is noticed
UNMERGE_SECONDS = 75.0  # run=2 answers when everything is unmerged

_PROCESS_FIELDS = frozenset({"pid", "comm", *(item.name for item in PROCESS_ITEMS)})
_EVENT_HEAD = frozenset({"event", "time", "pid"})


class _LostError(EngineError):
    """The connection has ended; a new daemon may be there."""


class ControlConnection:
    """Requests and answers, a line of JSON each."""

    def __init__(self, runtime: Path) -> None:
        """Connect to the daemon of a runtime folder.

        Raises:
            EngineError: no daemon is there, or it belongs to somebody else.
        """
        self.path = runtime / paths.CONTROL_SOCKET
        self._buffer = b""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._sock.settimeout(ANSWER_SECONDS)
            self._sock.connect(str(self.path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            self._sock.close()
            raise EngineError(
                f"no daemon is running in {runtime}",
                hint="start one with 'pagemerge daemon --detach', or use 'pagemerge run -- CMD'",
            ) from error
        except OSError as error:
            self._sock.close()
            raise EngineError(f"{self.path}: {error.strerror or error}") from error

    def call(self, do: str, *, seconds: float = ANSWER_SECONDS, **arguments: Any) -> Any:
        """Make a request and wait for its answer.

        Raises:
            PagemergeError: what the daemon answered, of the class it named.
            EngineError: the daemon is gone, or does not answer.
        """
        line = json.dumps({"do": do, **arguments}, separators=(",", ":")) + "\n"
        try:
            self._sock.settimeout(seconds)
            self._sock.sendall(line.encode())
        except OSError as error:
            raise _LostError(f"the daemon is gone: {error.strerror or error}") from error
        answer = self.read_line(seconds)
        if answer is None:
            self.close()  # a late answer must not be taken for the next one's
            raise EngineError(
                f"the daemon has not answered {do!r} in {seconds:g} seconds",
                hint="its log says what it is at",
            )
        if answer.get("ok") is True:
            return answer.get("value")
        raise _told_error(answer)

    def read_line(self, seconds: float) -> dict[str, Any] | None:
        """Read the next object; None when none came in time.

        Raises:
            EngineError: the daemon is gone, or what it says is no JSON object.
        """
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._sock.settimeout(left)
            try:
                data = self._sock.recv(1 << 16)
            except TimeoutError:
                return None
            except OSError as error:
                raise _LostError(f"the daemon is gone: {error.strerror or error}") from error
            if not data:
                raise _LostError("the daemon has closed the connection", hint="it has stopped")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise EngineError(f"the daemon's answer is not JSON: {line[:80]!r}") from error
        if not isinstance(answer, dict):
            raise EngineError(f"the daemon's answer is not an object: {line[:80]!r}")
        return answer

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


class EngineKnobs(Knobs):
    """The daemon's settings."""

    def __init__(self, ksm: EngineKsm) -> None:
        """Read and write through `ksm`."""
        self._ksm = ksm

    def read(self) -> dict[str, KnobValue | None]:
        """Read all knobs at once.

        Raises:
            EngineError: the daemon is gone.
        """
        return _knobs(self._ksm.status()["knobs"])

    def plan(self, **values: KnobValue | bool) -> list[Change]:
        """Check values as `set` would; nothing is written (see `Knobs.plan`)."""
        status = self._ksm.status()
        shared = status["counters"].get("pages_shared", 0)
        return plan_changes(values, _knobs(status["knobs"]), shared)

    def set(self, **values: KnobValue | bool) -> list[Change]:
        """Set knobs; the daemon checks all before it changes any (see `Knobs.set`)."""
        changes = self.plan(**values)
        if changes:
            texts = {name: render_knob(value) for name, value in values.items()}
            self._ksm.call("set", seconds=UNMERGE_SECONDS, values=texts)
        return changes


class EngineKsm(Ksm):
    """Samepage merging by this project's daemon.

    The connection is made when it is first needed and made anew when the daemon was restarted.
    """

    implementation: ClassVar[str] = "engine"

    def __init__(self, runtime: Path | None = None) -> None:
        """Speak to the daemon of a runtime folder; None: that which the environment names.

        Root may name any user's folder (`PAGEMERGE_RUNTIME_DIR`).

        Raises:
            EngineError: the folder is not private to its user.
        """
        self.runtime = runtime or paths.runtime_dir(visiting=True)
        self._connection: ControlConnection | None = None
        self._knobs = EngineKnobs(self)

    @property
    def knobs(self) -> EngineKnobs:
        """The settings; names and ranges are those of /sys/kernel/mm/ksm."""
        return self._knobs

    def call(self, do: str, *, seconds: float = ANSWER_SECONDS, **arguments: Any) -> Any:
        """Make a request of the control protocol; returns the answer's value.

        Raises:
            PagemergeError: what the daemon answered.
            EngineError: no daemon is running, or it does not answer.
        """
        kept = self._connection is not None
        if self._connection is None:
            self._connection = ControlConnection(self.runtime)
        try:
            return self._connection.call(do, seconds=seconds, **arguments)
        except _LostError:
            self.close()
            if not kept or do == "stop":
                raise
        return self.call(do, seconds=seconds, **arguments)  # there may be a new daemon

    def status(self) -> dict[str, Any]:
        """Read `knobs`, `counters` and facts on the `daemon` in one answer."""
        status: dict[str, Any] = self.call("status")
        return status

    def counters(self) -> dict[str, int | None]:
        """Read all counters by name; None for what this daemon does not count.

        Raises:
            EngineError: no daemon is running.
        """
        found: Mapping[str, int] = self.status()["counters"]
        return {counter.name: found.get(counter.name) for counter in COUNTERS}

    def processes(self) -> list[Process]:
        """List the processes that have an agent, also those that have merging off."""
        return [
            Process(
                **{name: row.get(name) for name in _PROCESS_FIELDS},
                own={name: value for name, value in row.items() if name not in _PROCESS_FIELDS},
            )
            for row in self.call("processes")
        ]

    def regions(self, pid: int) -> list[Region]:
        """List the regions of a process that ksmd looks at.

        Raises:
            EngineError: the process has no agent.
        """
        return [
            Region(
                start=row["start"],
                end=row["end"],
                name=row.get("name", ""),
                merged_bytes=row.get("merged_bytes"),
                zero_bytes=row.get("zero_bytes"),
                present_bytes=row["pages"] * PAGE_SIZE if "pages" in row else None,
                unshared_pages=row.get("unshared_pages"),
                mergeable=True,
            )
            for row in self.call("regions", pid=pid)
        ]

    def events(
        self,
        seconds: float | None = None,
        *,
        names: Collection[str] | None = None,
        stop: Stop | None = None,
    ) -> Generator[Event | LostEvents, None, None]:
        """Follow the events; see `Ksm.events`.

        Raises:
            CommandError: there is no event of such a name.
            EngineError: no daemon is running, or it stops meanwhile.
        """
        wanted = known_events(names)
        deadline = None if seconds is None else time.monotonic() + seconds
        with contextlib.closing(ControlConnection(self.runtime)) as connection:
            connection.call("events", seconds=ANSWER_SECONDS)
            while stop is None or not stop.is_set():
                left = 3600.0 if deadline is None else deadline - time.monotonic()
                wait = left if stop is None else min(left, STOP_SECONDS)
                line = connection.read_line(wait) if left > 0 else None
                if line is not None:
                    event = _event(line)
                    if isinstance(event, LostEvents) or event.name in wanted:
                        yield event
                elif left <= 0:
                    return

    def enable(self, pid: int) -> None:
        """Switch merging on for a process that has an agent.

        Raises:
            EngineError: it has none; foreign processes can't be taken in (docs: engine).
        """
        self.call("enable", pid=pid)

    def disable(self, pid: int) -> None:
        """Switch merging off for a process that has an agent, and unmerge it.

        Raises:
            EngineError: it has none.
        """
        self.call("disable", pid=pid)

    def advise(self, pid: int, start: int, end: int, *, on: bool = True) -> None:
        """Mark a part of the memory of a process that has an agent.

        Raises:
            EngineError: it has none.
            RejectedError: these are no whole pages.
        """
        self.call("advise", pid=pid, start=start, end=end, on=on)

    def check(self, pid: int, region: tuple[int, int] | None = None) -> None:
        """Find what would keep a process from being told to merge; nothing is changed.

        Args:
            pid: the process.
            region: the part of its memory that is meant, if not all.

        Raises:
            EngineError: it has no agent, or that refuses, or has hung up.
            ProcessGoneError: it has ended.
            RejectedError: the region is not mapped, or shared.
        """
        rows = [row for row in self.processes() if row.pid == pid]
        if not rows:
            raise no_client(pid)
        row = rows[-1]
        name = f"process {pid} ({row.comm})"
        if row.own.get("refused"):
            raise EngineError(f"{name} can't be merged: {row.own['refused']}")
        if not row.own.get("connected"):
            raise EngineError(f"the agent of {name} has closed its connection")
        if region is not None:
            _check_region(name, pid, *region)

    def settle(self, passes: int = 3, timeout: float = 60.0) -> None:
        """Wait until that many passes have ended.

        Raises:
            EngineError: they have not, in `timeout` seconds; the hint says what holds them up.
        """
        self.call("settle", seconds=timeout + ANSWER_SECONDS, passes=passes, timeout=timeout)

    def facts(self) -> dict[str, object]:
        """Say what the daemon tells of itself: pid, uptime_seconds, cpu_seconds, barriers ..."""
        facts: dict[str, object] = self.status()["daemon"]
        return facts

    def stop(self, timeout: float = 30.0) -> None:
        """End the daemon, and wait until it is gone; clients keep their memory.

        Raises:
            EngineError: no daemon is running, or it does not end.
        """
        self.call("stop")
        self.close()
        deadline = time.monotonic() + timeout
        while daemon_answers(self.runtime):
            if time.monotonic() > deadline:
                raise EngineError(f"the daemon has not ended in {timeout:g} seconds")
            time.sleep(0.01)

    def close(self) -> None:
        """Hang up; the next request connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def daemon_answers(runtime: Path) -> bool:
    """Tell whether a daemon listens in a runtime folder."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(str(runtime / paths.CONTROL_SOCKET))
        except OSError:
            return False
        return True


def _knobs(values: Mapping[str, KnobValue]) -> dict[str, KnobValue | None]:
    return {knob.name: values.get(knob.name) for knob in KNOBS}


def _check_region(name: str, pid: int, start: int, end: int) -> None:
    """Find out whether there is anything private in a region; see `EngineKsm.check`."""
    there = [vma for vma in read_maps(pid) if vma.start < end and vma.end > start]
    if not any(vma.is_private for vma in there):
        why = "it is shared memory" if there else "nothing is mapped there"
        raise RejectedError(
            f"nothing in {start:x}-{end:x} of {name} could be marked: {why}", errno=errno.ENOMEM
        )


def _event(line: Mapping[str, Any]) -> Event | LostEvents:
    if "lost" in line:
        return LostEvents(line["lost"])
    fields = {name: value for name, value in line.items() if name not in _EVENT_HEAD}
    pid = line.get("pid")
    return Event(line["event"], line["time"], fields, pid, None if pid is None else "client")


def _told_error(answer: Mapping[str, Any]) -> PagemergeError:
    """Make the error that the daemon has named."""
    message, hint = str(answer.get("message")), answer.get("hint")
    kind = getattr(errors, str(answer.get("error")), EngineError)
    if kind is ProcessGoneError and isinstance(answer.get("pid"), int):
        return ProcessGoneError(answer["pid"])
    if kind is RejectedError:
        return RejectedError(message, hint=hint, errno=answer.get("errno"))
    if isinstance(kind, type) and issubclass(kind, PagemergeError) and kind is not ProcessGoneError:
        told: PagemergeError = kind(message, hint=hint)
        return told
    return EngineError(message, hint=hint)


def no_client(pid: int) -> EngineError | ProcessGoneError:
    """Make the error for a process that the daemon does not know: does it run at all?"""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return ProcessGoneError(pid)
    except OSError:
        pass  # somebody else's
    return EngineError(
        f"process {pid} is not a client of the engine",
        hint="start it with 'pagemerge run --connect -- CMD', or call pagemerge.enable()",
    )
