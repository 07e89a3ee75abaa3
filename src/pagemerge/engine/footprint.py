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
    "Lineage",
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
    """A mapping of the pool, or a part of one.

    Attributes:
        inode: which file of the pool.
        offset: where in the file, bytes.
        start: where in the process.
        size_bytes: its length.
        shared_bytes: how much of it is not private copies.
        owner: whose merging made it; a child that inherited it over a fork has its parent's.
    """

    inode: int
    offset: int
    start: int
    size_bytes: int
    shared_bytes: int
    owner: bytes = b""

    @property
    def end(self) -> int:
        """The address after it."""
        return self.start + self.size_bytes

    def part(self, start: int, end: int, owner: bytes) -> PoolMapping:
        """Cut out what lies in [start, end), its private copies taken to be spread evenly."""
        shared = self.shared_bytes * (end - start) // self.size_bytes
        offset = self.offset + start - self.start
        return PoolMapping(self.inode, offset, start, end - start, shared, owner)


@dataclass(slots=True)
class Footprint:
    """Memory of one process, or of several.

    Attributes:
        own_bytes: Pss without the pool.
        pool: the mappings of the pool.
    """

    own_bytes: int = 0
    pool: list[PoolMapping] = field(default_factory=list)

    @property
    def unmerged_bytes(self) -> int:
        """What it would take if every page of the pool that is mapped were the mapper's own.

        Mappings that were inherited over a fork count once: without merging they would be
        shared, too.
        """
        same: dict[tuple[bytes, int, int], list[PoolMapping]] = defaultdict(list)
        for mapping in self.pool:
            same[mapping.owner, mapping.inode, mapping.start - mapping.offset].append(mapping)
        return self.own_bytes + sum(
            int(
                _union([(mapping.start, mapping.end) for mapping in mappings])
                * max(mapping.shared_bytes / mapping.size_bytes for mapping in mappings)
                if len(mappings) > 1
                else mappings[0].shared_bytes
            )
            for mappings in same.values()
        )

    @property
    def pool_bytes(self) -> int:
        """The part of the pool that is mapped, each page once."""
        intervals: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for mapping in self.pool:
            end = mapping.offset + mapping.size_bytes
            intervals[mapping.inode].append((mapping.offset, end))
        return sum(_union(found) for found in intervals.values())


class Lineage:
    """What processes have inherited of their mappings of the pool.

    Workers that are forked and then load the same data have it at the same addresses, each by
    its own merging; what a child had when it was first looked at, and a relative had, too, it
    has inherited.
    """

    def __init__(self) -> None:
        """Know of nobody yet."""
        self._inherited: dict[tuple[int, bytes], list[PoolMapping]] = {}
        self._known: dict[bytes, dict[int, list[PoolMapping]]] = defaultdict(dict)

    def attribute(self, pid: int, family: bytes, footprint: Footprint) -> Footprint:
        """Say of each mapping whose it is; to be called for parents before their children.

        Args:
            pid: The process.
            family: What `read_family` says of it.
            footprint: As read; its mappings have no owner yet.
        """
        key, mine = (pid, family), b"%d:%s" % (pid, family)
        relatives = [
            mapping
            for other, mappings in self._known[family].items()
            if other != pid
            for mapping in mappings
        ]
        if key not in self._inherited:
            self._inherited[key] = [
                part
                for mapping in footprint.pool
                for part in _split(mapping, relatives, mine)
                if part.owner != mine
            ]
        pool = [
            part
            for mapping in footprint.pool
            for part in _split(mapping, self._inherited[key], mine)
        ]
        self._known[family][pid] = pool
        return Footprint(footprint.own_bytes, pool)


def _split(mapping: PoolMapping, others: Iterable[PoolMapping], mine: bytes) -> list[PoolMapping]:
    """Cut a mapping into parts that others have just there, with their owner, and the rest."""
    parts, at = [], mapping.start
    here = [
        other
        for other in others
        if other.inode == mapping.inode
        and other.start - other.offset == mapping.start - mapping.offset
        and other.start < mapping.end
        and other.end > mapping.start
    ]
    for other in sorted(here, key=lambda other: other.start):
        low, high = max(other.start, at), min(other.end, mapping.end)
        if low >= high:
            continue
        if low > at:
            parts.append(mapping.part(at, low, mine))
        parts.append(mapping.part(low, high, other.owner))
        at = high
    if at < mapping.end:
        parts.append(mapping.part(at, mapping.end, mine))
    return parts


def parse_footprint(smaps: Iterable[Smap]) -> Footprint:
    """Add up the mappings of a process."""
    found = Footprint()
    for smap in smaps:
        sizes, vma = smap.sizes, smap.vma
        if vma.path.startswith(POOL_NAME):
            if not vma.is_private:
                continue  # the agent's or the daemon's view of the pool: no memory of its own
            private = min(sizes.get("Anonymous", 0) + sizes.get("Swap", 0), vma.size_bytes)
            found.own_bytes += min(sizes.get("Pss", 0), sizes.get("Anonymous", 0))
            shared = vma.size_bytes - private
            found.pool.append(PoolMapping(vma.inode, vma.offset, vma.start, vma.size_bytes, shared))
        else:
            found.own_bytes += sizes.get("Pss", 0)
    return found


def read_footprint(pid: int, proc: Path = PROC) -> Footprint:
    """Read the footprint of a process (/proc/PID/smaps).

    Raises:
        ProcessGoneError, NotPermittedError: it ended, or may not be looked at.
    """
    return parse_footprint(read_smaps(pid, proc))


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
        total.pool += footprint.pool
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
