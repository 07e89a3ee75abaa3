"""Ring buffer pages: recorded ones beside the kernel's own text of them, and rare records."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest

from pagemerge.errors import FormatError
from pagemerge.kernel.trace_format import EventFormat, PageLayout, parse_format
from pagemerge.kernel.trace_pages import Record, page_time, parse_page

RECORDED = Path(__file__).parent / "recorded/6.18"
LAYOUT = PageLayout()
PAGE = 4096

FORMATS = {
    one.id: one
    for one in (
        parse_format(path.read_text(), str(path)) for path in RECORDED.glob("events/ksm/*/format")
    )
}
BY_NAME = {one.name: one for one in FORMATS.values()}

# "          ksmd-37      [000] ..... 14328.604078: ksm_start_scan: seq 3 rmap size 29"
LINE = re.compile(r"^\s*\S+-(\d+)\s+\[\d+\] \S+ (\d+\.\d+): (\w+): (.*)$")


def render(record: Record) -> str:
    """Write a record's fields as its `print fmt` in the kernel does."""
    values: dict[str, Any] = dict(zip(record.format.names, record.values, strict=True))
    pointers = {
        name: f"{values[name]:016x}"
        for name in ("mm", "rmap_item")
        if isinstance(values.get(name), int)
    }
    match record.format.name:
        case "ksm_start_scan" | "ksm_stop_scan":
            return f"seq {values['seq']} rmap size {values['rmap_entries']}"
        case "ksm_enter" | "ksm_exit":
            return f"mm {pointers['mm']}"
        case "ksm_remove_ksm_page":
            return f"pfn {values['pfn']}"
        case "ksm_remove_rmap_item":
            return f"pfn {values['pfn']} rmap_item {pointers['rmap_item']} mm {pointers['mm']}"
        case "ksm_advisor":
            return (
                f"ksm scan time {values['scan_time']} pages_to_scan {values['pages_to_scan']} "
                f"cpu percent {values['cpu_percent']}"
            )
        case "ksm_merge_one_page":
            ksm = "ksm "
        case _:
            ksm = "ksm " if values["ksm_page"] else ""
    return (
        f"{ksm}pfn {values['pfn']} rmap_item {pointers['rmap_item']} mm {pointers['mm']} "
        f"error {values['err']}"
    )


def test_records_are_what_the_kernel_itself_prints_of_them() -> None:
    data = (RECORDED / "plain.pages").read_bytes()
    records: list[Record] = []
    for at in range(0, len(data), PAGE):
        page = parse_page(data[at : at + PAGE], FORMATS, LAYOUT)
        assert page.lost == 0
        records += page.records
    records.sort(key=lambda record: record.time)
    found = [
        (str(record.values[0]), f"{record.time / 1e9:.5f}", record.format.name, render(record))
        for record in records
    ]
    expected = []
    for line in (RECORDED / "plain.txt").read_text().splitlines():
        match = LINE.match(line)
        assert match is not None
        tid, time, name, text = match.groups()
        expected.append((tid, f"{float(time):.5f}", name, text))
    assert {name for _, _, name, _ in found} == set(BY_NAME)  # all nine are on record
    # the kernel rounds nanoseconds to microseconds its own way: times are compared to ten of them
    assert [(tid, name, text) for tid, _, name, text in found] == [
        (tid, name, text) for tid, _, name, text in expected
    ]
    for (_, time, *_), (_, told, *_) in zip(found, expected, strict=True):
        assert float(time) == pytest.approx(float(told), abs=1.1e-5)


def test_a_page_tells_how_many_events_were_overwritten_before_it() -> None:
    data = (RECORDED / "lost.page").read_bytes()
    page = parse_page(data, FORMATS, LAYOUT)
    assert page.lost == 283
    assert page_time(data, LAYOUT) == page.records[0].time


def make_page(*records: bytes, time: int = 1000, flags: int = 0, tail: bytes = b"") -> bytes:
    body = b"".join(records)
    head = struct.pack("<QQ", time, len(body) | flags)
    return (head + body + tail).ljust(PAGE, b"\0")


def make_record(form: EventFormat, payload: bytes, delta: int) -> bytes:
    data = struct.pack("<HBBi", form.id, 0, 0, 37) + payload
    assert len(data) % 4 == 0
    return struct.pack("<I", len(data) // 4 | delta << 5) + data


START = BY_NAME["ksm_start_scan"]


def start(seq: int, delta: int) -> bytes:
    return make_record(START, struct.pack("<iI", seq, 0), delta)


def times(page: bytes) -> list[tuple[int, int | bytes]]:
    return [(record.time, record.values[1]) for record in parse_page(page, FORMATS, LAYOUT).records]


def test_a_long_silence_extends_the_time() -> None:
    extend = struct.pack("<II", 30 | 5 << 5, 2)
    assert times(make_page(start(1, 0), extend, start(2, 7))) == [
        (1000, 1),
        (1000 + 5 + (2 << 27) + 7, 2),
    ]


def test_an_absolute_time_replaces_the_lower_bits() -> None:
    upper = 3 << 59
    stamp = struct.pack("<II", 31 | 9 << 5, 4)
    assert times(make_page(start(1, 0), stamp, start(2, 1), time=upper + 1000)) == [
        (upper + 1000, 1),
        (upper + (4 << 27) + 9 + 1, 2),
    ]


def test_discarded_records_and_padding_are_passed_over() -> None:
    discarded = struct.pack("<II8x", 29 | 3 << 5, 12)
    end = struct.pack("<I", 29)
    assert times(make_page(start(1, 0), discarded, start(2, 4), end, start(3, 1))) == [
        (1000, 1),
        (1007, 2),
    ]


def test_long_records_have_their_length_apart() -> None:
    data = struct.pack("<HBBiiI", START.id, 0, 0, 37, 5, 0).ljust(200, b"\0")
    record = struct.pack("<II", 2 << 5, len(data) + 4) + data
    assert times(make_page(record, start(6, 1))) == [(1002, 5), (1003, 6)]


def test_records_of_other_events_are_left_out() -> None:
    other = struct.pack("<I", 3 | 5 << 5) + struct.pack("<HBBiI", 65535, 0, 0, 1, 0)
    assert times(make_page(other, start(1, 1))) == [(1006, 1)]


def test_losses_of_unknown_number_are_unknown() -> None:
    page = make_page(start(1, 0), flags=1 << 31)
    assert parse_page(page, FORMATS, LAYOUT).lost is None


def test_a_page_that_claims_more_than_it_has_is_refused() -> None:
    with pytest.raises(FormatError, match="claims to hold"):
        parse_page(struct.pack("<QQ", 0, 8000).ljust(PAGE, b"\0"), FORMATS, LAYOUT)


def test_a_record_over_the_end_is_refused() -> None:
    page = struct.pack("<QQ", 0, 8) + struct.pack("<IHH", 28, START.id, 0)
    with pytest.raises(FormatError, match="reaches over the end"):
        parse_page(page.ljust(PAGE, b"\0"), FORMATS, LAYOUT)


def test_a_truncated_page_is_refused() -> None:
    page = make_page(start(1, 0))[:24]
    with pytest.raises(FormatError, match="claims to hold"):
        parse_page(page, FORMATS, LAYOUT)
