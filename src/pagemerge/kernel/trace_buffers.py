"""Reading an instance's ring buffers: the records of all CPUs in the order of their times."""

from __future__ import annotations

import heapq
import os
import select
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Final

from pagemerge.kernel.trace_format import EventFormat, PageLayout
from pagemerge.kernel.trace_pages import Record, page_time, parse_page
from pagemerge.kernel.tracefs import Instance

__all__ = ["Buffers"]

# Pages read but not parsed yet. What is over it waits in the kernel, whose buffers are smaller.
_BACKLOG_BYTES: Final = 64 << 20
# Parsed in one go, some 80 records each: between two goes the kernel's buffers are emptied again.
_PAGES_AT_ONCE: Final = 32
# A record's time is taken a little before it can be read.
_SETTLE_NS: Final = 1_000_000
_READ_BYTES: Final = 1 << 16  # a page at most; 64 KiB is the largest there is
_by_time = itemgetter(0)


class _Stream:
    """A CPU's buffer of one instance."""

    __slots__ = ("complete", "file", "formats", "instance", "pages")

    def __init__(self, file: int, instance: int, formats: Mapping[int, EventFormat]) -> None:
        self.file = file
        self.instance = instance
        self.formats = formats
        self.pages: deque[bytes] = deque()
        self.complete = 0  # all records before this time, nanoseconds, have been read


class Buffers:
    """The buffers of several instances, read together.

    Attributes:
        lost: of each instance, how many events were lost before the pages parsed so far.
    """

    def __init__(
        self, instances: Sequence[tuple[Instance, Mapping[int, EventFormat]]], layout: PageLayout
    ) -> None:
        """Open them; of each instance the records of these events are wanted, by their ids."""
        self._layout = layout
        self._instances = [instance for instance, _ in instances]
        self._streams: list[_Stream] = []
        self._backlog = 0
        self._records: list[Record] = []
        self.lost = [0] * len(instances)
        self._poll = select.poll()
        try:
            for index, (instance, formats) in enumerate(instances):
                for file in instance.open_buffers():
                    self._streams.append(_Stream(file, index, formats))
                    self._poll.register(file, select.POLLIN)
        except BaseException:
            self.close()
            raise

    def wait(self, seconds: float) -> None:
        """Wait until a buffer is filled to `buffer_percent`, or so many seconds."""
        if not self._backlog:
            self._poll.poll(seconds * 1000)

    @property
    def has_backlog(self) -> bool:
        """Whether there are pages read, but not parsed."""
        return self._backlog > 0

    def fill(self) -> None:
        """Empty the kernel's buffers, as far as the backlog may grow."""
        mark = time.monotonic_ns() - _SETTLE_NS
        for stream in self._streams:
            pages = stream.pages
            while self._backlog < _BACKLOG_BYTES:
                try:
                    page = os.read(stream.file, _READ_BYTES)
                except (BlockingIOError, OSError):  # empty; or its CPU has been taken away
                    stream.complete = mark
                    break
                if not page:
                    stream.complete = mark
                    break
                pages.append(page)
                self._backlog += len(page)
            else:
                if pages:
                    stream.complete = page_time(pages[-1], self._layout)

    def take(self) -> list[Record]:
        """Parse some pages; gives the records up to a time before which none can come any more.

        Raises:
            FormatError: a page can't be parsed.
        """
        layout = self._layout
        for stream in self._next_pages():
            page = stream.pages.popleft()
            self._backlog -= len(page)
            records, lost = parse_page(page, stream.formats, layout)
            self._records += records
            # where the kernel does not say how many, `read_lost` does at the end
            self.lost[stream.instance] += lost or 0
        bound = min(
            page_time(stream.pages[0], layout) if stream.pages else stream.complete
            for stream in self._streams
        )
        self._records.sort(key=_by_time)
        return self._split(bound)

    def take_rest(self) -> list[Record]:
        """Give the records that are left when nothing more comes."""
        return self._split(None)

    def read_lost(self, index: int) -> int:
        """Ask the kernel how many events of an instance were lost altogether."""
        return self._instances[index].read_lost()

    def close(self) -> None:
        """Close the files."""
        for stream in self._streams:
            os.close(stream.file)
        self._streams.clear()

    def _next_pages(self) -> Iterator[_Stream]:
        """Go through the streams in the order in which their next pages begin."""
        heads = [
            (page_time(stream.pages[0], self._layout), index)
            for index, stream in enumerate(self._streams)
            if stream.pages
        ]
        heapq.heapify(heads)
        for _ in range(_PAGES_AT_ONCE):
            if not heads:
                return
            _, index = heapq.heappop(heads)
            stream = self._streams[index]
            yield stream
            if stream.pages:
                heapq.heappush(heads, (page_time(stream.pages[0], self._layout), index))

    def _split(self, bound: int | None) -> list[Record]:
        records = self._records
        if bound is None or (records and records[-1].time <= bound):
            self._records = []
            return records
        for count, record in enumerate(records):  # few are left over: those of the last instant
            if record.time > bound:
                self._records = records[count:]
                return records[:count]
        return []
