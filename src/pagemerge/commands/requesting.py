"""What `enable` and `disable` share: whose memory is meant, and the words for what was done."""

from __future__ import annotations

import argparse
import sys

from pagemerge.errors import CommandError, PagemergeError, ProcessGoneError

__all__ = ["add_request_options", "carry_out"]


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Declare whose memory, and which part; `carry_out` reads them."""
    parser.add_argument("pids", nargs="*", type=int, metavar="PID", help="a process")
    parser.add_argument(
        "--tree", type=int, action="append", default=[], metavar="PID", help="with descendants"
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
        "--dry-run", action="store_true", help="say which processes are meant, stop none"
    )


def carry_out(args: argparse.Namespace, *, on: bool) -> int:
    """Switch merging on or off as the arguments say; returns the exit status.

    Raises:
        CommandError: they name no process, or the region is none.
        PagemergeError: it failed, for the only process that is meant.
    """
    from pagemerge.insight.targets import find_targets
    from pagemerge.kernel import advise_region, set_memory_merge
    from pagemerge.units import render_duration

    region = None if args.region is None else _parse_region(args.region)
    found = find_targets(pids=args.pids, trees=args.tree, cgroups=args.cgroup, units=args.unit)
    for note in found.notes:
        sys.stderr.write(f"{note}\n")
    if region and len(found.items) > 1:
        raise CommandError("--region goes with one process")
    word = "on" if on else "off"
    status = 0
    for target in found.items:
        if args.dry_run:
            sys.stdout.write(f"{target.label}: merging {word} (not done)\n")
            continue
        try:
            if region:
                done = advise_region(target.pid, *region, on=on)
            else:
                done = set_memory_merge(target.pid, on=on)
        except ProcessGoneError as error:
            if len(found.items) == 1:
                raise
            sys.stderr.write(f"{error}\n")
        except PagemergeError as error:
            if len(found.items) == 1:
                raise
            sys.stderr.write(f"{target.label}: {error}\n")
            status = 1
        else:
            stopped = render_duration(done.stopped_seconds)
            sys.stdout.write(f"{target.label}: merging {word}, a thread stopped for {stopped}\n")
    return status


def _parse_region(text: str) -> tuple[int, int]:
    start, _, end = text.partition("-")
    try:
        return int(start, 16), int(end, 16)
    except ValueError as error:
        raise CommandError(
            f"{text!r} is no region", hint="two hexadecimal numbers: 7f0000000000-7f0000100000"
        ) from error
