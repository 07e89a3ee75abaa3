"""Switch merging off for running processes, or for a region of one.

What is merged there is unmerged, which takes memory for each page, and time: some 2 us a page, in
slices between which the process runs. Broken off, it goes on when it is called again. Without
--region it undoes 'enable' and prctl(PR_SET_MEMORY_MERGE); what a program marked by madvise alone
stays on.
"""

from __future__ import annotations

import argparse

from pagemerge.commands.requesting import add_request_options, carry_out

NAME = "disable"
HELP = "switch merging off for running processes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_request_options(parser)


def run(args: argparse.Namespace) -> int:
    """Switch it off; returns 1 when it failed for one of the processes."""
    return carry_out(args, on=False)
