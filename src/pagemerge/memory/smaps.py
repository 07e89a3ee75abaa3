"""What is in memory of each mapping: /proc/PID/smaps and smaps_rollup.

The kernel walks the page tables for every line of these files: they are read once, whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from pagemerge.errors import FormatError
from pagemerge.memory.files import PROC, read_process_text
from pagemerge.memory.maps import Vma, parse_maps_line

__all__ = [
    "Smap",
    "SmapRow",
    "parse_smaps",
    "parse_smaps_rollup",
    "parse_smaps_rows",
    "read_smaps",
    "read_smaps_rollup",
    "read_smaps_rows",
]

_FLAGS = "VmFlags"


class SmapRow(NamedTuple):
    """A mapping with some of its sizes, bytes, in the order asked for."""

    vma: Vma
    sizes: tuple[int | None, ...]
    flags: frozenset[str]


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


def parse_smaps_rows(text: str, names: Sequence[str], path: str = "smaps") -> Iterator[SmapRow]:
    """Read only the sizes asked for; with 30,000 mappings a third of `parse_smaps`' time.

    Args:
        text: the file.
        names: of the sizes, by the kernel's names; None where this kernel does not show one.
        path: named in the error.

    Raises:
        FormatError: it is not such a file.
    """
    lines = text.splitlines()
    try:
        period = _period(lines)
        if text.count(f"\n{_FLAGS}:") * period != len(lines):
            raise _UnevenError
        places = {line.partition(":")[0]: at for at, line in enumerate(lines[1:period], 1)}
        columns: list[Iterable[int | None]] = []
        for name in names:
            at = places.get(name)
            if at is None:
                if f"\n{name}:" in text:
                    raise _UnevenError
                columns.append(repeat(None))
                continue
            found, column = _parse_column(lines[at::period])
            if found != name:
                raise _UnevenError
            columns.append(column)
        vmas = [parse_maps_line(head) for head in lines[::period]]
    except (_UnevenError, ValueError):
        for smap in parse_smaps(text, path):
            yield SmapRow(smap.vma, tuple(map(smap.sizes.get, names)), smap.flags)
        return
    flags = map(_FlagSets().__getitem__, lines[period - 1 :: period])
    # not strict: a size that is never shown repeats for ever
    sizes = zip(*columns, strict=False) if columns else repeat(())
    yield from map(SmapRow, vmas, sizes, flags)


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


def read_smaps_rows(pid: int, names: Sequence[str], proc: Path = PROC) -> Iterator[SmapRow]:
    """Read the mappings of a process with the sizes asked for; see `parse_smaps_rows`.

    Raises:
        ProcessGoneError, NotPermittedError: it ended, or may not be looked at.
    """
    text = read_process_text(pid, "smaps", proc)
    return parse_smaps_rows(text, names, f"{proc}/{pid}/smaps")


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


class _FlagSets(dict[str, frozenset[str]]):
    """VmFlags' lines and what they say; few differ, each is read once."""

    def __missing__(self, line: str) -> frozenset[str]:
        found = self[line] = frozenset(line.split()[1:])
        return found


def _period(lines: list[str]) -> int:
    """Find how many lines each mapping has.

    Raises:
        _UnevenError: not all have the same number.
    """
    flags_at = next((i for i, line in enumerate(lines) if line.startswith(_FLAGS)), -1)
    period = flags_at + 1
    if flags_at < 0 or len(lines) % period:
        raise _UnevenError
    if not all(line.startswith(_FLAGS) for line in lines[flags_at::period]):
        raise _UnevenError
    return period


def _parse_even(lines: list[str]) -> list[Smap]:
    """Read by columns, the quick way: a kernel shows the same lines for each mapping.

    With 30,000 mappings of 25 lines, line by line takes three times as long.

    Raises:
        _UnevenError: not all mappings have the same lines.
    """
    period = _period(lines)
    flags_at = period - 1
    last = lines[flags_at::period]
    columns: dict[str, Iterable[int]] = {}
    known = _FlagSets()
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
                known[flags],
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
