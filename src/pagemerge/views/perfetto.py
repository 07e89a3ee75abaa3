"""A trace as a file for Perfetto (ui.perfetto.dev) and chrome://tracing: Chrome trace event JSON.

ksmd's passes are slices on its track, merges are instants on the track of the process whose page
it was, with a counter of its merged pages. The file is whole JSON after each write: its last two
bytes close it, and the next write takes their place, so that a trace that is interrupted in
whatever way can be opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pagemerge.errors import CommandError
from pagemerge.ksm import Event, LostEvents
from pagemerge.views.trace_summary import MERGE_EVENTS, errno_name

__all__ = ["PerfettoFile"]

_HEAD: Final = b'{"displayTimeUnit":"ms","traceEvents":[\n'
_TAIL: Final = b"\n]}"
_CHUNK_BYTES: Final = 1 << 18  # written in one go
_COUNTER_SECONDS: Final = 0.01  # between two values of a counter
# The track where ksmd's pid is not known: PID_MAX_LIMIT, which no process has. 0 is the idle task.
_KSMD: Final = 1 << 22
_EXACT: Final = 1 << 53  # what is larger is rounded by readers of JSON: pointers


class PerfettoFile:
    """Writes the file; a context manager.

    Perfetto calls a counter by its name and its argument's: "merged pages", "advisor cpu_percent".
    Times are microseconds of the monotonic clock, as in Perfetto's own traces.
    """

    def __init__(
        self, path: Path, name_of: Callable[[int], str | None], ksmd: int | None = None
    ) -> None:
        """Create the file, or empty it.

        Args:
            path: the file.
            name_of: gives a process's name.
            ksmd: the pid of who merges.

        Raises:
            CommandError: it can't be written.
        """
        self.path = path
        self._name_of = name_of
        self._ksmd = ksmd or _KSMD
        self._named: set[int] = set()
        self._merged: dict[int, int] = {}
        self._counted: dict[int, float] = {}  # when a counter was written last
        self._lines: list[bytes] = []
        self._bytes = 0
        self._end = len(_HEAD)
        self._is_first = True
        self._in_pass = False
        self._time = 0.0
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise CommandError(f"{path} can't be written: {error.strerror}") from error
        try:
            self._pwrite(_HEAD + _TAIL, 0)
            self._name(self._ksmd, "ksmd")
            self.flush()
        except BaseException:
            os.close(self._file)
            raise

    def add(self, event: Event | LostEvents) -> None:
        """Take an event.

        Raises:
            CommandError: the disk is full, or the like.
        """
        if isinstance(event, LostEvents):
            text = f"{event.count} events lost"
            self._put(self._ksmd, "i", text, {"lost": event.count}, s="g")
        else:
            self._time = max(self._time, event.time)
            self._add(event)
        if self._bytes >= _CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has been taken; the file is whole afterwards.

        Raises:
            CommandError: the disk is full, or the like.
        """
        if not self._lines:
            return
        text = (b"" if self._is_first else b",\n") + b",\n".join(self._lines)
        self._pwrite(text + _TAIL, self._end)
        self._end += len(text)
        self._is_first = False
        self._lines.clear()
        self._bytes = 0

    def close(self) -> None:
        """Write the counters' last values, end the pass that is under way, close the file."""
        try:
            for pid in self._merged:
                self._count(pid)
            if self._in_pass:
                self._put(self._ksmd, "E", "pass", {"unfinished": True})
            self.flush()
        finally:
            os.close(self._file)

    def __enter__(self) -> Self:
        """Write it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _add(self, event: Event) -> None:
        name, fields, pid = event.name, event.fields, event.pid
        track = self._ksmd if pid is None else pid
        if pid is not None and pid not in self._named:
            self._name(pid, self._name_of(pid) or "(ended)")
        args: dict[str, Any] = {
            name: hex(value) if value >= _EXACT else value for name, value in fields.items()
        }
        if event.how is not None:
            args["how"] = event.how
        if name == "ksm_start_scan":
            if self._in_pass:  # its end was lost
                self._put(self._ksmd, "E", "pass", {"unfinished": True})
            self._in_pass = True
            self._put(self._ksmd, "B", "pass", args)
        elif name == "ksm_stop_scan":
            if self._in_pass:
                self._put(self._ksmd, "E", "pass", args)
            self._in_pass = False
        elif name in MERGE_EVENTS:
            err = fields.get("err", 0)
            what = "zero page" if name == "ksm_merge_one_page" else "merge"
            self._put(track, "i", f"{what}: {errno_name(err)}" if err else what, args, s="t")
            if not err:
                self._merged[track] = self._merged.get(track, 0) + 1
                if self._time - self._counted.get(track, 0.0) >= _COUNTER_SECONDS:
                    self._count(track)
        else:
            self._put(track, "i", name, args, s="t")
            if name == "ksm_advisor":
                for item in ("pages_to_scan", "cpu_percent"):
                    if item in fields:
                        self._put(self._ksmd, "C", "advisor", {item: fields[item]})

    def _count(self, track: int) -> None:
        self._counted[track] = self._time
        self._put(track, "C", "merged", {"pages": self._merged[track]})

    def _name(self, pid: int, name: str) -> None:
        self._named.add(pid)
        for kind in ("process_name", "thread_name"):
            self._put(pid, "M", kind, {"name": name})

    def _put(self, pid: int, phase: str, name: str, args: dict[str, Any], **more: str) -> None:
        item = {
            "name": name,
            "cat": "ksm",
            "ph": phase,
            "ts": round(self._time * 1e6, 3),
            "pid": pid,
            "tid": pid,
            **more,
            "args": args,
        }
        line = json.dumps(item, separators=(",", ":")).encode()
        self._lines.append(line)
        self._bytes += len(line) + 2

    def _pwrite(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self._file, view, at)
                view, at = view[count:], at + count
        except OSError as error:
            raise CommandError(f"{self.path} can't be written: {error.strerror}") from error
