"""Find the few regions whose merging gives most of the saving.

Prints the smallest set of regions that was found to give '--share' of what merging everything would
save, or, with '--code', the calls that enable it.
"""

from __future__ import annotations

import argparse

from pagemerge.commands.options import add_json_option
from pagemerge.commands.targeting import (
    ProgressLine,
    add_look_options,
    add_target_options,
    look_options,
    targets_of,
)
from pagemerge.errors import CommandError

NAME = "advise"
HELP = "find the regions worth merging, as calls to write into a program"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_target_options(parser)
    add_look_options(parser)
    parser.add_argument("--share", default="95%", help="of the whole saving (default: 95%%)")
    parser.add_argument(
        "--code", choices=("c", "python", "rust"), help="print the calls for this language instead"
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """Advise and print."""
    from pagemerge.insight import advise, render_snippet
    from pagemerge.views.data import print_json

    if args.json and args.code:
        raise CommandError("--json and --code exclude each other")
    progress = ProgressLine()
    try:
        advice = advise(targets_of(args), _parse_share(args.share), look_options(args), progress)
    finally:
        progress.clear()
    if args.json:
        print_json(advice.to_dict())
    elif args.code:
        import sys

        sys.stdout.write(render_snippet(advice, args.code))
    else:
        from pagemerge.views.advice import print_advice

        print_advice(advice)


def _parse_share(text: str) -> float:
    """Read 95%, 95 or 0.95."""
    try:
        value = float(text.rstrip("% "))
    except ValueError as error:
        raise CommandError(f"--share {text}: no share", hint="write it like 95%") from error
    return value / 100 if "%" in text or value > 1 else value
