"""Find the few regions whose merging gives most of the saving.

Prints the smallest set of regions that was found to give '--share' of what merging everything would
save, or, with '--code', the calls that enable it.

With '--apply' the regions are marked in the running processes: by the kernel's KSM with madvise(2),
called by a thread of each process that is stopped for a moment; by the engine for its own clients.
Then it waits until merging has settled, and says what was really gained and how far off the
prediction was. No knob is written: run has to be 1.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pagemerge.commands.options import add_json_option, add_ksm_option, open_ksm, parse_time
from pagemerge.commands.targeting import (
    ProgressLine,
    add_look_options,
    add_target_options,
    look_options,
    targets_of,
)
from pagemerge.errors import CommandError

if TYPE_CHECKING:
    from pagemerge.insight import Advice, Targets
    from pagemerge.ksm import Ksm

NAME = "advise"
HELP = "find the regions worth merging, as calls to write into a program, or applied at once"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_target_options(parser)
    add_look_options(parser)
    parser.add_argument("--share", default="95%", help="of the whole saving (default: 95%%)")
    parser.add_argument(
        "--code", choices=("c", "python", "rust"), help="print the calls for this language instead"
    )
    parser.add_argument(
        "--apply", action="store_true", help="mark the regions, and check what is gained"
    )
    parser.add_argument(
        "--timeout",
        default="60s",
        metavar="TIME",
        help="with --apply: wait so long at most until merging has settled (default: 60s)",
    )
    add_ksm_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Advise and print, and apply it where that is asked for; returns the exit status."""
    if args.json and args.code:
        raise CommandError("--json and --code exclude each other")
    if not args.apply:
        _show(args, *_advise(args, None))
        return 0
    if args.code:
        raise CommandError("--apply and --code exclude each other")
    with open_ksm(args, looks=False) as ksm:
        advice, targets = _advise(args, ksm)
        return _apply(args, ksm, advice, targets)


def _advise(args: argparse.Namespace, ksm: Ksm | None) -> tuple[Advice, Targets]:
    from pagemerge.insight import advise

    targets = targets_of(args)
    if ksm and any(target.path is not None for target in targets.items):
        raise CommandError("--apply is for processes", hint="leave the files out")
    options = look_options(args, None if ksm is None else ksm.knobs.read())
    progress = ProgressLine()
    try:
        return advise(targets, _parse_share(args.share), options, progress), targets
    finally:
        progress.clear()


def _show(args: argparse.Namespace, advice: Advice, _targets: Targets) -> None:
    if args.json:
        from pagemerge.views.data import print_json

        print_json(advice.to_dict())
    elif args.code:
        import sys

        from pagemerge.insight import render_snippet

        sys.stdout.write(render_snippet(advice, args.code))
    else:
        from pagemerge.views.advice import print_advice

        print_advice(advice)


def _apply(args: argparse.Namespace, ksm: Ksm, advice: Advice, targets: Targets) -> int:
    """Mark, wait, measure; returns 1 when a region that is still there could not be marked."""
    from pagemerge.insight import apply_advice

    progress = ProgressLine()
    try:
        applied = apply_advice(
            ksm, advice, targets, parse_time("--timeout", args.timeout), progress
        )
    finally:
        progress.clear()
    if args.json:
        from pagemerge.views.data import print_json

        print_json({**advice.to_dict(), "applied": applied.to_dict()})
    else:
        from pagemerge.views.advice import print_applied

        print_applied(applied, advice)
    return int(any(region.error and not region.is_gone for region in applied.regions))


def _parse_share(text: str) -> float:
    """Read 95%, 95 or 0.95."""
    try:
        value = float(text.rstrip("% "))
    except ValueError as error:
        raise CommandError(f"--share {text}: no share", hint="write it like 95%") from error
    return value / 100 if "%" in text or value > 1 else value
