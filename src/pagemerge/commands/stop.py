"""Stop the engine's daemon. What is merged stays merged, and every process keeps its memory."""

from __future__ import annotations

import argparse

NAME = "stop"
HELP = "stop the engine's daemon"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


def run(args: argparse.Namespace) -> None:  # noqa: ARG001
    """Stop it, and wait until it has."""
    from pagemerge.engine.client import EngineKsm

    with EngineKsm() as ksm:
        ksm.stop()
