"""Say why nothing is shared, what merging costs, and what could go wrong.

Looks at the knobs, at ksmd, at the machine's memory, and at the processes (all that have merging on
when none is given). Each finding has a cause, the values that show it with the files they stand
in, and the command that cures it. Nothing is changed.

The kernel's KSM: where processes are given their marked memory is read as well, twice, to find
equal pages and pages that change; '--quick' leaves that out. The engine's daemon knows that of its
clients without; its doctor also says why a process has no agent, or what its agent refuses for.

Exit status: 0 when nothing is wrong (there may be warnings and notes), 1 when there is a problem.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pagemerge import choice
from pagemerge.commands.options import add_json_option, add_ksm_option, parse_pid, parse_time
from pagemerge.errors import CommandError, PagemergeError, ProcessGoneError

if TYPE_CHECKING:
    from pagemerge.ksm.doctor import Contents, Facts, Finding

NAME = "doctor"
HELP = "say why nothing is shared, and what cures it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("pids", nargs="*", type=parse_pid, metavar="PID", help="a process")
    add_ksm_option(parser)
    parser.add_argument(
        "--look",
        default="500ms",
        metavar="TIME",
        help="how long to look for what changes (default: 500ms)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="don't read the memory of the processes given (kernel)",
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Look, and print what was found.

    Raises:
        CommandError: the time to look is none, negative or endless; a PID is no process's.
        ProcessGoneError: there is no such process.
    """
    from pagemerge.ksm.doctor import Severity

    look = parse_time("--look", args.look)
    if not look <= 600:
        raise CommandError("--look is at most 10 minutes")
    notes: list[str] = []
    if choice.choose(args.ksm, looks=True) == "kernel":
        facts, findings = _examine_kernel(args, look, notes)
    else:
        facts, findings = _examine_engine(args.pids, look)
    if args.json:
        from pagemerge.views.data import print_json
        from pagemerge.views.doctor import doctor_data

        print_json(doctor_data(facts, findings, notes))
    else:
        from pagemerge.views.doctor import print_doctor

        print_doctor(facts, findings, notes)
    return int(any(finding.severity is Severity.PROBLEM for finding in findings))


def _examine_kernel(
    args: argparse.Namespace, look: float, notes: list[str]
) -> tuple[Facts, Sequence[Finding]]:
    from pagemerge.kernel.doctor import diagnose, read_facts

    contents = None if args.quick or not args.pids else _read_contents(args.pids, look, notes)
    facts = read_facts(args.pids, look_seconds=look, contents=contents)
    return facts, diagnose(facts)


def _examine_engine(pids: Sequence[int], look: float) -> tuple[Facts, Sequence[Finding]]:
    from pagemerge.engine.doctor import diagnose, read_facts

    facts = read_facts(pids, look_seconds=look)
    return facts, diagnose(facts)


def _read_contents(pids: list[int], look: float, notes: list[str]) -> Contents | None:
    """Read the marked memory; what keeps it from being read goes into `notes`."""
    from pagemerge.insight import EstimateOptions, estimate, find_targets
    from pagemerge.ksm.doctor import Contents

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
