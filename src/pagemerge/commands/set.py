"""Set knobs: NAME=VALUE, several at once.

All values are checked before the first is written, so that a bad one changes nothing. They are
written in the order given: 'run=2 max_page_sharing=64' works where the other way round does not.
"""

from __future__ import annotations

import argparse

from pagemerge.commands.options import (
    add_json_option,
    add_ksm_option,
    open_ksm,
    parse_assignments,
)

NAME = "set"
HELP = "set knobs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("values", nargs="+", metavar="NAME=VALUE")
    parser.add_argument(
        "--dry-run", action="store_true", help="check and show what would change, write nothing"
    )
    add_ksm_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """Set them and print what has changed."""
    values = parse_assignments(args.values)
    with open_ksm(args) as ksm:
        changes = ksm.knobs.plan(**values) if args.dry_run else ksm.knobs.set(**values)
    if args.json:
        from pagemerge.views.data import print_json

        print_json({change.name: {"old": change.old, "new": change.new} for change in changes})
    else:
        from pagemerge.views.changes import print_changes

        print_changes(changes, dry_run=args.dry_run)
