"""Opening a process's files in /proc, with errors that say what happened to the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pagemerge.errors import NotPermittedError, NotSupportedError, ProcessGoneError

__all__ = ["PROC", "iter_pids", "read_process_file", "read_process_text", "reading"]

PROC: Final = Path("/proc")


@contextmanager
def reading(pid: int, path: Path, proc: Path = PROC) -> Iterator[None]:
    """Turn what goes wrong with a process's file into this package's errors.

    Raises:
        ProcessGoneError: the process has ended.
        NotPermittedError: it is another user's, or not dumpable.
        NotSupportedError: the process is there, but this kernel has no such file.
    """
    try:
        yield
    except ProcessLookupError as error:  # opened in time, ended while being read
        raise ProcessGoneError(pid) from error
    except FileNotFoundError as error:
        if not (proc / str(pid)).exists():
            raise ProcessGoneError(pid) from error
        raise NotSupportedError(f"this kernel has no {path}", where=str(path)) from error
    except PermissionError as error:
        from pagemerge.memory.privileges import what_it_takes  # which reads files, too

        raise NotPermittedError(
            f"{path}: reading it is not permitted",
            where=str(path),
            hint=what_it_takes(
                "CAP_SYS_PTRACE", "it takes the process's own user, or root (CAP_SYS_PTRACE)"
            ),
        ) from error


def read_process_file(pid: int, name: str, proc: Path = PROC) -> bytes:
    """Read a file of /proc/PID; empty for kernel threads and zombies, where the kernel has it so.

    Raises:
        ProcessGoneError, NotPermittedError, NotSupportedError: as `reading`.
    """
    path = proc / str(pid) / name
    with reading(pid, path, proc):
        return path.read_bytes()


def read_process_text(pid: int, name: str, proc: Path = PROC) -> str:
    """Read a file of /proc/PID as text; bytes that are no UTF-8 survive as surrogates.

    Raises:
        ProcessGoneError, NotPermittedError, NotSupportedError: as `reading`.
    """
    return read_process_file(pid, name, proc).decode("utf-8", "surrogateescape")


def iter_pids(proc: Path = PROC) -> Iterator[int]:
    """Go through the processes that are there, in ascending order."""
    return iter(sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()))
