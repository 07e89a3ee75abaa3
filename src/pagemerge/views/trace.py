"""`pagemerge trace` for people and for programs: lines, JSON lines, the summary, also live."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pagemerge.ksm import Event, LostEvents
from pagemerge.units import render_count, render_duration, render_name
from pagemerge.views.terminal import make_console, make_table, show
from pagemerge.views.trace_summary import TraceSummary, errno_name

__all__ = ["LiveSummary", "event_data", "print_summary", "render_event"]

_POINTERS = frozenset({"mm", "rmap_item", "ksm_page", "address"})
_HEAD = frozenset({"common_pid"})
_LIVE_PROCESSES = 8
_LINES_A_SECOND = 200  # on a terminal: more can't be read, and would hold up the trace

NameOf = Callable[[int], str | None]


def event_data(event: Event | LostEvents, name_of: NameOf) -> dict[str, Any]:
    """Give an event as a JSON line has it; of losses, `lost` alone."""
    if isinstance(event, LostEvents):
        return {"lost": event.count}
    data: dict[str, Any] = {"event": event.name, "time": event.time, "pid": event.pid}
    if event.pid is not None:
        data["comm"] = name_of(event.pid)
    data["how"] = event.how
    return data | dict(event.fields)


def render_event(event: Event | LostEvents, name_of: NameOf) -> str:
    """Write an event as a line: time, name, process and how it is known, fields."""
    if isinstance(event, LostEvents):
        return f"{'':>17}  {render_count(event.count)} events were lost"
    words = [
        f"{name}={value:#x}" if name in _POINTERS else f"{name}={value}"
        for name, value in event.fields.items()
        if name not in _HEAD
    ]
    if event.fields.get("err"):
        words[-1] += f" ({errno_name(event.fields['err'])})"
    who = ""
    if event.pid is not None:
        who = f"{event.pid} {render_name(name_of(event.pid) or '(ended)')} ({event.how})"
    return f"{event.time:17.6f}  {event.name:<23}  {who:<32}  {' '.join(words)}".rstrip()


def print_summary(summary: TraceSummary, name_of: NameOf, file: TextIO | None = None) -> None:
    """Print what a trace comes to."""
    console = make_console(file)
    for line in _lines(summary):
        console.print(line)
    if summary.processes:
        show(console, _process_table(summary, name_of, None))


class LiveSummary:
    """The summary on a terminal while the trace runs; a context manager.

    Args:
        name_of: gives a process's name.
        console: the terminal.
        lines: whether `print_line` is used; the lines scroll above the summary.
    """

    def __init__(self, summary: TraceSummary, name_of: NameOf, console: Console) -> None:
        """Show nothing yet."""
        self._summary = summary
        self._name_of = name_of
        self._second = 0
        self._lines = 0
        self.hidden = 0  # lines that were not shown
        self._live = Live(
            console=console,
            get_renderable=self._render,
            refresh_per_second=4,
            transient=True,  # the final summary takes its place
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> LiveSummary:
        """Show it."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        self._live.stop()

    def print_line(self, line: str) -> None:
        """Print a line above the summary; not more in a second than can be looked at."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > _LINES_A_SECOND:
            self.hidden += 1
        else:
            self._live.console.print(Text(line, no_wrap=True, overflow="ellipsis"))

    def _render(self) -> Group:
        summary = self._summary
        rate = summary.recent_rate(time.monotonic())
        lines = [
            Text(""),
            Text(f"{render_count(round(rate))} merges/s now", style="bold"),
            *(Text(line) for line in _lines(summary)),
        ]
        if self.hidden:
            lines.append(
                Text(f"{render_count(self.hidden)} lines not shown; into a file they all go")
            )
        lines.append(Text("Ctrl-C ends it", style="dim"))
        if not summary.processes:
            return Group(*lines)
        return Group(*lines, _process_table(summary, self._name_of, _LIVE_PROCESSES))


def _lines(summary: TraceSummary) -> list[str]:
    """Write the summary but for the processes."""
    lines = [
        f"events    {render_count(summary.events)} in {render_duration(summary.seconds)}, "
        f"{render_count(summary.lost)} lost"
    ]
    merges = summary.merged + summary.zeroed
    rate = merges / summary.seconds if summary.seconds else 0.0
    lines.append(
        f"merges    {render_count(summary.merged)}, and {render_count(summary.zeroed)} into the "
        f"zero page; {render_count(round(rate))}/s"
    )
    failed = ", ".join(f"{name} {render_count(n)}" for name, n in summary.failed.most_common())
    if merges or failed:
        lines.append(f"failed    {failed or 'none'}")
    passes = summary.passes
    if passes.count:
        lines.append(
            f"passes    {render_count(passes.count)}, {render_duration(passes.mean)} each "
            f"({render_duration(passes.shortest)} to {render_duration(passes.longest)})"
        )
    if summary.advice is not None:
        advice = summary.advice
        lines.append(
            f"advisor   {render_count(summary.counts['ksm_advisor'])} decisions, the last: "
            f"pages_to_scan {render_count(advice.get('pages_to_scan', 0))} after a pass of "
            f"{advice.get('scan_time', 0)} s, {advice.get('cpu_percent', 0)} % of a CPU"
        )
    given_up = summary.counts["ksm_remove_ksm_page"]
    if given_up:
        lines.append(f"given up  {render_count(given_up)} shared pages")
    if summary.how:
        told = ", ".join(f"{how} {render_count(n)}" for how, n in summary.how.most_common())
        lines.append(f"known by  {told}")
    return lines


def _process_table(summary: TraceSummary, name_of: NameOf, limit: int | None) -> Any:
    rows = []
    for pid, one in summary.by_merges()[:limit]:
        failed = sum(one.failed.values())
        name = "unknown" if pid is None else render_name(name_of(pid) or "(ended)")
        numbers = (one.merged, one.zeroed, failed, one.removed)
        rows.append(("-" if pid is None else str(pid), *map(render_count, numbers), name))
    return make_table(
        ("pid", "merged", "zeroed", "failed", "removed", "comm"), rows, left=("comm",)
    )


def write_line(line: str) -> None:
    """Write a line to stdout."""
    sys.stdout.write(line + "\n")


def json_line(data: dict[str, Any]) -> str:
    """Write an object in a line, without blanks."""
    return json.dumps(data, separators=(",", ":"))
