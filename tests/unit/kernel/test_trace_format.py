"""Format files: recorded ones of Linux 6.18, and layouts of other kernels and machines."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pagemerge.errors import FormatError
from pagemerge.kernel.trace_format import PageLayout, parse_format, parse_header_page
from pagemerge.ksm import EVENTS

EVENTS_DIR = Path(__file__).parent / "recorded/6.18/events"

# A kernel for 32-bit machines: pointers and longs have four bytes.
MERGE_32 = """name: ksm_merge_with_ksm_page
ID: 402
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:void * ksm_page;\toffset:8;\tsize:4;\tsigned:0;
\tfield:unsigned long pfn;\toffset:12;\tsize:4;\tsigned:0;
\tfield:void * rmap_item;\toffset:16;\tsize:4;\tsigned:0;
\tfield:void * mm;\toffset:20;\tsize:4;\tsigned:0;
\tfield:int err;\toffset:24;\tsize:4;\tsigned:1;

print fmt: "%spfn %lu"
"""
# A kernel with PREEMPT_RT has one more in the head; the event's own fields begin later.
START_RT = """name: ksm_start_scan
ID: 90
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;
\tfield:unsigned char common_preempt_lazy_count;\toffset:8;\tsize:1;\tsigned:0;

\tfield:int seq;\toffset:12;\tsize:4;\tsigned:1;
\tfield:u32 rmap_entries;\toffset:16;\tsize:4;\tsigned:0;

print fmt: "seq %d rmap size %d", REC->seq, REC->rmap_entries
"""


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
def test_the_table_of_events_has_the_fields_of_linux_6_18(kind: object) -> None:
    name = getattr(kind, "name", "")
    found = parse_format((EVENTS_DIR / "ksm" / name / "format").read_text())
    assert found.name == name
    declared = [(one.name, one.declaration.replace(" *", "*")) for one in found.fields[4:]]
    assert declared == [(field.name, field.type) for field in getattr(kind, "fields", ())]
    assert found.names == ("common_pid", *(name for name, _ in declared))


def test_an_array_is_read_as_bytes() -> None:
    found = parse_format((EVENTS_DIR / "task/task_newtask/format").read_text())
    record = struct.pack("<HBBii16s4xQh", 205, 0, 0, 7, 8, b"sh", 0x100, -5)
    assert dict(zip(found.names, found.unpack(record, 0), strict=True)) == {
        "common_pid": 7,
        "pid": 8,
        "comm": b"sh".ljust(16, b"\0"),
        "clone_flags": 0x100,
        "oom_score_adj": -5,
    }


def test_numbers_of_a_32_bit_kernel_have_its_sizes() -> None:
    found = parse_format(MERGE_32)
    record = struct.pack("<HBBiIIIIi", 402, 0, 0, 37, 0xC0001000, 9, 0xC2000040, 0xC3000000, -14)
    assert found.size == len(record)
    assert found.unpack(record, 0) == (37, 0xC0001000, 9, 0xC2000040, 0xC3000000, -14)


def test_a_longer_head_moves_the_fields_and_is_no_field() -> None:
    found = parse_format(START_RT)
    assert found.names == ("common_pid", "seq", "rmap_entries")
    assert found.unpack(struct.pack("<HBBiB3xiI", 90, 0, 0, 37, 1, 5, 1000), 0) == (37, 5, 1000)


def test_a_field_without_a_sign_is_unsigned() -> None:
    found = parse_format("name: x\nID: 1\nformat:\n\tfield:u8 a;\toffset:0;\tsize:1;\n")
    assert found.unpack(b"\xff", 0) == (255,)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "name, ID or fields are missing"),
        ("name: x\nformat:\n", "name, ID or fields are missing"),
        ("name: x\nID: 1\nformat:\n\tfield:int a;\toffset:zero;\tsize:4;\n", "f:4: .* is no field"),
        ("name: x\nID: 1\nformat:\n\tfield:a;\toffset:0;\tsize:4;\n", "declares nothing"),
    ],
)
def test_what_is_no_format_is_told_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        parse_format(text, "f")


def test_a_page_begins_as_the_kernel_says() -> None:
    assert parse_header_page((EVENTS_DIR / "header_page").read_text()) == PageLayout()
    assert parse_header_page(
        "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
        "\tfield: local_t commit;\toffset:8;\tsize:4;\tsigned:1;\n"
        "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
        "\tfield: char data;\toffset:12;\tsize:4084;\tsigned:1;\n"
    ) == PageLayout(commit_size=4, data=12)


def test_a_page_without_a_commit_is_refused() -> None:
    with pytest.raises(FormatError, match="no field 'commit'"):
        parse_header_page("\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n")
