"""What the one table of samepage merging consists of: knobs, counters, events, and their types.

Names, types and ranges are the kernel's (`/sys/kernel/mm/ksm`, `/proc/PID/ksm_stat`, the trace
events of the group `ksm`). What only the engine has says so by `since=None`. The command line,
the API, the documentation and the exporter are derived from knobs.py, counters.py and
events.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

__all__ = ["Counter", "EventField", "EventKind", "Knob", "ProcessItem", "Type", "Unit"]

UINT_MAX: Final = 2**32 - 1
INT_MAX: Final = 2**31 - 1
ULONG_MAX: Final = 2**64 - 1


class Type(StrEnum):
    """How the kernel parses or keeps a value."""

    UINT = "u32"
    INT = "int"
    ULONG = "ulong"
    LONG = "long"
    BOOL = "bool"
    CHOICE = "choice"


class Unit(StrEnum):
    """What a number counts."""

    NONE = ""
    PAGES = "pages"
    BYTES = "bytes"
    MILLISECS = "ms"
    SECONDS = "s"
    PERCENT = "%"
    PASSES = "passes"
    TIMES = "times"
    CONTENTS = "contents"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    name: str
    type: Type
    unit: Unit = Unit.NONE
    meaning: str
    since: str | None  # the kernel version that brought it; None: only the engine has it
    note: str = ""

    @property
    def engine_only(self) -> bool:
        """Whether the kernel's KSM has nothing like it."""
        return self.since is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob(_Item):
    """A setting; `minimum` and `maximum` are inclusive.

    Attributes:
        default: the value of a machine that was just started.
        choices: what a `Type.CHOICE` may be, or the words for the numbers of a flag.
    """

    default: int | str
    minimum: int = 0
    maximum: int = UINT_MAX
    choices: tuple[str, ...] = ()

    @property
    def accepted(self) -> str:
        """The accepted values, in words."""
        if self.type is Type.CHOICE:
            return " or ".join(self.choices)
        if self.type is Type.BOOL:
            return "0 or 1 (also y/n, t/f, on/off)"
        if self.maximum - self.minimum <= 2:
            *firsts, last = map(str, range(self.minimum, self.maximum + 1))
            return f"{', '.join(firsts)} or {last}"
        return f"a whole number from {self.minimum} to {self.maximum}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter(_Item):
    """A number that can only be read; of the whole machine, or of the engine's daemon."""

    type: Type = Type.ULONG
    monotone: bool = False  # only grows (for rates, and for the exporter's metric type)
    is_detail: bool = False  # for who looks for a cause: shown to people only when it is not 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessItem(_Item):
    """A line of /proc/PID/ksm_stat."""


@dataclass(frozen=True, slots=True)
class EventField:
    """A field of a trace event; `type` is the kernel's C type."""

    name: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventKind:
    """A trace event of the kernel's group `ksm`."""

    name: str
    since: str
    fields: tuple[EventField, ...]
    meaning: str
    note: str = field(default="")
