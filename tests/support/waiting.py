"""Waiting for what another process does: always with a deadline, never a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["wait_until"]

T = TypeVar("T")


def wait_until(probe: Callable[[], T], what: str, seconds: float = 30.0, every: float = 0.01) -> T:
    """Call `probe` until it gives something true, and return that.

    Args:
        probe: Asked again and again.
        what: What is waited for, for the message.
        seconds: The deadline; generous, since machines that run tests are often busy.
        every: Seconds between two looks.

    Raises:
        TimeoutError: The deadline passed.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {seconds:g} s (last: {value!r})")
        time.sleep(every)
