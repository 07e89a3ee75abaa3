"""Merged memory is unmerged in slices: a stop for each, and the same state at the end."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pagemerge._core import slice_end
from pagemerge.errors import RejectedError
from pagemerge.kernel import advise_region, set_memory_merge
from pagemerge.kernel.processes import read_process
from pagemerge.memory import read_maps, read_smaps
from tests.support.environment import lacking
from tests.support.kernel_ksm import KernelKsmControl
from tests.support.processes import Child
from tests.support.victims import holder
from tests.support.waiting import wait_until

PAGES = 3000  # of which at most 64 are unmerged in one stop


@pytest.fixture(autouse=True)
def _needs() -> None:
    if not Path("/proc/self/ksm_stat").exists() or os.geteuid() != 0:
        lacking("the kernel's KSM with ksm_stat (Linux 6.14), and root")


def merges(pid: int) -> bool | None:
    process = read_process(pid)
    assert process is not None
    return process.ksm_merge_any


def borders(pid: int, start: int, end: int) -> list[int]:
    """Where within that part one mapping ends and the next begins."""
    return [vma.start for vma in read_maps(pid) if start < vma.start < end]


def merged_pages(pid: int, start: int, end: int) -> int:
    found = (smap for smap in read_smaps(pid) if smap.vma.end > start and smap.vma.start < end)
    return sum(smap.ksm_bytes or 0 for smap in found) // mmap.PAGESIZE


@contextmanager
def merged(knobs: KernelKsmControl) -> Iterator[tuple[Child, int, int]]:
    """A process that has `PAGES` merged pages from `start` to `end`; ksmd goes on scanning."""
    with holder({}) as one, holder({}) as two:
        for child in (one, two):
            child.ask(f"fill seed {PAGES}")
        start = int(one.ask("address"))
        end = start + PAGES * mmap.PAGESIZE
        for child in (one, two):
            set_memory_merge(child.pid, on=True)
        knobs.write("pages_to_scan", 10_000)
        knobs.write("sleep_millisecs", 1)
        knobs.write("run", 1)
        wait_until(lambda: merged_pages(one.pid, start, end) == PAGES, "all is merged", 120)
        yield one, start, end


@pytest.mark.ksm
def test_much_is_unmerged_in_many_stops_and_leaves_no_trace(kernel_ksm: KernelKsmControl) -> None:
    with merged(kernel_ksm) as (child, start, end):
        digest = child.ask("sum")
        seen: list[tuple[int, int]] = []
        done = set_memory_merge(child.pid, on=False, progress=lambda *now: seen.append(now))
        assert not merges(child.pid)
        assert merged_pages(child.pid, start, end) == 0
        assert not borders(child.pid, start, end)
        assert child.ask("sum") == digest
        assert done.stops > PAGES // 64
        assert seen == sorted(seen)
        assert all(0 < now <= total for now, total in seen)


@pytest.mark.ksm
def test_a_region_is_unmerged_in_slices_and_the_rest_stays(kernel_ksm: KernelKsmControl) -> None:
    with merged(kernel_ksm) as (child, start, end):
        middle = start + PAGES // 2 * mmap.PAGESIZE
        done = advise_region(child.pid, start, middle, on=False)
        assert done.stops > PAGES // 2 // 64
        assert merged_pages(child.pid, start, middle) == 0
        assert merged_pages(child.pid, middle, end) == PAGES // 2
        assert merges(child.pid)


_DISABLES = """
import sys
from pagemerge.kernel import set_memory_merge
set_memory_merge(int(sys.argv[1]), on=False, progress=lambda *_: print('slice', flush=True))
"""


@pytest.mark.ksm
def test_killed_in_the_middle_it_is_gone_on_with_by_the_next(kernel_ksm: KernelKsmControl) -> None:
    with merged(kernel_ksm) as (child, start, end):
        digest = child.ask("sum")
        with Child(_DISABLES, str(child.pid)) as disabling:
            while merged_pages(child.pid, start, end) == PAGES:
                disabling.read_line()
            disabling.kill()
        assert merged_pages(child.pid, start, end) > 0
        assert merges(child.pid)
        assert child.ask("sum") == digest
        set_memory_merge(child.pid, on=False)
        assert not merges(child.pid)
        assert merged_pages(child.pid, start, end) == 0
        assert not borders(child.pid, start, end)
        assert child.ask("sum") == digest


@pytest.mark.ksm
def test_broken_off_by_the_user_it_says_what_is_left(kernel_ksm: KernelKsmControl) -> None:
    with merged(kernel_ksm) as (child, start, end):
        command = [sys.executable, "-m", "pagemerge", "disable", str(child.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as disabling:
            wait_until(
                lambda: merged_pages(child.pid, start, end) < PAGES, "it has begun", every=0.001
            )
            disabling.send_signal(signal.SIGINT)
            _, said = disabling.communicate(timeout=60)
        assert disabling.returncode == 130
        assert "the same command again goes on" in said
        assert merges(child.pid)
        set_memory_merge(child.pid, on=False)
        assert merged_pages(child.pid, start, end) == 0


def test_a_process_with_as_many_mappings_as_it_may_have_needs_no_more() -> None:
    # a region that takes several slices, and then no room for another mapping
    source = """
import mmap, sys
anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
region = mmap.mmap(-1, 200 << 20, flags=anonymous)
region[0] = 1
kept = []
try:
    while len(kept) < 200_000:
        prot = mmap.PROT_READ if len(kept) % 2 else mmap.PROT_READ | mmap.PROT_WRITE
        kept.append(mmap.mmap(-1, 4096, flags=anonymous, prot=prot))
except OSError:
    print('full', flush=True)
else:
    print('no limit', flush=True)
for line in sys.stdin:
    print(region[0], flush=True)
"""
    with Child(source) as child:
        if child.read_line() != "full":
            pytest.skip("this machine lets a process have any number of mappings")
        set_memory_merge(child.pid, on=True)
        assert set_memory_merge(child.pid, on=False).stops > 1
        assert not merges(child.pid)
        assert child.ask("well?") == "1"


def test_a_region_with_a_hole_is_done_and_the_hole_named() -> None:
    with holder({}) as child:
        child.ask("fill seed 16")
        start = int(child.ask("address"))
        end = start + 16 * mmap.PAGESIZE
        advise_region(child.pid, start, end, on=True)
        with pytest.raises(RejectedError, match="not mapped"):
            advise_region(child.pid, mmap.PAGESIZE, end, on=False)
        found = read_process(child.pid)
        assert found is not None
        assert found.ksm_mergeable is False


@contextmanager
def own_files() -> Iterator[tuple[int, int]]:
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    flags = os.open("/proc/kpageflags", os.O_RDONLY)
    try:
        yield pagemap, flags
    finally:
        os.close(pagemap)
        os.close(flags)


def test_a_slice_ends_where_one_of_its_limits_is_reached() -> None:
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 100 * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as region:
        region.madvise(mmap.MADV_NOHUGEPAGE)
        for i in (*range(10), 50, 51):
            region[i * page] = 1
        start = ctypes.addressof(ctypes.c_char.from_buffer(region))
        end = start + 100 * page
        with own_files() as (pagemap, flags):
            # nothing is merged
            assert slice_end(pagemap, flags, start, end, 1000, 1000, 1) == (end, 100, 12, 0)
            assert slice_end(pagemap, flags, start, end, 7, 99, 9) == (start + 7 * page, 7, 7, 0)
            # up to the page that is one too many
            assert slice_end(pagemap, flags, start, end, 99, 10, 9) == (
                start + 50 * page,
                50,
                10,
                0,
            )
            # where frames are hidden any page may be merged
            assert slice_end(pagemap, -1, start, end, 99, 99, 11) == (start + 51 * page, 51, 11, 11)
