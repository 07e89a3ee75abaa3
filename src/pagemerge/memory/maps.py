"""The mappings of a process: /proc/PID/maps."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pagemerge.errors import FormatError
from pagemerge.memory.files import PROC, read_process_text

__all__ = ["Vma", "parse_maps", "parse_maps_line", "read_maps"]


class Vma(NamedTuple):
    """One line of /proc/PID/maps; `start`, `end` (exclusive) and `offset` are bytes."""

    start: int
    end: int
    perms: str
    offset: int
    device: str
    inode: int
    path: str

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return self.end - self.start

    @property
    def is_private(self) -> bool:
        """Whether a write makes a copy of its own (`p`)."""
        return self.perms[3] == "p"


def parse_maps_line(line: str) -> Vma:
    """Read one line.

    >>> parse_maps_line("7f00-8f00 rw-p 00001000 fe:00 42   /lib/a file").path
    '/lib/a file'

    Raises:
        ValueError: it is none.
    """
    addresses, perms, offset, device, inode, *path = line.split(None, 5)
    start, _, end = addresses.partition("-")
    return Vma(
        int(start, 16),
        int(end, 16),
        perms,
        int(offset, 16),
        device,
        int(inode),
        path[0].rstrip("\n") if path else "",
    )


def parse_maps(text: str, path: str = "maps") -> list[Vma]:
    """Read all lines; `path` is named in the error.

    Raises:
        FormatError: a line is no mapping.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found.append(parse_maps_line(line))
        except ValueError as error:
            raise FormatError(f"{path}:{number}: {line!r} is no mapping") from error
    return found


def read_maps(pid: int, proc: Path = PROC) -> list[Vma]:
    """Read the mappings of a process, in address order; none for a kernel thread.

    Raises:
        ProcessGoneError, NotPermittedError: it ended, or may not be looked at.
    """
    return parse_maps(read_process_text(pid, "maps", proc), f"{proc}/{pid}/maps")
