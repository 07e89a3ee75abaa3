"""Skips that continuous integration does not let pass.

A test that finds its machine lacking calls `lacking`: a skip with the reason, or, where
PAGEMERGE_CI=1 says that the machine should have everything, a failure.
"""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

__all__ = ["lacking", "require"]


def lacking(what: str) -> NoReturn:
    """End the running test, since `what` is not to be had here."""
    if os.environ.get("PAGEMERGE_CI") == "1":
        pytest.fail(f"PAGEMERGE_CI=1, but this machine lacks {what}", pytrace=False)
    pytest.skip(f"this machine lacks {what}")


def require(condition: object, what: str) -> None:
    """End the running test unless the condition holds."""
    if not condition:
        lacking(what)
