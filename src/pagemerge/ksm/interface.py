"""What everything above speaks to: `Ksm`, the kernel's or the engine's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import ClassVar, Protocol, Self

from pagemerge.errors import CommandError
from pagemerge.ksm.events import EVENTS
from pagemerge.ksm.knobs import KNOBS
from pagemerge.ksm.values import Change, KnobValue, known_knob

__all__ = ["Event", "Knobs", "Ksm", "LostEvents", "Process", "Region", "Stop", "known_events"]


@dataclass(frozen=True, slots=True)
class Process:
    """A process with merging on; fields as in /proc/PID/ksm_stat, None where the kernel lacks one.

    Attributes:
        ksm_merging_pages: pages that are merged, zero pages apart.
        ksm_zero_pages: pages replaced by the zero page.
        ksm_rmap_items: pages that ksmd keeps a record of.
        ksm_process_profit: bytes saved, less the metadata; may be below 0.
        ksm_merge_any: whether all of it was asked for, by prctl(PR_SET_MEMORY_MERGE).
        ksm_mergeable: whether any of its regions may be merged.
        own: what only this implementation knows (the engine: `refusal`, `barrier`, ...).
    """

    pid: int
    comm: str
    ksm_merging_pages: int | None = None
    ksm_zero_pages: int | None = None
    ksm_rmap_items: int | None = None
    ksm_process_profit: int | None = None
    ksm_merge_any: bool | None = None
    ksm_mergeable: bool | None = None
    own: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a process's memory; None where this implementation or kernel can't say.

    Attributes:
        start: first byte.
        end: the byte after the last.
        name: what is mapped, as in /proc/PID/maps.
        merged_bytes: bytes on shared pages (the `KSM:` line of smaps).
        zero_bytes: bytes that were replaced by the zero page.
        present_bytes: bytes in memory.
        unshared_pages: pages that have no twin.
        perms: as in /proc/PID/maps.
        mergeable: whether ksmd looks at it (`mg` in smaps' VmFlags).
        obstacle: why it can't be merged; None where it can.
        anonymous_bytes: bytes in memory that are the process's own: all that ksmd can look at.
    """

    start: int
    end: int
    name: str = ""
    merged_bytes: int | None = None
    zero_bytes: int | None = None
    present_bytes: int | None = None
    unshared_pages: int | None = None
    perms: str | None = None
    mergeable: bool | None = None
    obstacle: str | None = None
    anonymous_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A trace event.

    Attributes:
        name: the kernel's name, see `pagemerge.ksm.EVENTS`.
        time: seconds on the monotonic clock.
        fields: the event's fields by their kernel names; pointers are opaque numbers.
        pid: the process it is about, where that is known.
        how: what tells that; None where `pid` is. Of the kernel's: "context", "fork" or "lookup"
            (docs: reference/trace); of the engine's: "client".
    """

    name: str
    time: float
    fields: Mapping[str, int]
    pid: int | None = None
    how: str | None = None


@dataclass(frozen=True, slots=True)
class LostEvents:
    """Events that were not kept, since the reader was too slow."""

    count: int


def known_events(names: Collection[str] | None) -> frozenset[str]:
    """Give the names back when there are such events; all names for None.

    Raises:
        CommandError: there is no event of one of the names.
    """
    known = [kind.name for kind in EVENTS]
    for name in names or ():
        if name not in known:
            raise CommandError(
                f"there is no event {name!r}", hint=f"there are {', '.join(sorted(known))}"
            )
    return frozenset(known if names is None else names)


class Stop(Protocol):
    """What tells an iterator to end, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """Whether it is to end."""


class Knobs(Mapping[str, KnobValue | None]):
    """The settings: a mapping with every knob of `pagemerge.ksm.KNOBS`; None where one is lacking.

    Mirrors /sys/kernel/mm/ksm. Numbers and flags are `int`, advisor_mode is `str`.
    """

    def __getitem__(self, name: str) -> KnobValue | None:
        """Read one knob.

        Raises:
            KeyError: there is no knob of that name.
        """
        if name not in self:
            raise KeyError(name)
        return self.read()[name]

    def __iter__(self) -> Iterator[str]:
        """Go through the names, in the table's order."""
        return (knob.name for knob in KNOBS)

    def __len__(self) -> int:
        """Count the knobs."""
        return len(KNOBS)

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a knob of that name."""
        return any(knob.name == name for knob in KNOBS)

    def __repr__(self) -> str:
        """Show the values."""
        return f"{type(self).__name__}({self.read()})"

    @abstractmethod
    def read(self) -> dict[str, KnobValue | None]:
        """Read all knobs at once; None where this implementation or kernel lacks one."""

    @abstractmethod
    def plan(self, **values: KnobValue | bool) -> list[Change]:
        """Check values as `set` would, and say what would be changed; nothing is written.

        Raises:
            CommandError: there is no such knob.
            RejectedError: a value would be refused (EINVAL, ERANGE, EBUSY).
            NotSupportedError: this kernel or the engine lacks the knob.
            NotPermittedError: this process may not write it.
        """

    @abstractmethod
    def set(self, **values: KnobValue | bool) -> list[Change]:
        """Set knobs, in the order given; all are checked before the first is written.

        Returns:
            What was changed, knobs that had the value already included.

        Raises:
            CommandError, RejectedError, NotSupportedError, NotPermittedError: as `plan`;
                nothing was changed.
        """

    @staticmethod
    def check_name(name: str) -> str:
        """Give the name back when there is such a knob.

        Raises:
            CommandError: there is none.
        """
        return known_knob(name).name


class Ksm(ABC):
    """Samepage merging, the kernel's or the engine's; names are the kernel's."""

    implementation: ClassVar[str]  # "kernel" or "engine"

    @property
    @abstractmethod
    def knobs(self) -> Knobs:
        """The settings (/sys/kernel/mm/ksm)."""

    @abstractmethod
    def counters(self) -> dict[str, int | None]:
        """Read all counters of `pagemerge.ksm.COUNTERS` by name; None where one is lacking."""

    @abstractmethod
    def processes(self) -> list[Process]:
        """List the processes that have merging on (/proc/PID/ksm_stat)."""

    def hidden_pids(self) -> list[int]:
        """List the processes that `processes` had to leave out: this user may not look at them."""
        return []

    @abstractmethod
    def regions(self, pid: int) -> list[Region]:
        """List a process's memory, with what is merged in each part (/proc/PID/smaps).

        Raises:
            ProcessGoneError: there is no such process.
            NotPermittedError: its memory may not be looked at.
        """

    @abstractmethod
    def events(
        self,
        seconds: float | None = None,
        *,
        names: Collection[str] | None = None,
        stop: Stop | None = None,
    ) -> Generator[Event | LostEvents, None, None]:
        """Follow the trace events (tracefs events/ksm), in the order of their times.

        Args:
            seconds: how long; None: until `stop` or closed.
            names: those wanted, of `pagemerge.ksm.EVENTS`; None: all.
            stop: asked about ten times a second; once set, what was traced is handed out, and
                the iterator ends.

        Raises:
            CommandError: there is no event of such a name.
            NotSupportedError, NotPermittedError, EngineError: tracing is not possible here.
        """

    @abstractmethod
    def enable(self, pid: int) -> None:
        """Switch merging on for a running process, as its prctl(PR_SET_MEMORY_MERGE, 1) would.

        Raises:
            ProcessGoneError: there is no such process.
            NotPermittedError: this process may not do that.
        """

    @abstractmethod
    def disable(self, pid: int) -> None:
        """Switch merging off for a running process and unmerge what is merged.

        Raises:
            ProcessGoneError: there is no such process.
            NotPermittedError: this process may not do that.
        """

    @abstractmethod
    def advise(self, pid: int, start: int, end: int, *, on: bool = True) -> None:
        """Mark a part of a running process's memory, as its madvise(MADV_MERGEABLE) would.

        Args:
            pid: the process.
            start: first byte, at the start of a page.
            end: the byte after the last, at the start of a page.
            on: whether to merge; else it is unmerged (MADV_UNMERGEABLE).

        Raises:
            ProcessGoneError: there is no such process.
            NotPermittedError: this process may not do that.
            RejectedError: these are no whole pages, or a part is not mapped.
        """

    @abstractmethod
    def settle(self, passes: int = 3, timeout: float = 60.0) -> None:
        """Wait until that many passes have ended.

        Raises:
            PagemergeError: they have not, in `timeout` seconds.
        """

    @abstractmethod
    def facts(self) -> dict[str, object]:
        """Say what is particular to this implementation: ksmd's pid and CPU time, barriers ..."""

    def close(self) -> None:  # noqa: B027  # nothing to close is the rule, not an omission
        """Give up connections and files."""

    def __enter__(self) -> Self:
        """Use as a context manager; `close` at its end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()
