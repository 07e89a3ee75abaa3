"""Arguments that several commands share, and which implementation they mean."""

from __future__ import annotations

import argparse

from pagemerge import choice
from pagemerge.choice import IMPLEMENTATIONS
from pagemerge.errors import CommandError, FormatError
from pagemerge.ksm import Ksm, parse_assignment
from pagemerge.units import parse_duration

__all__ = [
    "add_json_option",
    "add_ksm_option",
    "open_ksm",
    "parse_assignments",
    "parse_pid",
    "parse_time",
]


def add_ksm_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--ksm`; `open_ksm` reads it."""
    parser.add_argument(
        "--ksm",
        choices=IMPLEMENTATIONS,
        help="which implementation: this project's engine, or the kernel's KSM "
        "(default: the kernel's where it can be used, otherwise the engine)",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--json`."""
    parser.add_argument(
        "--json", action="store_true", help="print JSON; its keys are the kernel's names"
    )


def open_ksm(args: argparse.Namespace, *, looks: bool = True) -> Ksm:
    """Open the implementation that `--ksm` names, or the usual one; see `pagemerge.choice`.

    Args:
        args: with `ksm`.
        looks: nothing will be asked of it but to show itself.

    Raises:
        EngineError: the engine is meant, and its runtime folder is not private.
        NotSupportedError: the kernel's was asked for, and this kernel has none.
    """
    return choice.open_ksm(args.ksm, looks=looks)


def parse_assignments(texts: list[str]) -> dict[str, str]:
    """Read NAME=VALUE arguments, in their order.

    Raises:
        CommandError: one is no such thing, names no knob, or a knob comes twice.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, value = parse_assignment(text)
        if name in values:
            raise CommandError(f"{name} is given twice")
        values[name] = value
    return values


def parse_pid(text: str) -> int:
    """Read a process's number; for argparse, which prints what is wrong.

    Raises:
        ArgumentTypeError: no process has such a number.
    """
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a process")
    return int(text)


def parse_time(option: str, text: str) -> float:
    """Read the time that an option gives, in seconds.

    Raises:
        CommandError: it is none.
    """
    try:
        return parse_duration(text)
    except FormatError as error:
        raise CommandError(f"{option}: {error}", hint=error.hint) from error
