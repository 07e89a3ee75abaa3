"""The command line: a module a command, and `main`, which alone prints errors."""

from __future__ import annotations

import argparse
import errno
import gc
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NoReturn

from pagemerge import __version__
from pagemerge.errors import CommandError, PagemergeError
from pagemerge.units import render_name

__all__ = ["COMMANDS", "Command", "main", "make_parser"]

INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell has it
PIPE_CLOSED: Final = 141  # 128 + SIGPIPE
_OUTPUT_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


class Command:
    """A command, by its module's name; the module is loaded when more than the name is asked for.

    A module has `NAME`, `HELP`, `add_arguments(parser)` and `run(args)`, which returns the exit
    status, None for 0; its docstring is the command's description.
    """

    def __init__(self, module: str) -> None:
        """Know it by its module; a command is named as its module, with `-` for `_`."""
        self.NAME = module.replace("_", "-")
        self._module = module

    @property
    def module(self) -> Any:
        """The module."""
        return import_module(f"pagemerge.commands.{self._module}")

    @property
    def HELP(self) -> str:  # noqa: N802 - as the modules name it
        """What it does, in a few words."""
        text: str = self.module.HELP
        return text

    def run(self, args: argparse.Namespace) -> int | None:
        """Do it; returns the exit status, None for 0."""
        status: int | None = self.module.run(args)
        return status


COMMANDS: Final[tuple[Command, ...]] = (
    Command("run"),
    Command("status"),
    Command("doctor"),
    Command("run_state"),
    Command("set"),
    Command("ps"),
    Command("regions"),
    Command("trace"),
    Command("enable"),
    Command("disable"),
    Command("estimate"),
    Command("advise"),
    Command("daemon"),
    Command("stop"),
    Command("completion"),
    Command("manual"),
)


class _Parser(argparse.ArgumentParser):
    """Leaves it to `main` to print what is wrong; arguments may stand on both sides of options."""

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        several = any(action.nargs in ("*", "+") for action in self._get_positional_actions())
        if self._mixing or not several:
            return super().parse_known_args(args, namespace)
        self._mixing = True  # which calls this again
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False

    def error(self, message: str) -> NoReturn:
        raise CommandError(message, hint=f"{self.prog} --help")


def make_parser(commands: Sequence[Command] = COMMANDS) -> argparse.ArgumentParser:
    """Make the parser of all commands, or of some; `args.command` is the one chosen."""
    parser = _Parser(
        prog="pagemerge",
        description="Samepage merging for Linux: keep one copy of equal pages of memory.",
        epilog="'pagemerge COMMAND --help' says more on a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pagemerge {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in commands:
        subparser = subparsers.add_parser(
            command.NAME,
            help=command.HELP,
            description=(command.module.__doc__ or command.HELP).strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.module.add_arguments(subparser)
        subparser.set_defaults(command=command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    Errors of this package end in one line on stderr, with a hint where there is a way out.
    """
    _prepare_streams()
    gc.set_threshold(100_000)  # a command makes many objects, and hardly any that form rings
    try:
        argv = sys.argv[1:] if argv is None else argv
        # a command that is named is all that need be loaded: quick answers
        named = [command for command in COMMANDS if argv and argv[0] == command.NAME]
        args = make_parser(named or COMMANDS).parse_args(argv)
        status: int | None = args.command.run(args)
        sys.stdout.flush()
    except PagemergeError as error:
        _complain(error)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return PIPE_CLOSED
    except OSError as error:
        # of a file the package says what it could not do with it; this is a stream
        if error.filename is not None or error.errno not in _OUTPUT_ERRORS:
            raise
        _forget_output()
        failed = CommandError(f"the output can't be written: {error.strerror}")
        _complain(failed)
        return failed.exit_status
    return status or 0


def _prepare_streams() -> None:
    """Have stdout and stderr take whatever is written.

    Without them (`>&-`), what is written leads nowhere; where their encoding lacks a character, its
    number is written: names are any bytes, and so are the terminals of this world.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _forget_output() -> None:
    """Let stdout lead nowhere: the interpreter flushes it once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(error: PagemergeError) -> None:
    def say(text: Any) -> None:
        # a process's name may be in it, and lines of a message stay lines
        words = "\n".join(map(render_name, str(text).split("\n")))
        sys.stderr.write(f"{words}\n")

    say(f"pagemerge: error: {error}")
    if error.hint:
        say(f"hint: {error.hint}")
