"""Run an unmodified command with its children, and say at its end what merging saved.

What the program marks with madvise(MADV_MERGEABLE) or prctl(PR_SET_MEMORY_MERGE) is merged; with
--all, all its memory. The engine's daemon is used when it is running; otherwise one is started
for this command alone. The exit status is the command's.

Pss is read from /proc/PID/smaps_rollup of all its processes. 'before' is the highest sum until
most was saved, 'after' the sum at that moment with the daemon's own, so that the pages that are
kept count once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from pagemerge.commands.options import parse_assignments
from pagemerge.errors import CommandError

NAME = "run"
HELP = "run a command with its memory merged"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.usage = (
        "pagemerge run [-h] [--ksm engine] [--all] [--report FILE] [--domain NAME] "
        "[--set NAME=VALUE] [--quiet] -- CMD ..."
    )
    parser.add_argument(
        "--ksm",
        choices=("engine",),
        default="engine",
        help="which implementation (default: engine)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="merge all memory, as if each process had called prctl(PR_SET_MEMORY_MERGE)",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write what was saved there, as JSON"
    )
    parser.add_argument(
        "--domain", default="", metavar="NAME", help="share pages only within this domain"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a knob for the command's own daemon; may be repeated "
        "(default: pages_to_scan=25000 sleep_millisecs=20)",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print nothing at the end; --report still writes"
    )
    parser.add_argument("cmd", nargs=argparse.REMAINDER, metavar="CMD", help="what to run")


def run(args: argparse.Namespace) -> int:
    """Run it; returns its exit status."""
    from pagemerge.engine.launch import agent_environment, open_session
    from pagemerge.engine.savings import Savings
    from pagemerge.engine.supervising import run_command

    argv = args.cmd[1:] if args.cmd[:1] == ["--"] else args.cmd
    if not argv:
        raise CommandError("no command to run", hint="pagemerge run [OPTION ...] -- CMD [ARG ...]")
    with open_session(parse_assignments(args.set)) as session:
        environment = agent_environment(
            session.runtime, everything=args.all, domain=args.domain, base=os.environ
        )
        savings = Savings(session, everything=args.all)
        savings.begin()
        status = run_command(argv, environment, savings.look)
        savings.finish()
    report = savings.report(argv, status)
    if args.report:
        _write_report(args.report, report)
    if not args.quiet:
        from pagemerge.views.savings import print_savings

        print_savings(report, sys.stderr)
    return status


def _write_report(path: Path, report: dict[str, object]) -> None:
    try:
        path.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise CommandError(f"the report can't be written: {path}: {error.strerror}") from error
