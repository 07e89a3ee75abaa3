"""`--watch` and `--top`: views that refresh themselves, and only so many rows of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from pagemerge.commands.options import parse_time
from pagemerge.errors import CommandError

__all__ = ["add_top_option", "add_watch_option", "rows_of", "show"]


def add_watch_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--watch`; `show` reads it."""
    parser.add_argument(
        "--watch",
        nargs="?",
        const="2",
        metavar="SECONDS",
        help="again and again, until Ctrl-C (default: every 2 seconds)",
    )


def add_top_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--top`."""
    parser.add_argument(
        "--top", type=int, default=0, metavar="N", help="the first N rows only (default: all)"
    )


def rows_of(args: argparse.Namespace, lines: int) -> int:
    """Count the rows to show, 0 for all: `--top`, or what there is room for besides the title."""
    top: int = args.top
    return top or max(lines - 3, 0)


def show(args: argparse.Namespace, draw: Callable[[int], None]) -> None:
    """Draw once, or again and again.

    Args:
        args: with `watch`.
        draw: prints; gets the lines that there are room for, 0: any number.

    Raises:
        CommandError: `--watch` is no time.
    """
    if getattr(args, "top", 0) < 0:
        raise CommandError(f"--top {args.top}: a number of rows")
    if args.watch is None:
        draw(0)
        return
    seconds = parse_time("--watch", args.watch)
    if seconds < 0.05:
        raise CommandError(f"--watch {args.watch}: too often", hint="0.05 seconds or more")
    from pagemerge.views.watching import watch

    watch(draw, seconds)
