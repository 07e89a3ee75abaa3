"""The command line: a module a command, and `main`, which alone prints errors."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn, Protocol

from pagemerge import __version__
from pagemerge.commands import (
    advise,
    completion,
    daemon,
    disable,
    doctor,
    enable,
    estimate,
    manual,
    ps,
    regions,
    run,
    run_state,
    status,
    stop,
    trace,
)
from pagemerge.commands import set as set_knobs
from pagemerge.errors import CommandError, PagemergeError

__all__ = ["COMMANDS", "Command", "main", "make_parser"]

INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell has it
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE


class Command(Protocol):
    """What a command's module has."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""

    def run(self, args: argparse.Namespace) -> int | None:
        """Do it; returns the exit status, None for 0."""


COMMANDS: Final[tuple[Command, ...]] = (
    run,
    status,
    doctor,
    run_state,
    set_knobs,
    ps,
    regions,
    trace,
    enable,
    disable,
    estimate,
    advise,
    daemon,
    stop,
    completion,
    manual,
)


class _Parser(argparse.ArgumentParser):
    """Leaves it to `main` to print what is wrong."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(message, hint=f"{self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; `args.command` is the module chosen."""
    parser = _Parser(
        prog="pagemerge",
        description="Samepage merging for Linux: keep one copy of equal pages of memory.",
        epilog="'pagemerge COMMAND --help' says more on a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pagemerge {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.NAME,
            help=command.HELP,
            description=(getattr(command, "__doc__", None) or command.HELP).strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(subparser)
        subparser.set_defaults(command=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Errors of this package end in one line on stderr, with a hint where there is a way out.
    """
    gc.set_threshold(100_000)  # a command makes many objects, and hardly any that form rings
    try:
        args = make_parser().parse_args(argv)
        status: int | None = args.command.run(args)
        sys.stdout.flush()
    except PagemergeError as error:
        _complain(error)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # the interpreter flushes stdout once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return status or 0


def _complain(error: PagemergeError) -> None:
    def say(text: Any) -> None:
        sys.stderr.write(f"{text}\n")

    say(f"pagemerge: error: {error}")
    if error.hint:
        say(f"hint: {error.hint}")
