"""Unmerging a running process's memory in slices, so that none of its threads waits for long.

The kernel unmerges whatever one call is about in one go, under the lock of the address space: 2 us
a merged page, and 20 ns for each page of address space that it walks over. So MADV_UNMERGEABLE is
injected for one slice after the other, each cut by what /proc/PID/pagemap says is merged there, and
the process runs in between. What has been unmerged is not merged again: the slice is not mergeable
any more. Ascending, so that within a mapping there is at most one border between what is mergeable
and what is not, which takes one mapping more; behind it the parts are one mapping again.

The call that was asked for comes last, and finds little left to do.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple, TypeVar

from pagemerge.errors import ProcessGoneError
from pagemerge.kernel.injecting import call_numbers, inject_calls
from pagemerge.memory import PROC, read_live_threads, read_maps, read_smaps_rollup, read_stat
from pagemerge.memory.pagemap import open_pagemap
from pagemerge.units import PAGE_SIZE

__all__ = ["MADV_UNMERGEABLE", "Progress", "Slice", "Slices", "Unmerging"]

MADV_UNMERGEABLE: Final = 13

Progress = Callable[[int, int], None]  # bytes done, bytes in all

# The most of a slice; each of these takes the kernel some 150 us.
_PAGES: Final = 8192
_MERGED: Final = 64
_MAPPINGS: Final = 256

_MERGED_LEAST: Final = 16
_LONG_SECONDS: Final = 0.0007  # a stop beyond which slices become smaller
_SHORT_SECONDS: Final = 0.0004  # and within which they become larger
_REST: Final = 3  # between two stops the process runs for that many times the last one
_REST_MOST_SECONDS: Final = 0.01
_THREAD_TRIES: Final = 20

_T = TypeVar("_T")


class Slice(NamedTuple):
    """Bytes from `start` to `end`; the pages that are mapped in it, and how many of them merged."""

    start: int
    end: int
    pages: int
    merged: int


class Slices:
    """Cuts parts of a process's memory into slices, by what is there at that moment.

    Args:
        ranges: (start, end) of each mapping, ascending.
        pagemap: descriptor of the process's.
        kpageflags: descriptor, or -1 where it may not be read: all present pages count as merged.
    """

    def __init__(self, ranges: list[tuple[int, int]], pagemap: int, kpageflags: int) -> None:
        """Begin at the first."""
        self._ranges = ranges
        self._files = pagemap, kpageflags
        self._index = 0
        self._at = 0
        self._span = _PAGES  # pages of address space, learnt for the mapping that is being cut
        self._merged = _MERGED

    @property
    def is_over(self) -> bool:
        """Whether all has been cut."""
        return self._index == len(self._ranges)

    def cut(self) -> Slice:
        """Cut the next; it may hold many small mappings, and what is between them."""
        from pagemerge._core import slice_end  # only here: reading needs no C

        first = self._index
        start = max(self._at, self._ranges[first][0])
        span = self._span
        pages = present = merged = 0
        while True:
            begin, limit = self._ranges[self._index]
            self._at, found, there, shared = slice_end(
                *self._files,
                max(self._at, begin),
                limit,
                span - pages,
                _PAGES - present,
                self._merged - merged,
            )
            pages, present, merged = pages + found, present + there, merged + shared
            if self._at < limit:
                break
            self._go_on()
            full = pages >= _PAGES or present >= _PAGES or merged >= self._merged
            if full or self.is_over or self._index - first >= _MAPPINGS:
                break
            span = _PAGES
        return Slice(start, self._at, pages, merged)

    def finish_mapping(self) -> int:
        """Leave the mapping that is being cut in one piece; gives its end."""
        if not self.is_over and self._ranges[self._index][0] < self._at:
            self._at = self._ranges[self._index][1]
            self._go_on()
        return self._at

    def learn(self, piece: Slice, seconds: float) -> None:
        """Make the next ones larger or smaller, by how long the last one took.

        The kernel is far quicker where there are no page tables, or never were any pages.
        """
        if seconds > _LONG_SECONDS:
            self._span = max(_PAGES // 8, self._span // 2)
            self._merged = max(_MERGED_LEAST, self._merged // 2)
        elif seconds < _SHORT_SECONDS:
            if piece.merged * 4 >= self._merged:
                self._merged = min(_MERGED, self._merged * 2)
            elif piece.pages >= self._span:
                self._span *= 2

    def _go_on(self) -> None:
        self._index += 1
        self._span = _PAGES


class Unmerging:
    """A process that is being unmerged.

    Attributes:
        pid: which.
        stops: how often a thread of it was stopped.
        longest_seconds: how long it stood still at most, of these.
    """

    def __init__(self, pid: int) -> None:
        """Remember which process has that number.

        Raises:
            ProcessGoneError: none.
        """
        self.pid = pid
        self.stops = 0
        self.longest_seconds = 0.0
        self._last_seconds = 0.0
        self._starttime = read_stat(pid).starttime

    def read_merged_bytes(self) -> int:
        """Read what is merged; 0 before Linux 6.6, which tells it no sooner.

        Raises:
            ProcessGoneError, NotPermittedError: it has ended, or may not be looked at.
        """
        return self._by_thread(read_smaps_rollup).get("KSM", 0)

    def call(self, call: tuple[int, ...]) -> int:
        """Have it make a call; gives what it returned.

        Raises:
            ProcessGoneError: it has ended, even if another one has its number by now.
            PagemergeError: as `inject_calls`.
        """
        if self.stops and read_stat(self.pid).starttime != self._starttime:
            raise ProcessGoneError(self.pid)
        results, seconds = inject_calls(self.pid, [call])
        self.stops += 1
        self.longest_seconds = max(self.longest_seconds, seconds)
        self._last_seconds = seconds
        return results[0]

    def run(self, start: int, end: int, progress: Progress | None = None) -> int:
        """Unmerge what is mapped and private there, slice by slice.

        What is no more than one slice, as with most processes of a few megabytes, is left to the
        call that follows.

        Args:
            start: first byte.
            end: the byte after the last.
            progress: told after each slice how far it is.

        Returns:
            0, or -errno of a call that failed: what lies before it is unmerged.

        Raises:
            PagemergeError: as `call`.
        """
        ranges = [
            (max(start, vma.start), min(end, vma.end))
            for vma in self._by_thread(read_maps)
            if vma.start < end and vma.end > start and vma.is_private and vma.path != "[vsyscall]"
        ]
        total = sum(stop - begin for begin, stop in ranges)
        done = 0
        with ExitStack() as stack:
            pagemap = self._by_thread(open_pagemap)
            stack.callback(os.close, pagemap)
            flags = -1
            with suppress(OSError):  # root's alone
                flags = os.open(PROC / "kpageflags", os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, flags)
            slices = Slices(ranges, pagemap, flags)
            while not slices.is_over:
                piece = slices.cut()
                if slices.is_over and not done:
                    break
                result = self._unmerge(slices, piece)
                if result < 0:
                    return result
                done += piece.pages * PAGE_SIZE
                if progress:
                    progress(done, total)
                time.sleep(min(_REST_MOST_SECONDS, _REST * self._last_seconds))
        return 0

    def _by_thread(self, look: Callable[[int], _T]) -> _T:
        """Look at the memory by a thread that still has it: the first may have exited.

        Raises:
            PagemergeError: as `look`.
        """
        for _ in range(_THREAD_TRIES):
            for thread in sorted(read_live_threads(self.pid)):
                with suppress(ProcessGoneError):  # the thread has ended, too
                    return look(thread)
        return look(self.pid)

    def _unmerge(self, slices: Slices, piece: Slice) -> int:
        number = call_numbers().madvise
        start, end = piece.start, piece.end
        result = self.call((number, start, end - start, MADV_UNMERGEABLE))
        if result == -errno.EAGAIN:
            # no room for one more mapping (vm.max_map_count): a whole one needs none
            end = slices.finish_mapping()
            result = self.call((number, start, end - start, MADV_UNMERGEABLE))
        slices.learn(piece, self._last_seconds)
        # something between its mappings is not mapped; the rest is done nevertheless
        return 0 if result == -errno.ENOMEM else result
