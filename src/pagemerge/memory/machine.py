"""The machine's memory as a whole: /proc/meminfo and /proc/vmstat."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pagemerge.errors import FormatError
from pagemerge.memory.files import PROC

__all__ = [
    "parse_meminfo",
    "parse_vmstat",
    "read_max_map_count",
    "read_meminfo",
    "read_uptime_seconds",
    "read_vmstat",
    "splitting_frees_zero_pages",
]

_HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage")


def parse_meminfo(text: str, path: str = "meminfo") -> dict[str, int]:
    """Read meminfo: bytes by the kernel's names (HugePages_* are counts, as in the file).

    Raises:
        FormatError: a line is not NAME: NUMBER.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, _, rest = line.partition(":")
        value, _, unit = rest.strip().partition(" ")
        try:
            found[name] = int(value) * (1024 if unit == "kB" else 1)
        except ValueError as error:
            raise FormatError(f"{path}:{number}: {line!r} is not NAME: NUMBER") from error
    return found


def parse_vmstat(text: str, path: str = "vmstat") -> dict[str, int]:
    """Read vmstat: counts by the kernel's names.

    Raises:
        FormatError: a line is not NAME NUMBER.
    """
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, _, value = line.partition(" ")
        try:
            found[name] = int(value)
        except ValueError as error:
            raise FormatError(f"{path}:{number}: {line!r} is not NAME NUMBER") from error
    return found


def read_meminfo(proc: Path = PROC) -> dict[str, int]:
    """Read /proc/meminfo: MemTotal, MemAvailable, Shmem ..., bytes."""
    path = proc / "meminfo"
    return parse_meminfo(path.read_text(), str(path))


def read_vmstat(proc: Path = PROC) -> dict[str, int]:
    """Read /proc/vmstat: cow_ksm, ksm_swpin_copy, thp_split_page ..., counts since boot."""
    path = proc / "vmstat"
    return parse_vmstat(path.read_text(), str(path))


def read_uptime_seconds(proc: Path = PROC) -> float | None:
    """Read how long the machine has been running (/proc/uptime); None where it isn't shown."""
    try:
        return float((proc / "uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def read_max_map_count(proc: Path = PROC) -> int | None:
    """Read how many mappings a process may have (vm.max_map_count); None where it isn't shown."""
    try:
        return int((proc / "sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return None


def splitting_frees_zero_pages(folder: Path = _HUGE_PAGES) -> bool:
    """Tell whether the kernel maps zero pages that it finds in splitting to the shared zero page.

    mm/huge_memory.c: it does since it has `shrink_underused`, which came with it (Linux 6.12).
    """
    return (folder / "shrink_underused").exists()
