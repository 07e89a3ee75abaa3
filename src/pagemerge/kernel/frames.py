"""How many pages KSM keeps for parts of processes' memory: /proc/PID/pagemap, /proc/kpageflags."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pagemerge.errors import NotPermittedError, ProcessGoneError
from pagemerge.memory import PROC
from pagemerge.memory.pagemap import open_pagemap
from pagemerge.units import PAGE_SIZE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Frames = npt.NDArray[np.uint64]

__all__ = ["Kept", "count_kept"]

_PRESENT: Final = 1 << 63  # bits of an entry of pagemap
_FRAME: Final = (1 << 55) - 1
_KPF_KSM: Final = 1 << 21  # uapi/linux/kernel-page-flags.h
_ENTRY: Final = 8  # bytes, of both files
_CHUNK: Final = 1 << 22  # bytes read at once
_NEAR: Final = 512  # frames so near to each other are read in one call


class Kept(NamedTuple):
    """Pages: `mapped` are on KSM pages, of which there are `kept`; the difference is saved."""

    mapped: int
    kept: int


def count_kept(ranges: Iterable[tuple[int, int, int]], proc: Path = PROC) -> Kept | None:
    """Count exactly what smaps' KSM line and the machine's counters only allow to reckon.

    A page that is also kept for somebody else counts as kept for these ranges.

    Args:
        ranges: (pid, start, end); processes that have ended count for nothing.
        proc: the folder to read.

    Returns:
        None without CAP_SYS_ADMIN, to which alone the kernel tells page frames.
    """
    import numpy as np

    found = []
    for pid, start, end in ranges:
        try:
            found.append(_read_frames(pid, start, end, proc))
        except (ProcessGoneError, ProcessLookupError):
            continue
        except NotPermittedError:
            return None
    frames = np.concatenate(found) if found else np.empty(0, np.uint64)
    if len(frames) and not frames.any():
        return None  # hidden
    distinct, users = np.unique(frames, return_counts=True)
    try:
        flags = _read_flags(distinct, proc)
    except PermissionError:
        return None
    merged = (flags & np.uint64(_KPF_KSM)) != 0
    return Kept(int(users[merged].sum()), int(merged.sum()))


def _read_frames(pid: int, start: int, end: int, proc: Path) -> Frames:
    """Read the frames of the pages that are present."""
    import numpy as np

    fd = open_pagemap(pid, proc)
    parts: list[Any] = [np.empty(0, np.uint64)]
    try:
        at, last = start // PAGE_SIZE * _ENTRY, end // PAGE_SIZE * _ENTRY
        while at < last:
            data = os.pread(fd, min(_CHUNK, last - at), at)
            if not data:
                break
            entries = np.frombuffer(data, np.uint64)
            parts.append(entries[(entries & np.uint64(_PRESENT)) != 0] & np.uint64(_FRAME))
            at += len(data)
    finally:
        os.close(fd)
    frames: Frames = np.concatenate(parts)
    return frames


def _read_flags(frames: Frames, proc: Path) -> Frames:
    """Read the flags of frames, which are in ascending order."""
    import numpy as np

    flags = np.zeros(len(frames), np.uint64)
    if not len(frames):
        return flags
    breaks = np.flatnonzero(np.diff(frames) > _NEAR) + 1
    bounds = [0, *breaks.tolist(), len(frames)]
    with (proc / "kpageflags").open("rb", buffering=0) as file:
        for begin, stop in pairwise(bounds):
            first, last = int(frames[begin]), int(frames[stop - 1])
            data = os.pread(file.fileno(), (last - first + 1) * _ENTRY, first * _ENTRY)
            run = np.frombuffer(data, np.uint64)
            places = (frames[begin:stop] - np.uint64(first)).astype(np.int64)
            inside = places < len(run)
            flags[begin:stop][inside] = run[places[inside]]
    return flags
