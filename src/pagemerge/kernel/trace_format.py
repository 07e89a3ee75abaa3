"""How trace records lie in memory: the `format` files of events and ring buffer pages (tracefs).

Offsets and sizes differ between kernels and machines, so that nothing of them is assumed: what is
read from `events/*/*/format` and `events/header_page` becomes one `struct` per event.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from typing import Final

from pagemerge.errors import FormatError

__all__ = ["EventFormat", "FormatField", "PageLayout", "parse_format", "parse_header_page"]

_FIELD: Final = re.compile(
    r"^\s*field:\s*(?P<declaration>[^;]+);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);"
    r"(?:\s*signed:(?P<signed>[01]);)?\s*$"
)
_CODES: Final = {1: "b", 2: "h", 4: "i", 8: "q"}
# Of the head that all records have, only the thread in whose context the event came is of use.
_COMMON: Final = "common_"
_COMMON_PID: Final = "common_pid"


@dataclass(frozen=True, slots=True)
class FormatField:
    """A field of a record.

    Attributes:
        declaration: as in C, without the name: `unsigned long`, `char[16]`.
        offset: bytes from the record's beginning.
        size: bytes.
    """

    name: str
    declaration: str
    offset: int
    size: int
    signed: bool

    @property
    def is_array(self) -> bool:
        """Whether it is more than one number."""
        return "[" in self.declaration or self.size not in _CODES


@dataclass(frozen=True)
class EventFormat:
    """An event's record.

    Attributes:
        id: the number at the head of its records.
        fields: all that its format file lists, the common ones included.
        names: the fields that `unpack` gives, in its order.
    """

    name: str
    id: int
    fields: tuple[FormatField, ...]
    names: tuple[str, ...] = field(init=False)
    _struct: struct.Struct = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compile the layout."""
        code, end, names = "=", 0, []
        for one in sorted(self.fields, key=lambda one: one.offset):
            if one.offset < end:
                continue  # the second of two that lie upon one another is a view of the first
            if one.name.startswith(_COMMON) and one.name != _COMMON_PID:
                continue
            code += f"{one.offset - end}x"
            if one.is_array:
                code += f"{one.size}s"
            else:
                code += _CODES[one.size] if one.signed else _CODES[one.size].upper()
            end = one.offset + one.size
            names.append(one.name)
        object.__setattr__(self, "names", tuple(names))
        object.__setattr__(self, "_struct", struct.Struct(code))

    @property
    def size(self) -> int:
        """The bytes of a record that are needed."""
        return self._struct.size

    def unpack(self, page: bytes, offset: int) -> tuple[int | bytes, ...]:
        """Read a record: numbers, signed where the kernel says so; arrays as bytes.

        Raises:
            struct.error: the record is shorter than its format.
        """
        return self._struct.unpack_from(page, offset)


@dataclass(frozen=True, slots=True)
class PageLayout:
    """The head of a ring buffer page (events/header_page).

    Attributes:
        timestamp: offset of the first record's time, nanoseconds, 8 bytes.
        commit: offset of how many bytes of records follow; its upper bits are flags.
        commit_size: 8 bytes on 64-bit machines, 4 on others.
        data: offset of the first record.
    """

    timestamp: int = 0
    commit: int = 8
    commit_size: int = 8
    data: int = 16


def parse_format(text: str, path: str = "format") -> EventFormat:
    """Read an event's format file.

    Raises:
        FormatError: it is none.
    """
    name, number = "", None
    fields: list[FormatField] = []
    for count, line in enumerate(text.splitlines(), 1):
        if line.startswith("name:"):
            name = line.removeprefix("name:").strip()
        elif line.startswith("ID:") and line.removeprefix("ID:").strip().isdigit():
            number = int(line.removeprefix("ID:"))
        elif line.lstrip().startswith("field:"):
            fields.append(_parse_field(line, f"{path}:{count}"))
    if not name or number is None or not fields:
        raise FormatError(f"{path}: this is no event's format: name, ID or fields are missing")
    return EventFormat(name, number, tuple(fields))


def parse_header_page(text: str, path: str = "header_page") -> PageLayout:
    """Read the layout of a ring buffer page.

    Raises:
        FormatError: a field that is needed is missing.
    """
    fields = {
        one.name: one
        for one in (
            _parse_field(line, f"{path}:{count}")
            for count, line in enumerate(text.splitlines(), 1)
            if line.strip()
        )
    }
    try:
        commit = fields["commit"]
        return PageLayout(
            timestamp=fields["timestamp"].offset,
            commit=commit.offset,
            commit_size=commit.size,
            data=fields["data"].offset,
        )
    except KeyError as error:
        raise FormatError(f"{path}: there is no field {error}") from error


def _parse_field(line: str, where: str) -> FormatField:
    match = _FIELD.match(line)
    if match is None:
        raise FormatError(f"{where}: {line.strip()[:80]!r} is no field")
    declaration = " ".join(match["declaration"].split())
    # "char comm[16]", "void * mm", "__data_loc char[] name"
    found = re.match(r"^(?P<type>.*[\s*])(?P<name>\w+)(?P<array>\[\w*\])?$", declaration)
    if found is None:
        raise FormatError(f"{where}: {declaration!r} declares nothing")
    return FormatField(
        name=found["name"],
        declaration=found["type"].strip() + (found["array"] or ""),
        offset=int(match["offset"]),
        size=int(match["size"]),
        signed=match["signed"] == "1",
    )
