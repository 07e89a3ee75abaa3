"""Ring buffer pages, as `trace_pipe_raw` gives them: records with their times, and what was lost.

A page begins with the time of its first record; each record has the nanoseconds since the one
before it (include/linux/ring_buffer.h, kernel/trace/ring_buffer.c).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from typing import Final, NamedTuple

from pagemerge.errors import FormatError
from pagemerge.kernel.trace_format import EventFormat, PageLayout

__all__ = ["Page", "Record", "page_time", "parse_page"]

_PADDING: Final = 29
_TIME_EXTEND: Final = 30
_TIME_STAMP: Final = 31
_MISSED_EVENTS: Final = 1 << 31
_MISSED_STORED: Final = 1 << 30
_COMMIT_MASK: Final = (1 << 30) - 1
_STAMP_BITS: Final = 59  # what a TIME_STAMP record holds of the time
_TIME: Final = struct.Struct("=Q")
_WORD: Final = struct.Struct("=I")
_TYPE: Final = struct.Struct("=H")
_LITTLE: Final = sys.byteorder == "little"


class Record(NamedTuple):
    """A record: nanoseconds of the trace clock, its event, the values of `format.names`."""

    time: int
    format: EventFormat
    values: tuple[int | bytes, ...]


class Page(NamedTuple):
    """A page's records in their order.

    Attributes:
        lost: how many events were overwritten before this page; None where the kernel only says
            that there were some.
    """

    records: list[Record]
    lost: int | None


def page_time(page: bytes, layout: PageLayout) -> int:
    """Give the time of a page's first record, nanoseconds."""
    time: int = _TIME.unpack_from(page, layout.timestamp)[0]
    return time


def parse_page(page: bytes, formats: Mapping[int, EventFormat], layout: PageLayout) -> Page:
    """Read a page; records of events that `formats` does not know are left out.

    Raises:
        FormatError: its records do not fit into it.
    """
    commit = int.from_bytes(
        page[layout.commit : layout.commit + layout.commit_size], sys.byteorder, signed=False
    )
    begin = layout.data
    end = begin + (commit & _COMMIT_MASK)
    lost: int | None = 0
    if commit & _MISSED_EVENTS:
        lost = None
        if commit & _MISSED_STORED:
            stored = page[end : end + layout.commit_size]
            lost = int.from_bytes(stored, sys.byteorder, signed=False)
    if end > len(page):
        raise FormatError(f"a ring buffer page of {len(page)} bytes claims to hold {end}")
    try:
        return Page(_parse_records(page, begin, end, formats, page_time(page, layout)), lost)
    except struct.error as error:
        raise FormatError(f"a record does not fit into its ring buffer page: {error}") from error


def _parse_records(
    page: bytes, at: int, end: int, formats: Mapping[int, EventFormat], time: int
) -> list[Record]:
    records: list[Record] = []
    word, kind_of, add = _WORD.unpack_from, _TYPE.unpack_from, records.append
    while at < end:
        head: int = word(page, at)[0]
        # bit fields: the first one is the lowest on little-endian machines, the highest on others
        length, delta = (head & 31, head >> 5) if _LITTLE else (head >> 27, head & 0x7FFFFFF)
        if 0 < length < _PADDING:
            time += delta
            data, at = at + 4, at + 4 + length * 4
        elif length == 0:
            time += delta
            data, at = at + 8, at + 4 + word(page, at + 4)[0]
        elif length == _PADDING:
            if delta == 0:
                break  # nothing follows on this page
            time += delta
            at += 4 + word(page, at + 4)[0]
            continue
        else:
            delta += word(page, at + 4)[0] << 27
            if length == _TIME_EXTEND:
                time += delta
            else:
                time = (time >> _STAMP_BITS << _STAMP_BITS) | delta
            at += 8
            continue
        if at > end:
            raise FormatError("a record reaches over the end of its ring buffer page")
        known = formats.get(kind_of(page, data)[0])
        if known is not None:
            add(Record(time, known, known.unpack(page, data)))
    return records
