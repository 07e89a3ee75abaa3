"""Opening /proc/PID/pagemap: what of a process is in memory; its parsing is the C core's."""

from __future__ import annotations

import os
from pathlib import Path

from pagemerge.memory.files import PROC, reading

__all__ = ["open_pagemap"]


def open_pagemap(pid: int, proc: Path = PROC) -> int:
    """Open it for reading; the descriptor is the caller's to close.

    Raises:
        ProcessGoneError, NotPermittedError: it ended, or may not be looked at.
    """
    path = proc / str(pid) / "pagemap"
    with reading(pid, path, proc):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
