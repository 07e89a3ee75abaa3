"""Arguments that several commands share, and which implementation they mean."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from typing import Final

from pagemerge.errors import CommandError
from pagemerge.ksm import Ksm, parse_assignment

__all__ = ["add_json_option", "add_ksm_option", "open_ksm", "parse_assignments"]

IMPLEMENTATIONS: Final = ("engine", "kernel")


def add_ksm_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--ksm`; `open_ksm` reads it."""
    parser.add_argument(
        "--ksm",
        choices=IMPLEMENTATIONS,
        help="which implementation: this project's engine, or the kernel's KSM "
        "(default: the engine while its daemon is running, else the kernel)",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--json`."""
    parser.add_argument(
        "--json", action="store_true", help="print JSON; its keys are the kernel's names"
    )


def open_ksm(args: argparse.Namespace) -> Ksm:
    """Open the implementation that `--ksm` names, or the one in use.

    Raises:
        EngineError: the engine was asked for, and its runtime folder is not private.
        NotSupportedError: the kernel's was asked for, and this kernel has none.
    """
    from pagemerge.engine import paths
    from pagemerge.engine.client import EngineKsm, daemon_answers

    wants_kernel = args.ksm == "kernel"
    if args.ksm == "engine" or not (wants_kernel or _has_kernel()):
        return EngineKsm()
    if not wants_kernel and daemon_answers(paths.runtime_dir()):
        return EngineKsm()
    if not _has_kernel():
        raise CommandError("this version of pagemerge drives its own engine only")
    ksm: Ksm = importlib.import_module("pagemerge.kernel").KernelKsm()
    return ksm


def _has_kernel() -> bool:
    return importlib.util.find_spec("pagemerge.kernel") is not None


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
