"""List the processes that have merging on, the most profitable first."""

from __future__ import annotations

import argparse

from pagemerge.commands.options import add_json_option, add_ksm_option, open_ksm

NAME = "ps"
HELP = "list the processes that have merging on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_ksm_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> None:
    """List them."""
    with open_ksm(args) as ksm:
        processes = ksm.processes()
    processes.sort(key=lambda process: (-(process.ksm_process_profit or 0), process.pid))
    if args.json:
        from pagemerge.views.data import print_json, process_data

        print_json([process_data(process) for process in processes])
    else:
        from pagemerge.views.processes import print_processes

        print_processes(processes)
