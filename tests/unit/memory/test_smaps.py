"""/proc/PID/smaps and smaps_rollup."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from pagemerge.errors import FormatError, NotSupportedError
from pagemerge.memory import parse_smaps, parse_smaps_rollup, read_smaps, read_smaps_rollup

HEAP = """\
55e6f0000000-55e6f0021000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
Rss:                  16 kB
Pss:                   8 kB
KSM:                   4 kB
THPeligible:           1
VmFlags: rd wr mr mw me ac mg sd 
"""  # noqa: W291
STACK = """\
7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0                          [stack]
Size:                132 kB
Rss:                  12 kB
Pss:                  12 kB
KSM:                   0 kB
THPeligible:           0
VmFlags: rd wr mr mw me gd ac 
"""  # noqa: W291


def test_sizes_are_bytes_by_the_kernels_names() -> None:
    heap, stack = parse_smaps(HEAP + STACK)
    assert heap.sizes == {"Size": 135168, "Rss": 16384, "Pss": 8192, "KSM": 4096, "THPeligible": 1}
    assert (heap.is_mergeable, stack.is_mergeable) == (True, False)
    assert (heap.vma.path, stack.ksm_bytes) == ("[heap]", 0)


def test_lines_that_are_not_the_same_for_all_are_read_too() -> None:
    odd = STACK.replace("THPeligible:           0\n", "ProtectionKey:         3\nSwap: 8 kB\n")
    heap, stack = parse_smaps(HEAP + odd)
    assert heap.sizes["THPeligible"] == 1
    assert (stack.sizes["ProtectionKey"], stack.sizes["Swap"]) == (3, 8192)
    swapped = STACK.replace("THPeligible:           0\n", "ProtectionKey:         3\n")
    assert parse_smaps(HEAP + swapped)[1].sizes["ProtectionKey"] == 3


def test_a_kernel_without_the_ksm_line_gives_none() -> None:
    without = "".join(line for line in HEAP.splitlines(keepends=True) if not line.startswith("KSM"))
    assert parse_smaps(without)[0].ksm_bytes is None


def test_a_kernel_without_vmflags_gives_no_flags() -> None:
    old = HEAP.replace("VmFlags: rd wr mr mw me ac mg sd \n", "")
    assert parse_smaps(old)[0].flags == frozenset()


def test_a_kernel_thread_has_nothing() -> None:
    assert parse_smaps("") == []
    assert parse_smaps_rollup("") == {}


@pytest.mark.parametrize("text", [HEAP.replace("16 kB", "many kB"), HEAP + "what is this\n"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="smaps"):
        parse_smaps(text)


def test_our_own_memory_adds_up() -> None:
    with mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area[:] = b"x" * len(area)
        smaps, rollup = read_smaps(os.getpid()), read_smaps_rollup(os.getpid())
    assert rollup["Rss"] >= 64 * mmap.PAGESIZE
    assert sum(smap.sizes["Size"] for smap in smaps) > rollup["Rss"] > rollup["Pss"] > 0
    assert any("wr" in smap.flags for smap in smaps)


def test_a_file_this_kernel_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "17").mkdir()
    with pytest.raises(NotSupportedError, match="17/smaps_rollup"):
        read_smaps_rollup(17, tmp_path)
