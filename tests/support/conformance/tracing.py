"""The trace events of either implementation as plain tuples, told by themselves, not by pagemerge.

The kernel's come from a private tracefs instance, read as text; the engine's from its control
socket.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pagemerge.engine.client import ControlConnection
from tests.support.conformance.worlds import EngineWorld, KernelWorld, World
from tests.support.tracefs import mounted_tracefs

__all__ = ["TraceEvent", "Tracer", "trace"]

_OWN = frozenset({"mm", "pid", "address", "pfn", "err"})
_LINE = re.compile(r"\s(ksm_\w+): (.*)")
_ERROR = re.compile(r"(?:error|err) (-?\d+)")
_FIELDS = {
    "ksm_start_scan": re.compile(r"seq (?P<seq>\d+) rmap size (?P<rmap_entries>\d+)"),
    "ksm_stop_scan": re.compile(r"seq (?P<seq>\d+) rmap size (?P<rmap_entries>\d+)"),
    "ksm_advisor": re.compile(
        r"ksm scan time (?P<scan_time>\d+) pages_to_scan (?P<pages_to_scan>\d+) "
        r"cpu percent (?P<cpu_percent>\d+)"
    ),
}


class TraceEvent(NamedTuple):
    """An event.

    Attributes:
        name: The kernel's name.
        is_first: Of ksm_merge_with_ksm_page: the page is the first of its content.
        error: The field err, 0 where there is none.
        numbers: Fields that both can tell: those of passes and of the advisor.
    """

    name: str
    is_first: bool
    error: int
    numbers: dict[str, int]


class Tracer:
    """Gives the events since the last call of `take`."""

    def take(self) -> list[TraceEvent]:
        """Take what there is."""
        raise NotImplementedError


class _KernelTracer(Tracer):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self) -> list[TraceEvent]:
        text = (self._folder / "trace").read_text()
        (self._folder / "trace").write_text("")
        return [_parse(line) for line in text.splitlines() if _LINE.search(line)]


class _EngineTracer(Tracer):
    def __init__(self, world: EngineWorld) -> None:
        self._connection = ControlConnection(world.daemon.runtime)
        self._connection.call("events")
        self._world = world

    def take(self) -> list[TraceEvent]:
        self._world.daemon.call("status")  # what happened before has been published by then
        self._world.daemon.call("status")
        found = []
        while (line := self._connection.read_line(0.05)) is not None:
            is_first = line["event"] == "ksm_merge_with_ksm_page" and not line.get("ksm_page", 1)
            numbers = {k: v for k, v in line.items() if isinstance(v, int) and k not in _OWN}
            found.append(TraceEvent(line["event"], is_first, line.get("err", 0), numbers))
        return found

    def close(self) -> None:
        self._connection.close()


def _parse(line: str) -> TraceEvent:
    match = _LINE.search(line)
    assert match
    name, body = match[1], match[2]
    error = _ERROR.search(body)
    fields = _FIELDS[name].search(body) if name in _FIELDS else None
    numbers = {key: int(value) for key, value in fields.groupdict().items()} if fields else {}
    is_first = name == "ksm_merge_with_ksm_page" and not body.startswith("ksm ")
    return TraceEvent(name, is_first, int(error[1]) if error else 0, numbers)


@contextlib.contextmanager
def trace(world: World) -> Iterator[Tracer]:
    """Trace the ksm events of an implementation; nothing is left behind."""
    if isinstance(world, EngineWorld):
        with contextlib.closing(_EngineTracer(world)) as tracer:
            yield tracer
        return
    assert isinstance(world, KernelWorld)
    with mounted_tracefs() as tracing:
        world.needs((tracing / "events/ksm").is_dir(), "trace events of KSM in tracefs", "6.4")
        folder = tracing / "instances" / f"pagemerge-test-{os.getpid()}"
        folder.mkdir()
        try:
            (folder / "events/ksm/enable").write_text("1")
            yield _KernelTracer(folder)
        finally:
            folder.rmdir()
