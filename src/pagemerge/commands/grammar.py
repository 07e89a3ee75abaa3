"""The command line as data, read off its parser, for completion and the manual."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from pagemerge.ksm import KNOBS

__all__ = ["CommandGrammar", "Option", "iter_commands"]


@dataclass(frozen=True, slots=True)
class Option:
    """An option, or, where `flags` is empty, a positional argument."""

    flags: tuple[str, ...]
    metavar: str  # "" where it takes no value
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class CommandGrammar:
    """A command: its name, what it does, its arguments."""

    name: str
    help: str
    description: str
    usage: str
    options: tuple[Option, ...]

    @property
    def flags(self) -> list[str]:
        """All its flags."""
        return [flag for option in self.options for flag in option.flags]


def iter_commands(parser: argparse.ArgumentParser) -> Iterator[CommandGrammar]:
    """Go through the commands of a parser in the order of `--help`."""
    # argparse has no public way to ask a parser for what was declared
    subparsers = next(
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    helps = {action.dest: action.help or "" for action in subparsers._choices_actions}
    for name, subparser in subparsers.choices.items():
        yield CommandGrammar(
            name=name,
            help=helps.get(name, ""),
            description=subparser.description or "",
            usage=" ".join(subparser.format_usage().removeprefix("usage: ").split()),
            options=tuple(_option(action) for action in subparser._actions),
        )


def _option(action: argparse.Action) -> Option:
    metavar = action.metavar or action.dest.upper()
    if isinstance(metavar, tuple):
        metavar = " ".join(metavar)
    choices = tuple(str(choice) for choice in action.choices or ())
    if metavar == "NAME=VALUE":
        choices = tuple(f"{knob.name}=" for knob in KNOBS)
    return Option(
        flags=tuple(action.option_strings),
        metavar="" if action.nargs == 0 else metavar,
        choices=choices,
        help=(action.help or "").replace("%%", "%"),
    )
