"""What the kernel says of memory: /proc/PID/smaps_rollup and /proc/meminfo."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Memory", "read_available", "read_memory"]


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


def read_available() -> int:
    """MemAvailable of /proc/meminfo in bytes: the middle of a few readings."""
    readings = []
    for _ in range(5):
        readings.append(_read_kilobytes(Path("/proc/meminfo"))["MemAvailable"])
        time.sleep(0.05)
    return statistics.median_low(readings)


def _read_kilobytes(path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        number, _, unit = rest.strip().partition(" ")
        if unit == "kB":
            found[name] = int(number) * 1024
    return found
