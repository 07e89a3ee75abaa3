"""Show the knobs and counters: what merging is told, what it does, what it saves."""

from __future__ import annotations

import argparse

from pagemerge.commands.options import add_json_option, add_ksm_option, open_ksm

NAME = "status"
HELP = "show the knobs and counters"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_ksm_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """Read everything once and print it."""
    with open_ksm(args) as ksm:
        knobs, counters, facts = ksm.knobs.read(), ksm.counters(), ksm.facts()
        implementation = ksm.implementation
    if args.json:
        from pagemerge.views.data import print_json, status_data

        print_json(status_data(implementation, knobs, counters, facts))
    else:
        from pagemerge.views.status import print_status

        print_status(implementation, knobs, counters, facts)
