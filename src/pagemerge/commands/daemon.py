"""Run the engine's daemon: one per user, until 'pagemerge stop', SIGTERM or Ctrl-C.

Programs are merged when they have the engine's agent: 'pagemerge run -- CMD', or 'import pagemerge'
in a Python program.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pagemerge.commands.options import parse_assignments

NAME = "daemon"
HELP = "run the engine's daemon"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--foreground", action="store_true", help="stay in the foreground (the default)"
    )
    where.add_argument(
        "--detach", action="store_true", help="go to the background once it is ready"
    )
    parser.add_argument(
        "--log", type=Path, metavar="FILE", help="write the log there (default: stderr)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="start with this knob; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Run it; returns when it has stopped, or, detached, when it is ready."""
    from pagemerge.engine import startup

    return startup.main(parse_assignments(args.set), detach=args.detach, log_file=args.log)
