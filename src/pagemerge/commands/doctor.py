"""Say why the kernel's KSM shares nothing, what it costs, and what could go wrong.

Looks at the knobs, at ksmd, at the machine's memory, and at the processes (all that have KSM on
when none is given). Each finding has a cause, the values that show it with the files they stand
in, and the command that cures it. Nothing is changed. Where processes are given their marked memory
is read as well, twice, to find equal pages and pages that change; '--quick' leaves that out.

Exit status: 0 when nothing is wrong (there may be warnings and notes), 1 when there is a problem.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pagemerge.commands.options import add_json_option
from pagemerge.errors import CommandError, PagemergeError, ProcessGoneError
from pagemerge.units import parse_duration

if TYPE_CHECKING:
    from pagemerge.kernel.doctor import Contents

NAME = "doctor"
HELP = "say why the kernel's KSM shares nothing, and what cures it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("pids", nargs="*", type=int, metavar="PID", help="a process")
    parser.add_argument(
        "--look",
        default="500ms",
        metavar="TIME",
        help="how long to look for what changes (default: 500ms)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="don't read the memory of the processes given"
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Look, and print what was found.

    Raises:
        CommandError: the time to look is negative or endless.
        ProcessGoneError: there is no such process.
    """
    from pagemerge.kernel.doctor import Severity, diagnose, read_facts

    look = parse_duration(args.look)
    if not look <= 600:
        raise CommandError("--look is at most 10 minutes")
    notes: list[str] = []
    contents = None if args.quick or not args.pids else _read_contents(args.pids, look, notes)
    facts = read_facts(args.pids, look_seconds=look, contents=contents)
    findings = diagnose(facts)
    if args.json:
        from pagemerge.views.data import print_json
        from pagemerge.views.doctor import doctor_data

        print_json(doctor_data(facts, findings, notes))
    else:
        from pagemerge.views.doctor import print_doctor

        print_doctor(facts, findings, notes)
    return int(any(finding.severity is Severity.PROBLEM for finding in findings))


def _read_contents(pids: list[int], look: float, notes: list[str]) -> Contents | None:
    """Read the marked memory; what keeps it from being read goes into `notes`."""
    from pagemerge.insight import EstimateOptions, estimate, find_targets
    from pagemerge.kernel.doctor import Contents

    try:
        found = estimate(
            find_targets(pids=pids), EstimateOptions(mergeable=True, settle_seconds=look)
        )
    except ProcessGoneError:
        raise
    except PagemergeError as error:
        notes.append(f"the contents of memory: {error}")
        return None
    volatile = round((found.volatile_share or 0.0) * found.present_pages)
    return Contents(
        present=found.present_pages,
        merging=found.pages_shared + found.pages_sharing,
        zero=found.zero_pages,
        volatile=volatile,
        fork_shared=max(0, found.pages_volatile - volatile),
        already=found.already_pages,
        look_seconds=look,
    )
