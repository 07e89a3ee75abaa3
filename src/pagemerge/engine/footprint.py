"""What processes take of the machine's memory, with and without the pool, by the kernel's numbers.

A mapping of the pool shows in /proc/PID/smaps under the pool's name. Its pages are no part of the
process's Pss until the process has read them, and private copies in it (`Anonymous`) always are.
So the pool is left out of each Pss and counted once, by the size of its files.
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pagemerge.engine.paths import POOL_NAME
from pagemerge.memory import PROC, Smap, read_smaps

__all__ = [
    "Footprint",
    "PoolMapping",
    "parse_footprint",
    "read_family",
    "read_footprint",
    "read_pool_bytes",
    "sum_footprints",
]

_AT_RANDOM: Final = 25  # uapi/linux/auxvec.h
_RANDOM_BYTES: Final = 16
_AUX: Final = struct.Struct("@LL")


@dataclass(frozen=True, slots=True)
class PoolMapping:
    """A mapping of the pool; two that are equal were inherited over a fork.

    Attributes:
        inode: which file of the pool.
        offset: where in the file, bytes.
        start: where in the process.
        size_bytes: its length.
        family: what processes have in common that fork from one another with no exec between.
    """

    inode: int
    offset: int
    start: int
    size_bytes: int
    family: bytes = b""


@dataclass(slots=True)
class Footprint:
    """Memory of one process, or of several.

    Attributes:
        own_bytes: Pss without the pool.
        pool: the mappings of the pool, and how many bytes of each are not private copies; the
            most of any process where several have the same mapping.
    """

    own_bytes: int = 0
    pool: dict[PoolMapping, int] = field(default_factory=dict)

    @property
    def unmerged_bytes(self) -> int:
        """What it would take if every page of the pool that is mapped were the mapper's own.

        Mappings that were inherited over a fork count once: without merging they would be
        shared, too.
        """
        return self.own_bytes + sum(self.pool.values())

    @property
    def pool_bytes(self) -> int:
        """The part of the pool that is mapped, each page once."""
        intervals: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for mapping in self.pool:
            end = mapping.offset + mapping.size_bytes
            intervals[mapping.inode].append((mapping.offset, end))
        return sum(_union(found) for found in intervals.values())


def parse_footprint(smaps: Iterable[Smap], family: bytes = b"") -> Footprint:
    """Add up the mappings of a process of a family."""
    found = Footprint()
    for smap in smaps:
        sizes, vma = smap.sizes, smap.vma
        if vma.path.startswith(POOL_NAME):
            if not vma.is_private:
                continue  # the agent's or the daemon's view of the pool: no memory of its own
            private = min(sizes.get("Anonymous", 0) + sizes.get("Swap", 0), vma.size_bytes)
            found.own_bytes += min(sizes.get("Pss", 0), sizes.get("Anonymous", 0))
            mapping = PoolMapping(vma.inode, vma.offset, vma.start, vma.size_bytes, family)
            found.pool[mapping] = vma.size_bytes - private
        else:
            found.own_bytes += sizes.get("Pss", 0)
    return found


def read_footprint(pid: int, proc: Path = PROC) -> Footprint:
    """Read the footprint of a process (/proc/PID/smaps).

    Raises:
        ProcessGoneError, NotPermittedError: it ended, or may not be looked at.
    """
    return parse_footprint(read_smaps(pid, proc), read_family(pid, proc))


def read_family(pid: int, proc: Path = PROC) -> bytes:
    """Read the random bytes that the kernel gives a program at exec and fork hands on.

    Addresses alone don't tell relatives from strangers where address spaces are not randomized.
    Empty when they can't be read.
    """
    try:
        auxv = memoryview((proc / str(pid) / "auxv").read_bytes())
        pairs = dict(_AUX.iter_unpack(auxv[: len(auxv) // _AUX.size * _AUX.size]))
        with (proc / str(pid) / "mem").open("rb", buffering=0) as memory:
            return os.pread(memory.fileno(), _RANDOM_BYTES, pairs[_AT_RANDOM])
    except (OSError, KeyError):
        return b""


def sum_footprints(footprints: Iterable[Footprint]) -> Footprint:
    """Add up processes."""
    total = Footprint()
    for footprint in footprints:
        total.own_bytes += footprint.own_bytes
        for mapping, size in footprint.pool.items():
            total.pool[mapping] = max(size, total.pool.get(mapping, 0))
    return total


def read_pool_bytes(daemon_pid: int, proc: Path = PROC) -> int:
    """Read how much memory the pool of a daemon takes, by its files' blocks; 0 when it is gone.

    Files that the daemon has given up but somebody still maps are not among them.
    """
    seen: dict[int, int] = {}
    folder = proc / str(daemon_pid) / "fd"
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return 0
    for entry in entries:
        try:
            if Path(entry.path).readlink().name.startswith("memfd:pagemerge"):
                found = os.stat(entry.path)  # noqa: PTH116  # through the link, not by its text
                seen[found.st_ino] = found.st_blocks * 512
        except OSError:
            continue
    return sum(seen.values())


def _union(intervals: list[tuple[int, int]]) -> int:
    total, reached = 0, 0
    for start, end in sorted(intervals):
        if end > reached:
            total += end - max(start, reached)
            reached = end
    return total
