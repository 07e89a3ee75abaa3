"""Switch merging on or off for the whole machine, or for the engine's clients: the knob 'run'.

'on' (run=1) lets ksmd merge. 'off' (run=0) stops ksmd; what is merged stays merged. 'unmerge'
(run=2) stops ksmd and gives every process its own copy of everything that was merged, which needs
as much memory as merging has saved: on a terminal it asks, elsewhere it wants '--yes'; where the
memory is not there it refuses, unless '--force' says otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Final

from pagemerge.commands.options import add_json_option, add_ksm_option, open_ksm
from pagemerge.errors import CommandError
from pagemerge.ksm import Change, Ksm
from pagemerge.ksm.worth import estimate_spare_bytes
from pagemerge.memory import read_meminfo
from pagemerge.units import PAGE_SIZE, render_bytes

NAME = "run-state"
HELP = "switch merging on or off, or unmerge everything"

STATES: Final = {"off": 0, "on": 1, "unmerge": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "state", choices=tuple(STATES), help="on: run=1, off: run=0, unmerge: run=2"
    )
    parser.add_argument("--yes", action="store_true", help="unmerge without asking")
    parser.add_argument(
        "--force", action="store_true", help="unmerge although the memory may not suffice"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check and show what would change, write nothing"
    )
    add_ksm_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Switch it; returns 1 where the user said no.

    Raises:
        CommandError: unmerging was not confirmed, or there is not the memory for it.
    """
    value = STATES[args.state]
    with open_ksm(args) as ksm:
        changes = ksm.knobs.plan(run=value)
        needed, spare = _price(ksm, changes)
        if not args.dry_run:
            if args.state == "unmerge" and not _is_agreed(args, changes, needed, spare):
                return 1
            changes = ksm.knobs.set(run=value)
    if args.json:
        from pagemerge.views.data import print_json

        print_json(
            {
                "run": {"old": changes[0].old, "new": changes[0].new},
                "needed_bytes": needed,
                "available_bytes": spare,
                "dry_run": args.dry_run,
            }
        )
        return 0
    from pagemerge.views.changes import print_changes

    print_changes(changes, dry_run=args.dry_run)
    if needed and args.dry_run:
        sys.stdout.write(f"{_words(needed, spare)}\n")
    return 0


def _price(ksm: Ksm, changes: list[Change]) -> tuple[int, int | None]:
    """Give the bytes that it takes and those that there are; 0 where nothing is unmerged."""
    spare = estimate_spare_bytes(read_meminfo())
    if changes[0].new != 2 or changes[0].old == 2:
        return 0, spare
    counters: Mapping[str, int | None] = ksm.counters()
    pages = (counters.get("pages_sharing") or 0) + (counters.get("ksm_zero_pages") or 0)
    return pages * PAGE_SIZE, spare


def _is_agreed(
    args: argparse.Namespace, changes: list[Change], needed: int, spare: int | None
) -> bool:
    if not needed or changes[0].old == 2:
        return True
    if spare is not None and needed > spare and not args.force:
        raise CommandError(
            f"unmerging needs {render_bytes(needed)}, and {render_bytes(spare)} are available, "
            "free swap included: processes would be killed for want of memory",
            hint="disable processes one by one ('pagemerge ps', 'pagemerge disable PID'), "
            "add swap, or insist with --force",
        )
    if args.yes:
        return True
    if not sys.stdin.isatty():
        raise CommandError(
            f"unmerging is not done unasked: {_words(needed, spare)}", hint="--yes agrees to it"
        )
    sys.stderr.write(f"{_words(needed, spare)}\nUnmerge everything? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _words(needed: int, spare: int | None) -> str:
    there = "" if spare is None else f"; {render_bytes(spare)} are available, free swap included"
    return f"it takes {render_bytes(needed)} of memory{there}"
