"""Show the knobs and counters: what merging is told, what it does, what it saves.

It says, too, whether that is worth its price. What is derived from the counters has names that
end in their unit and is under 'worth' in --json.
"""

from __future__ import annotations

import argparse

from pagemerge.commands.options import add_json_option, add_ksm_option, open_ksm
from pagemerge.commands.watching import add_watch_option, show
from pagemerge.ksm import Ksm
from pagemerge.ksm.worth import derive_worth
from pagemerge.memory.machine import read_meminfo

NAME = "status"
HELP = "show the knobs and counters"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_watch_option(parser)
    add_ksm_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """Read everything and print it."""
    with open_ksm(args) as ksm:
        show(args, lambda _lines: _print(args, ksm))


def _print(args: argparse.Namespace, ksm: Ksm) -> None:
    knobs, counters, facts = ksm.knobs.read(), ksm.counters(), ksm.facts()
    implementation = ksm.implementation
    worth = derive_worth(knobs, counters, facts, read_meminfo())
    if args.json:
        from pagemerge.views.data import print_json, status_data

        print_json(status_data(implementation, knobs, counters, facts, worth))
    else:
        from pagemerge.views.status import print_status

        print_status(implementation, knobs, counters, facts, worth)
