"""Switch merging on for running processes, or for a region of one.

One thread of the process is stopped for a moment and made to call prctl(PR_SET_MEMORY_MERGE), or
madvise(MADV_MERGEABLE) for a region. Its children inherit it. Whether ksmd runs is another matter:
'pagemerge set run=1'. With '--ksm engine' the process's agent does it, and no thread is stopped.
"""

from __future__ import annotations

import argparse

from pagemerge.commands.requesting import add_request_options, carry_out

NAME = "enable"
HELP = "switch merging on for running processes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_request_options(parser)


def run(args: argparse.Namespace) -> int:
    """Switch it on; returns 1 when it failed for one of the processes."""
    return carry_out(args, on=True)
