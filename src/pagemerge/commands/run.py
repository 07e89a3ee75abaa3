"""Run an unmodified command with its children, and say at its end what merging saved.

What the program marks with madvise(MADV_MERGEABLE) or prctl(PR_SET_MEMORY_MERGE) is merged; with
--all, all its memory. The exit status is the command's.

By the engine: its daemon is used when it is running; otherwise one is started for this command
alone. The engine is the default, unless the kernel's KSM is at work (run=1) on this machine.

By the kernel's KSM: prctl(PR_SET_MEMORY_MERGE) is set between fork and exec, and is inherited
(Linux 6.7). '--ksm kernel' implies --all; --no-all leaves it to the program. Its knobs are the
whole machine's: none is written but by --start, which sets run=1 and puts back what was there.

Pss is read from /proc/PID/smaps or smaps_rollup of all its processes. 'before' is what they would
take at the moment when most was saved if no page were shared by merging, 'after' what they took.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from pagemerge import choice
from pagemerge.commands.options import parse_assignments
from pagemerge.errors import CommandError

NAME = "run"
HELP = "run a command with its memory merged"

STDOUT = Path("-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.usage = (
        "pagemerge run [-h] [--ksm engine|kernel] [--all] [--connect] [--report FILE] "
        "[--domain NAME] [--set NAME=VALUE] [--start] [--quiet] -- CMD ..."
    )
    parser.add_argument(
        "--ksm",
        choices=choice.IMPLEMENTATIONS,
        help="which implementation (default: the kernel's while it is at work, else the engine)",
    )
    parser.add_argument(
        "--all",
        action=argparse.BooleanOptionalAction,
        help="merge all memory, as if each process had called prctl(PR_SET_MEMORY_MERGE)",
    )
    parser.add_argument(
        "--connect",
        action="store_true",
        help="have each process be the engine's client from its start, with nothing merged: for "
        "'advise --apply' and 'enable' later (engine)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="write what was saved there, as JSON; -: standard output",
    )
    parser.add_argument(
        "--domain", metavar="NAME", help="share pages only within this domain (engine)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a knob for the command's own daemon; may be repeated "
        "(engine; default: pages_to_scan=25000 sleep_millisecs=20)",
    )
    parser.add_argument(
        "--start",
        action="store_true",
        help="switch the kernel's KSM on while the command runs (run=1; root), then back",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="print nothing at the end; --report still writes"
    )
    parser.add_argument("cmd", nargs=argparse.REMAINDER, metavar="CMD", help="what to run")


def run(args: argparse.Namespace) -> int:
    """Run it; returns its exit status."""
    argv = args.cmd[1:] if args.cmd[:1] == ["--"] else args.cmd
    if not argv:
        raise CommandError("no command to run", hint="pagemerge run [OPTION ...] -- CMD [ARG ...]")
    values = parse_assignments(args.set)
    if args.report:
        _check_writable(args.report)
    chosen = _choose(args)
    is_named = args.ksm or args.start or args.domain or args.set or args.connect
    why = None if is_named else choice.explain_run(None, chosen)
    if chosen == "kernel":
        status, report = _run_by_kernel(args, argv)
    else:
        status, report = _run_by_engine(args, argv, values)
    if why:
        report["notes"].append(why)
    if args.report:
        _write_report(args.report, report)
    if not args.quiet:
        _print_report(report)
    return status


def _choose(args: argparse.Namespace) -> choice.Implementation:
    """Find who is meant; options that only one of them has name it.

    Raises:
        CommandError: they contradict each other.
    """
    named: str | None = args.ksm
    engines = [option for option in ("domain", "set", "connect") if getattr(args, option)]
    if args.start:
        if named == "engine":
            raise CommandError("--start is for the kernel's KSM", hint="the engine is started")
        named = "kernel"
    if engines:
        if named == "kernel":
            raise CommandError(
                f"--{engines[0]} is for the engine",
                hint={
                    "set": "the kernel's knobs are the whole machine's: "
                    "'pagemerge set --ksm kernel'",
                    "domain": "the kernel's KSM knows no domains",
                    "connect": "the kernel's KSM takes any process without it",
                }[engines[0]],
            )
        named = "engine"
    return choice.choose(named, starts_engine=True)


def _run_by_engine(
    args: argparse.Namespace, argv: list[str], values: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    from pagemerge.engine.launch import agent_environment, open_session
    from pagemerge.engine.preloading import why_not_preloaded
    from pagemerge.engine.savings import Savings
    from pagemerge.engine.supervising import run_command

    everything = bool(args.all)
    with open_session(values) as session:
        environment = agent_environment(
            session.runtime,
            everything=everything,
            connect=args.connect,
            domain=args.domain or "",
            base=os.environ,
        )
        savings = Savings(session, everything=everything)
        reason = why_not_preloaded(argv[0], environment)
        if reason:
            savings.notes.append(f"the agent can't come into {argv[0]}: {reason}")
        savings.begin()
        status = run_command(argv, environment, savings.look)
        savings.finish()
    return status, savings.report(argv, status)


def _run_by_kernel(args: argparse.Namespace, argv: list[str]) -> tuple[int, dict[str, Any]]:
    from pagemerge.engine.supervising import run_command
    from pagemerge.kernel import own
    from pagemerge.kernel.ksm import KernelKsm
    from pagemerge.kernel.savings import KernelSavings

    # the engine's default is kept where the kernel's KSM was not asked for by name
    everything = (args.ksm == "kernel" or args.start) if args.all is None else args.all
    ksm = KernelKsm()
    if everything:
        own.is_enabled()  # refused here rather than in the child

    def merge_all() -> None:
        code = own.call_prctl(1)
        if code:
            raise OSError(code, "prctl(PR_SET_MEMORY_MERGE)")

    with ksm.started() if args.start else contextlib.nullcontext():
        if ksm.knobs["run"] != 1 and not args.quiet:
            sys.stderr.write(
                f"pagemerge: nothing will be merged: the kernel's KSM is off "
                f"(run is {ksm.knobs['run']})\n"
                "hint: 'pagemerge set --ksm kernel run=1' as root, or 'pagemerge run --start'\n"
            )
        savings = KernelSavings(ksm, everything=everything)
        savings.begin()
        status = run_command(argv, os.environ, savings.look, merge_all if everything else None)
        savings.finish()
    return status, savings.report(argv, status)


def _check_writable(path: Path) -> None:
    """Find out before the command runs whether its report can be written.

    Raises:
        CommandError: it can't.
    """
    try:
        if path != STDOUT:
            path.open("a").close()
    except OSError as error:
        raise CommandError(f"the report can't be written: {path}: {error.strerror}") from error


def _write_report(path: Path, report: dict[str, Any]) -> None:
    """Write it; where that fails after all, the exit status is still the command's."""
    text = json.dumps(report, indent=2) + "\n"
    try:
        if path == STDOUT:
            # not opened anew: in a file it comes behind what the command has printed
            os.write(sys.stdout.fileno(), text.encode())
        else:
            path.write_text(text)
    except OSError as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"pagemerge: error: {path}: {error.strerror}: no report\n")


def _print_report(report: dict[str, Any]) -> None:
    """Print it; where stderr is full or closed, the exit status is still the command's."""
    from pagemerge.views.savings import print_savings

    try:
        print_savings(report, sys.stderr)
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # flushed again at the end
