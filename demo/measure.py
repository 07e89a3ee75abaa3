"""What the kernel says of memory: /proc/PID/smaps_rollup and /proc/meminfo."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Machine", "Memory", "read_machine", "read_memory"]


@dataclass(frozen=True)
class Memory:
    """A process's memory, in bytes.

    Attributes:
        rss: What is mapped, shared or not.
        pss: The same with each shared page divided by the number of its users.
        own: Private copies (`Anonymous`): what a merged page becomes when it is written to.
    """

    rss: int
    pss: int
    own: int


def read_memory(pid: int) -> Memory:
    """Read /proc/PID/smaps_rollup."""
    fields = _read_kilobytes(Path(f"/proc/{pid}/smaps_rollup"))
    return Memory(fields["Rss"], fields["Pss"], fields["Anonymous"])


@dataclass(frozen=True)
class Machine:
    """The whole machine's memory, in bytes.

    Attributes:
        available: MemAvailable.
        others: Anonymous memory of the processes that aren't ours: they move MemAvailable, too.
    """

    available: int
    others: int


def read_machine(ours: Collection[int]) -> Machine:
    """Read /proc/meminfo, and /proc/PID/status of all processes but ours."""
    available, others = [], []
    for _ in range(5):
        available.append(_read_kilobytes(Path("/proc/meminfo"))["MemAvailable"])
        others.append(sum(_read_anonymous(path) for path in _list_others(ours)))
        time.sleep(0.05)
    return Machine(statistics.median_low(available), statistics.median_low(others))


def _list_others(ours: Collection[int]) -> Iterator[Path]:
    for path in Path("/proc").iterdir():
        if path.name.isdecimal() and int(path.name) not in ours:
            yield path / "status"


def _read_anonymous(path: Path) -> int:
    try:
        return _read_kilobytes(path).get("RssAnon", 0)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0  # it has ended, or isn't ours to see


def _read_kilobytes(path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if unit == "kB":
            found[name] = int(number) * 1024
    return found
