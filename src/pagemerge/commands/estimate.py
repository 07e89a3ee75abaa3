"""Estimate what merging would save, before it is switched on.

Reads the memory that ksmd would look at and counts equal pages. Nothing is changed; pages that are
not in memory are left alone. Numbers named as the kernel's are what its ksmd would show once it has
settled; '--settle' finds the pages that change too often to be merged.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pagemerge.commands.options import add_json_option
from pagemerge.commands.targeting import (
    ProgressLine,
    add_look_options,
    add_target_options,
    look_options,
    targets_of,
)
from pagemerge.errors import CommandError

NAME = "estimate"
HELP = "say what merging would save, before it is switched on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_target_options(parser)
    add_look_options(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots, too")
    parser.add_argument("--top", type=int, default=10, help="regions and contents to list")
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """Estimate and print."""
    from pagemerge.insight import estimate

    if args.top < 0:
        raise CommandError(f"--top {args.top}: it is at least 0")
    if args.html:
        _check_writable(args.html)  # rather than after a long read
    progress = ProgressLine()
    try:
        result = estimate(targets_of(args), look_options(args), progress)
    finally:
        progress.clear()
    if args.html:
        from pagemerge.insight.report_html import write_report

        try:
            write_report(result, args.html)
        except OSError as error:
            raise CommandError(f"{args.html}: {error.strerror}") from error
    if args.json:
        from pagemerge.views.data import print_json

        print_json(result.to_dict())
    else:
        from pagemerge.views.estimate import print_estimate

        print_estimate(result, args.top)


def _check_writable(path: Path) -> None:
    """Find out by opening it; what is there is left as it is until the report is written."""
    is_new = not path.exists()
    try:
        with path.open("a"):
            pass
        if is_new:  # no empty report where nothing comes of the read
            path.unlink()
    except OSError as error:
        raise CommandError(f"--html {path}: {error.strerror}") from error
