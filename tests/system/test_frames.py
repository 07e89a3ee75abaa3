"""Pages kept for parts of memory, counted by their frames."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pagemerge.kernel.frames import Kept, count_kept
from tests.support.environment import require
from tests.support.kernel_ksm import KernelKsmControl
from tests.support.victims import holder
from tests.support.waiting import wait_until

PAGES = 64


@pytest.mark.ksm
def test_two_with_the_same_pages_keep_one_of_each(kernel_ksm: KernelKsmControl) -> None:
    with holder({}) as one, holder({}) as two:
        ranges = []
        for child in (one, two):
            child.ask(f"fill seed {PAGES}")
            child.ask("mark")
            start = int(child.ask("address"))
            ranges.append((child.pid, start, start + PAGES * 4096))
        assert count_kept(ranges) == Kept(0, 0)
        kernel_ksm.write("pages_to_scan", 10_000)
        kernel_ksm.write("sleep_millisecs", 1)
        kernel_ksm.write("run", 1)
        wait_until(lambda: count_kept(ranges) == Kept(2 * PAGES, PAGES), "both merged", 120)
        assert count_kept(ranges[:1]) == Kept(PAGES, PAGES)
        half = [(pid, start, start + PAGES // 2 * 4096) for pid, start, _ in ranges]
        assert count_kept(half) == Kept(PAGES, PAGES // 2)


def test_what_has_ended_counts_for_nothing() -> None:
    require(os.geteuid() == 0, "root, to be told page frames")
    with holder({}) as child:
        pid = child.pid
    assert count_kept([(pid, 0, 4096)]) == Kept(0, 0)
    assert count_kept([]) == Kept(0, 0)


def test_a_machine_without_kpageflags_gives_none(tmp_path: Path) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "pagemap").write_bytes((1 << 63).to_bytes(8, "little") * 4)  # present, frame hidden
    assert count_kept([(7, 0, 4 * 4096)], tmp_path) is None
