"""What is in memory of each mapping: /proc/PID/smaps and smaps_rollup.

The kernel walks the page tables for every line of these files: they are read once, whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pagemerge.errors import FormatError
from pagemerge.memory.files import PROC, read_process_text
from pagemerge.memory.maps import Vma, parse_maps_line

__all__ = ["Smap", "parse_smaps", "parse_smaps_rollup", "read_smaps", "read_smaps_rollup"]

_FLAGS = "VmFlags"


@dataclass(frozen=True, slots=True)
class Smap:
    """A mapping and what is in memory of it.

    Attributes:
        vma: the line of /proc/PID/maps.
        sizes: bytes by the kernel's names: Rss, Pss, Anonymous, AnonHugePages, Swap, KSM ...
            What this kernel does not show is not in it.
        flags: the two-letter VmFlags; `mg` is mergeable.
    """

    vma: Vma
    sizes: Mapping[str, int]
    flags: frozenset[str]

    @property
    def ksm_bytes(self) -> int | None:
        """Bytes on pages that the kernel's KSM keeps; None before Linux 6.6."""
        return self.sizes.get("KSM")

    @property
    def is_mergeable(self) -> bool:
        """Whether the kernel's KSM may merge it (VM_MERGEABLE)."""
        return "mg" in self.flags


def parse_smaps(text: str, path: str = "smaps") -> list[Smap]:
    """Read the whole file; `path` is named in the error.

    Raises:
        FormatError: it is not such a file.
    """
    lines = text.splitlines()
    if not lines:
        return []
    try:
        return _parse_even(lines)
    except _UnevenError:
        pass
    try:
        return list(_parse_any(lines))
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from error


def parse_smaps_rollup(text: str, path: str = "smaps_rollup") -> dict[str, int]:
    """Read the sums over all mappings, in bytes by the kernel's names.

    Raises:
        FormatError: it is not such a file.
    """
    try:
        return dict(_size(line) for line in text.splitlines()[1:])
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from error


def read_smaps(pid: int, proc: Path = PROC) -> list[Smap]:
    """Read the mappings of a process with what is in memory of each.

    Raises:
        ProcessGoneError, NotPermittedError: it ended, or may not be looked at.
    """
    return parse_smaps(read_process_text(pid, "smaps", proc), f"{proc}/{pid}/smaps")


def read_smaps_rollup(pid: int, proc: Path = PROC) -> dict[str, int]:
    """Read Rss, Pss, KSM ... of a whole process, in bytes; empty for a kernel thread.

    Raises:
        ProcessGoneError, NotPermittedError: it ended, or may not be looked at.
        NotSupportedError: the kernel is older than 4.14.
    """
    text = read_process_text(pid, "smaps_rollup", proc)
    return parse_smaps_rollup(text, f"{proc}/{pid}/smaps_rollup")


def _size(line: str) -> tuple[str, int]:
    """Read `Name:   123 kB` (or a bare number, as THPeligible has)."""
    name, colon, rest = line.partition(":")
    number, _, unit = rest.strip().partition(" ")
    if not colon:
        raise ValueError(f"{line!r} is not NAME: NUMBER")
    return name, int(number) * (1024 if unit == "kB" else 1)


class _UnevenError(Exception):
    """The lines do not repeat evenly."""


def _parse_even(lines: list[str]) -> list[Smap]:
    """Read by columns, the quick way: a kernel shows the same lines for each mapping.

    With 30,000 mappings of 25 lines, line by line takes three times as long.

    Raises:
        _UnevenError: not all mappings have the same lines.
    """
    flags_at = next((i for i, line in enumerate(lines) if line.startswith(_FLAGS)), -1)
    if flags_at < 0 or len(lines) % (period := flags_at + 1):
        raise _UnevenError
    last = lines[flags_at::period]
    if not all(line.startswith(_FLAGS) for line in last):
        raise _UnevenError
    columns: dict[str, Iterable[int]] = {}
    known: dict[str, frozenset[str]] = {}
    try:
        for at in range(1, flags_at):
            name, column = _parse_column(lines[at::period])
            columns[name] = column
        order = tuple(columns)
        rows = zip(*columns.values(), strict=True) if columns else iter([()] * len(last))
        return [
            Smap(
                parse_maps_line(head),
                dict(zip(order, row, strict=True)),
                known.get(flags) or known.setdefault(flags, frozenset(flags.split()[1:])),
            )
            for head, row, flags in zip(lines[::period], rows, last, strict=True)
        ]
    except ValueError as error:
        raise _UnevenError from error


def _parse_column(column: list[str]) -> tuple[str, Iterable[int]]:
    """Read the same line of all mappings; most have the same few sizes, each is read once."""
    sizes = {line: _size(line) for line in set(column)}
    names = {name for name, _ in sizes.values()}
    name = names.pop()
    if names or not name[:1].isupper():
        raise _UnevenError
    values = {line: value for line, (_, value) in sizes.items()}
    return name, map(values.__getitem__, column)


def _parse_any(lines: list[str]) -> Iterator[Smap]:
    """Read line by line."""
    head: str | None = None
    sizes: dict[str, int] = {}
    flags: frozenset[str] = frozenset()
    for line in lines:
        name, colon, rest = line.partition(":")
        if name == _FLAGS:
            flags = frozenset(rest.split())
        elif colon and name[:1].isupper():
            key, value = _size(line)
            sizes[key] = value
        else:  # a mapping's own line begins with a hexadecimal number, in lower case
            if head is not None:
                yield Smap(parse_maps_line(head), sizes, flags)
            head, sizes, flags = line, {}, frozenset()
    if head is not None:
        yield Smap(parse_maps_line(head), sizes, flags)
