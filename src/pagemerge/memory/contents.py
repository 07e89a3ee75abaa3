"""Bytes of a process's memory: /proc/PID/mem."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pagemerge.memory.files import PROC, reading

__all__ = ["open_contents", "read_contents"]


def open_contents(pid: int, proc: Path = PROC) -> int:
    """Open a process's memory for reading; the descriptor is the caller's to close.

    Raises:
        ProcessGoneError, NotPermittedError: it ended, or may not be looked at.
    """
    path = proc / str(pid) / "mem"
    with reading(pid, path, proc):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def read_contents(pid: int, address: int, size: int, proc: Path = PROC) -> bytes:
    """Read bytes; none where something is not mapped. Pages are faulted in.

    Raises:
        ProcessGoneError, NotPermittedError: it ended, or may not be looked at.
    """
    file = open_contents(pid, proc)
    try:
        with reading(pid, proc / str(pid) / "mem", proc):
            return os.pread(file, size, address)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EFAULT):
            raise
        return b""
    finally:
        os.close(file)
