"""What `enable` and `disable` share: whose memory is meant, and the words for what was done."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagemerge.choice import IMPLEMENTATIONS
from pagemerge.commands.options import parse_pid
from pagemerge.errors import CommandError, PagemergeError, ProcessGoneError
from pagemerge.units import PAGE_SIZE, render_duration, render_name

if TYPE_CHECKING:
    from pagemerge.insight import Target
    from pagemerge.kernel import Injected

__all__ = ["add_request_options", "carry_out"]


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Declare whose memory, and which part; `carry_out` reads them."""
    parser.add_argument("pids", nargs="*", type=parse_pid, metavar="PID", help="a process")
    parser.add_argument(
        "--tree",
        type=parse_pid,
        action="append",
        default=[],
        metavar="PID",
        help="with descendants",
    )
    parser.add_argument(
        "--cgroup", action="append", default=[], metavar="PATH", help="all processes of a cgroup"
    )
    parser.add_argument(
        "--unit", action="append", default=[], help="all processes of a systemd unit"
    )
    parser.add_argument(
        "--region", metavar="START-END", help="only this part, as in /proc/PID/maps (one process)"
    )
    parser.add_argument(
        "--ksm",
        choices=IMPLEMENTATIONS,
        default="kernel",
        help="whose merging: the kernel's (default), or the engine's, for its clients",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say which processes are meant and what would fail, stop none",
    )
    parser.add_argument("--json", action="store_true", help="a list, one object a process")


def carry_out(args: argparse.Namespace, *, on: bool) -> int:
    """Switch merging on or off as the arguments say; returns the exit status.

    Every process is tried, whatever became of the one before.

    Raises:
        CommandError: they name no process, or the region is none.
        PagemergeError: it failed, for the only process that is meant.
    """
    region = None if args.region is None else _parse_region(args.region)
    found, missing = _find(args)
    if region and len(found) > 1:
        raise CommandError("--region goes with one process")
    word = "on" if on else "off"
    alone = len(found) == 1 and not missing
    outcomes = [
        _Outcome(pid, "", error="no such process, or one without memory") for pid in missing
    ]
    for target in found:
        outcome = _Outcome(target.pid, target.command)
        outcomes.append(outcome)
        try:
            injected = None
            if args.dry_run:
                _check(args.ksm, target.pid, region, on=on)
            else:
                injected = _ask(args.ksm, target, region, on=on)
        except PagemergeError as error:
            if alone:
                raise
            outcome.error = str(error)
            # of a tree or a cgroup: that processes end is nothing to complain of
            outcome.expected = isinstance(error, ProcessGoneError) and target.pid not in args.pids
            sys.stderr.write(f"{target.label}: {render_name(str(error))}\n")
        else:
            outcome.done = not args.dry_run
            if injected:
                outcome.stopped_seconds = injected.stopped_seconds
                outcome.stops = injected.stops
            if not args.json:
                how = _stop_words(outcome) if outcome.done else " (not done)"
                sys.stdout.write(f"{target.label}: merging {word}{how}\n")
            if outcome.done and not on and args.ksm == "kernel" and region is None:
                _say_what_stays(target)
    if args.json:
        json.dump([outcome.as_json(on=on) for outcome in outcomes], sys.stdout, indent=1)
        sys.stdout.write("\n")
    if on and args.ksm == "kernel" and any(outcome.done for outcome in outcomes):
        _say_what_is_lacking()
    failed = sum(1 for outcome in outcomes if outcome.error and not outcome.expected)
    if failed:
        sys.stderr.write(f"{failed} of {len(outcomes)} processes: merging not switched {word}\n")
    return 1 if failed else 0


@dataclass
class _Outcome:
    """What became of one process; `stopped_seconds` and `stops` are None where none was stopped."""

    pid: int
    command: str
    done: bool = False
    stopped_seconds: float | None = None
    stops: int | None = None
    error: str | None = None
    expected: bool = False

    def as_json(self, *, on: bool) -> dict[str, object]:
        return {
            "pid": self.pid,
            "command": self.command,
            "merging": on if self.done else None,
            "stopped_seconds": self.stopped_seconds,
            "stops": self.stops,
            "error": self.error,
        }


def _ask(ksm: str, target: Target, region: tuple[int, int] | None, *, on: bool) -> Injected | None:
    """Have a process make the call; None where no thread of it was stopped.

    Raises:
        PagemergeError: it was not made.
    """
    if ksm == "kernel":
        return _inject(target, region, on=on)
    from pagemerge.engine.client import EngineKsm

    with EngineKsm() as engine:
        if region:
            engine.advise(target.pid, *region, on=on)
        elif on:
            engine.enable(target.pid)
        else:
            engine.disable(target.pid)
    return None  # its agent does it, in a thread of its own


def _check(ksm: str, pid: int, region: tuple[int, int] | None, *, on: bool) -> None:
    """Find what would keep it from being done; nothing is changed.

    Raises:
        PagemergeError: what `_ask` would raise, as far as it shows.
    """
    if ksm == "kernel":
        from pagemerge.kernel import check_memory_merge, check_region

        if region:
            check_region(pid, *region, on=on)
        else:
            check_memory_merge(pid)
        return
    from pagemerge.engine.client import EngineKsm

    with EngineKsm() as engine:
        engine.check(pid, region)


def _say_what_stays(target: Target) -> None:
    """Say what prctl leaves alone: regions that madvise has marked, as `advise --apply` does."""
    from pagemerge.kernel import KernelKsm

    with suppress(PagemergeError), KernelKsm() as ksm:
        marked = [region for region in ksm.regions(target.pid) if region.mergeable]
        if marked:
            one = f"{marked[0].start:x}-{marked[0].end:x}"
            sys.stderr.write(
                f"{target.label}: regions that were marked by madvise ({len(marked)}), by itself "
                f"or by 'advise --apply', stay on: --region {one} and the like\n"
            )


def _say_what_is_lacking() -> None:
    """Say so where ksmd is off: nothing will come of it until it runs."""
    from pagemerge.kernel import KernelKsm

    with KernelKsm() as ksm:
        run = ksm.knobs["run"]
    if run != 1:
        sys.stderr.write(
            f"note: nothing is merged yet: ksmd is off (run is {run}); "
            "'pagemerge run-state on --ksm kernel' switches it on\n"
        )


def _inject(target: Target, region: tuple[int, int] | None, *, on: bool) -> Injected:
    from pagemerge.commands.targeting import ProgressLine
    from pagemerge.kernel import advise_region, check_region, set_memory_merge

    line = ProgressLine()

    def show(done: int, total: int) -> None:
        line("unmerging", done, total)

    try:
        if region:
            if on:  # the kernel says 0 to what it will never merge
                check_region(target.pid, *region, on=on)
            return advise_region(target.pid, *region, on=on, progress=show)
        return set_memory_merge(target.pid, on=on, progress=show)
    except KeyboardInterrupt:
        line.clear()
        if not on:
            sys.stderr.write(
                f"{target.label}: broken off: what was unmerged stays so, "
                "for the rest merging is still on; the same command again goes on\n"
            )
        raise
    finally:
        line.clear()


def _stop_words(outcome: _Outcome) -> str:
    if outcome.stopped_seconds is None:
        return ""
    duration = render_duration(outcome.stopped_seconds)
    if outcome.stops == 1:
        return f", a thread stopped for {duration}"
    return f", a thread stopped {outcome.stops} times for at most {duration}"


def _find(args: argparse.Namespace) -> tuple[Sequence[Target], list[int]]:
    """Whose memory is meant, and which of the numbers given are no process's with memory."""
    from pagemerge.insight.targets import find_targets
    from pagemerge.memory import read_stat

    there: list[int] = []
    broad = bool(args.tree or args.cgroup or args.unit)
    alone = len(args.pids) == 1 and not broad
    for pid in dict.fromkeys(args.pids):
        try:
            stat = read_stat(pid)
        except ProcessGoneError as error:
            if alone:
                raise PagemergeError(f"no process {pid}") from error
            sys.stderr.write(f"no process {pid}\n")
        else:
            if not stat.is_kernel_thread:
                there.append(pid)
                continue
            words = f"process {pid} ({render_name(stat.comm)}) is a kernel thread: no memory"
            if alone:
                raise PagemergeError(words)
            sys.stderr.write(f"{words}\n")
    if args.pids and not (there or broad):
        return [], list(dict.fromkeys(args.pids))
    hint = "give process numbers, or --tree PID, --cgroup PATH, --unit NAME"
    if not (args.pids or args.tree or args.cgroup or args.unit):
        raise CommandError("no process is named", hint=hint)
    try:
        found = find_targets(
            pids=there, trees=args.tree, cgroups=args.cgroup, units=args.unit, hint=hint
        )
    except CommandError as error:
        if broad:
            raise
        raise PagemergeError(str(error)) from error  # zombies: the arguments are right
    for note in found.notes:
        sys.stderr.write(f"{note}\n")
    meant = {target.pid for target in found.items}
    return found.items, [pid for pid in dict.fromkeys(args.pids) if pid not in meant]


def _parse_region(text: str) -> tuple[int, int]:
    example = "two hexadecimal numbers, as /proc/PID/maps has them: 7f0000000000-7f0000100000"
    match = re.fullmatch(r"(?:0x)?([0-9a-fA-F]{1,16})-(?:0x)?([0-9a-fA-F]{1,16})", text)
    if match is None:
        raise CommandError(f"--region {text}: no region", hint=example)
    start, end = int(match[1], 16), int(match[2], 16)
    if start >= end:
        raise CommandError(f"--region {text}: its end is not after its start", hint=example)
    if start % PAGE_SIZE or end % PAGE_SIZE:
        raise CommandError(
            f"--region {text}: not whole pages of {PAGE_SIZE} bytes",
            hint=f"{start // PAGE_SIZE * PAGE_SIZE:x}-{-(-end // PAGE_SIZE) * PAGE_SIZE:x}",
        )
    return start, end
