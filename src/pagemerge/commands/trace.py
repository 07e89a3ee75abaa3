"""Follow what ksmd does: its trace events, with the processes they are about, and their sum.

Works on the kernel's KSM, by a tracefs instance of its own (root), and on the engine. Prints a line
an event; on a terminal with a live summary below. Ctrl-C ends it, with the summary. Nothing of it
stays behind in the kernel, even if it is killed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from pagemerge.commands.options import add_ksm_option, open_ksm, parse_pid
from pagemerge.errors import CommandError, FormatError, ProcessGoneError
from pagemerge.ksm import EVENTS, Event, Ksm, LostEvents
from pagemerge.memory import read_comm
from pagemerge.units import parse_bytes

if TYPE_CHECKING:
    from pagemerge.views.trace_summary import TraceSummary

NAME = "trace"
HELP = "follow what ksmd does, event by event"

_PULSE_SECONDS: Final = 0.2
Taker = Callable[[Event | LostEvents], object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_ksm_option(parser)
    parser.add_argument(
        "--event",
        action="append",
        choices=[kind.name for kind in EVENTS],
        metavar="NAME",
        help="only events of this name; may be repeated",
    )
    parser.add_argument(
        "--pid",
        action="append",
        type=parse_pid,
        metavar="PID",
        help="only events known to be about this process; may be repeated",
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="end after so many seconds")
    parser.add_argument(
        "--summary", action="store_true", help="print no events, only what they come to"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object a line for each event; with --summary, one object at the end",
    )
    parser.add_argument(
        "--perfetto", type=Path, metavar="FILE", help="write a trace for ui.perfetto.dev, too"
    )
    parser.add_argument(
        "--buffer",
        metavar="SIZE",
        help="the kernel's buffer for each CPU (default: 16M, less on machines with many CPUs); "
        "a larger one loses fewer events",
    )


def run(args: argparse.Namespace) -> None:
    """Trace until told to end."""
    from pagemerge.views.trace_summary import TraceSummary

    if args.seconds is not None and not args.seconds > 0:
        raise CommandError("--seconds takes a number above 0")
    buffer_bytes = _buffer_bytes(args.buffer)
    for pid in args.pid or ():
        read_comm(pid)  # one that is not there, or has ended, says so here
    summary, names = TraceSummary(), _Names()
    with ExitStack() as stack:
        ksm = stack.enter_context(open_ksm(args))
        ending = stack.enter_context(_Ending())
        events = stack.enter_context(closing(_open_events(ksm, args, ending, buffer_bytes)))
        ksmd = ksm.facts().get("pid")  # an engine that is not running says so here
        takers: list[Taker] = [summary.add]
        if args.perfetto:
            from pagemerge.views.perfetto import PerfettoFile

            ksmd_pid = ksmd if isinstance(ksmd, int) else None
            file = stack.enter_context(PerfettoFile(args.perfetto, names, ksmd_pid))
            ending.at_pulse.append(file.flush)
            takers.append(file.add)
        takers += _printers(args, stack, summary, names, ending)
        began = time.monotonic()
        for event in events:
            if _is_wanted(event, args.pid):
                for take in takers:
                    take(event)
        summary.watched = time.monotonic() - began
    if args.summary and args.json:
        from pagemerge.views.data import print_json

        print_json(summary.to_dict())
    else:
        from pagemerge.views.trace import print_summary

        sys.stdout.flush()
        print_summary(summary, names, sys.stdout if args.summary else sys.stderr)


def _open_events(
    ksm: Ksm, args: argparse.Namespace, ending: _Ending, buffer_bytes: int | None
) -> Generator[Event | LostEvents, None, None]:
    if buffer_bytes is None:
        return ksm.events(args.seconds, names=args.event, stop=ending)
    from pagemerge.kernel import KernelKsm

    if not isinstance(ksm, KernelKsm):
        raise CommandError("--buffer is for the kernel's events", hint="add --ksm kernel")
    return ksm.events(args.seconds, names=args.event, stop=ending, buffer_bytes=buffer_bytes)


def _printers(
    args: argparse.Namespace,
    stack: ExitStack,
    summary: TraceSummary,
    names: _Names,
    ending: _Ending,
) -> list[Taker]:
    """Choose who prints events, and show the live summary where there is a terminal for it."""
    from pagemerge.views import trace
    from pagemerge.views.terminal import make_console

    def render(event: Event | LostEvents) -> str:
        if args.json:
            return trace.json_line(trace.event_data(event, names))
        return trace.render_event(event, names)

    wants_lines = not args.summary
    lines_on_terminal = wants_lines and sys.stdout.isatty()
    if sys.stderr.isatty() and not (lines_on_terminal and args.json):
        live = trace.LiveSummary(summary, names, make_console(sys.stderr))
        stack.enter_context(live)
        if lines_on_terminal:
            return [lambda event: live.print_line(render(event))]
    if not wants_lines:
        return []
    ending.at_pulse.append(sys.stdout.flush)  # who reads a pipe wants to see what there is
    return [lambda event: trace.write_line(render(event))]


def _is_wanted(event: Event | LostEvents, pids: list[int] | None) -> bool:
    return pids is None or isinstance(event, LostEvents) or event.pid in pids


def _buffer_bytes(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_bytes(text)
    except FormatError as error:
        raise CommandError(f"--buffer: {error}", hint=error.hint) from error


class _Names:
    """Names of processes, read when first asked for; those that have ended keep theirs."""

    def __init__(self) -> None:
        self._known: dict[int, str | None] = {}

    def __call__(self, pid: int) -> str | None:
        if pid not in self._known:
            try:
                self._known[pid] = read_comm(pid)
            except ProcessGoneError:
                self._known[pid] = None
        return self._known[pid]


class _Ending:
    """Ends the trace at SIGINT or SIGTERM; the trace asks it about ten times a second.

    Attributes:
        at_pulse: called at such occasions, for what should not wait for the next event.
    """

    def __init__(self) -> None:
        self.at_pulse: list[Callable[[], object]] = []
        self._is_set = False
        self._pulse = 0.0
        self._before: dict[int, Any] = {}

    def is_set(self) -> bool:
        """Whether it is to end."""
        now = time.monotonic()
        if now - self._pulse > _PULSE_SECONDS:
            self._pulse = now
            for call in self.at_pulse:
                call()
        return self._is_set

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._end)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, number: int, _frame: object) -> None:
        self._is_set = True
        signal.signal(number, self._before[number])  # a second one ends it at once
