"""/proc/PID/maps."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from pagemerge.errors import FormatError, ProcessGoneError
from pagemerge.memory import parse_maps, read_maps

TEXT = """\
55e6f0000000-55e6f0001000 r--p 00000000 fe:00 26723      /usr/bin/a b
7f0000000000-7f0000200000 rw-p 00000000 00:00 0 
7f0000200000-7f0000400000 rw-s 00010000 00:01 1044       /dev/zero (deleted)
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]
"""  # noqa: W291  # the kernel leaves that blank


def test_names_may_hold_blanks_or_be_missing() -> None:
    assert [vma.path for vma in parse_maps(TEXT)] == [
        "/usr/bin/a b",
        "",
        "/dev/zero (deleted)",
        "[vsyscall]",
    ]


def test_addresses_and_offsets_are_bytes() -> None:
    shared = parse_maps(TEXT)[2]
    assert (shared.start, shared.size_bytes, shared.offset) == (0x7F0000200000, 2 << 20, 0x10000)
    assert not shared.is_private


def test_a_broken_line_is_named_with_its_number() -> None:
    with pytest.raises(FormatError, match=r"maps:2: 'nonsense'"):
        parse_maps(TEXT.splitlines()[0] + "\nnonsense\n")


def test_a_mapping_of_our_own_is_found() -> None:
    with mmap.mmap(-1, 12345) as area:
        area[0] = 1
        private = [vma for vma in read_maps(os.getpid()) if vma.path == "[heap]" or vma.is_private]
        assert private


def test_a_process_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ProcessGoneError) as caught:
        read_maps(17, tmp_path)
    assert caught.value.pid == 17
