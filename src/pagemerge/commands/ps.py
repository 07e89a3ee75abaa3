"""List the processes that have merging on, the most profitable first."""

from __future__ import annotations

import argparse

from pagemerge.commands.options import add_json_option, add_ksm_option, open_ksm
from pagemerge.commands.watching import add_top_option, add_watch_option, rows_of, show
from pagemerge.ksm import Ksm

NAME = "ps"
HELP = "list the processes that have merging on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_top_option(parser)
    add_watch_option(parser)
    add_ksm_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """List them."""
    with open_ksm(args) as ksm:
        show(args, lambda lines: _print(args, ksm, lines))


def _print(args: argparse.Namespace, ksm: Ksm, lines: int) -> None:
    from pagemerge.views.processes import print_hidden, print_processes

    processes = ksm.processes()
    processes.sort(key=lambda process: (-(process.ksm_process_profit or 0), process.pid))
    if args.json:
        from pagemerge.views.data import print_json_rows, process_data

        shown = processes[: args.top or None]
        print_json_rows(process_data(ksm.implementation, process) for process in shown)
    else:
        print_processes(ksm.implementation, processes, rows_of(args, lines))
    if args.watch is None:
        print_hidden(ksm.hidden_pids())
