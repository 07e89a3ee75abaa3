"""Pss without the pool, and the pool once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pagemerge.engine.footprint import (
    Footprint,
    Lineage,
    parse_footprint,
    read_family,
    read_footprint,
    read_pool_bytes,
    sum_footprints,
)
from pagemerge.memory import parse_smaps, read_smaps_rollup
from tests.support.processes import Child

KIB = 1024


def mapping(
    start: int, kib: int, *, pss: int, anonymous: int = 0, path: str = "", **more: str
) -> str:
    end = start + kib * KIB
    return (
        f"{start:x}-{end:x} {more.get('perms', 'rw-p')} {more.get('offset', '00000000')} 00:01 "
        f"{more.get('inode', '7')} {path}\n"
        f"Size: {kib} kB\nPss: {pss} kB\nAnonymous: {anonymous} kB\nVmFlags: rd wr\n"
    )


def pool(start: int, kib: int, **more: object) -> str:
    return mapping(start, kib, path="/memfd:pagemerge (deleted)", **more)  # type: ignore[arg-type]


def footprint(*texts: str) -> Footprint:
    return parse_footprint(parse_smaps("".join(texts)))


def test_private_copies_in_the_pool_stay_with_their_process() -> None:
    found = footprint(mapping(0x10000, 64, pss=40), pool(0x100000, 100, pss=30, anonymous=20))
    assert found.own_bytes == (40 + 20) * KIB
    assert found.unmerged_bytes == (40 + 20 + 80) * KIB
    assert found.pool_bytes == 100 * KIB


def test_what_was_inherited_over_a_fork_counts_once() -> None:
    lineage = Lineage()
    parent = lineage.attribute(1, b"x", footprint(pool(0x100000, 100, pss=20, anonymous=20)))
    child = lineage.attribute(2, b"x", footprint(pool(0x100000, 100, pss=0)))
    stranger = lineage.attribute(3, b"y", footprint(pool(0x100000, 100, pss=0)))
    assert sum_footprints([parent, child]).unmerged_bytes == (20 + 100) * KIB
    assert sum_footprints([child, stranger]).unmerged_bytes == 200 * KIB
    assert sum_footprints([child, stranger]).pool_bytes == 100 * KIB


def test_what_a_child_has_had_merged_itself_is_its_own() -> None:
    lineage = Lineage()
    lineage.attribute(1, b"x", footprint(pool(0x100000, 100, pss=0)))
    for child in (2, 3):
        first = lineage.attribute(child, b"x", footprint(mapping(0x300000, 64, pss=64)))
        assert first.unmerged_bytes == 64 * KIB
    found = [
        lineage.attribute(child, b"x", footprint(pool(0x300000, 64, pss=0))) for child in (2, 3)
    ]
    assert sum_footprints(found).unmerged_bytes == 128 * KIB


def test_a_mapping_that_grows_after_the_fork_is_inherited_in_part() -> None:
    lineage = Lineage()
    parent = lineage.attribute(1, b"x", footprint(pool(0x100000, 100, pss=0)))
    lineage.attribute(2, b"x", footprint(pool(0x100000, 100, pss=0)))
    child = lineage.attribute(2, b"x", footprint(pool(0x100000, 140, pss=0)))
    assert sum_footprints([parent, child]).unmerged_bytes == 140 * KIB
    parent = lineage.attribute(1, b"x", footprint(pool(0x100000, 140, pss=0)))
    assert sum_footprints([parent, child]).unmerged_bytes == 180 * KIB


def test_a_fork_stays_in_the_family_and_an_exec_leaves_it(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        assert read_family(pid) == read_family(os.getpid()) != b""
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with Child("input()") as child:
        assert read_family(child.pid) not in (b"", read_family(os.getpid()))
    assert read_family(17, tmp_path) == b""


def test_overlapping_parts_of_the_pool_count_once() -> None:
    found = footprint(
        pool(0x100000, 100, pss=0),
        pool(0x200000, 100, pss=0, offset=f"{50 * KIB:08x}"),
        pool(0x300000, 100, pss=0, inode="8"),
    )
    assert found.pool_bytes == 250 * KIB


def test_an_agent_at_work_looks_at_the_pool_through_views_that_do_not_count() -> None:
    assert footprint(pool(0x100000, 100, pss=50, perms="r--s")).unmerged_bytes == 0


def test_without_a_pool_it_is_the_pss() -> None:
    here = read_footprint(os.getpid())
    pss = read_smaps_rollup(os.getpid())["Pss"]
    assert abs(here.own_bytes - pss) < 0.1 * pss
    assert here.unmerged_bytes == here.own_bytes


def test_the_pool_takes_what_its_files_take(tmp_path: Path) -> None:
    source = """
import os, sys
fd = os.memfd_create("pagemerge")
os.truncate(fd, 1 << 30)
os.pwrite(fd, b"x" * 8192, 1 << 20)
again = os.dup(fd)
print("ready", flush=True)
sys.stdin.readline()
os.close(fd)
os.close(again)
print("closed", flush=True)
sys.stdin.readline()
"""
    with Child(source) as child:  # this process may have files of the pool from other tests
        assert child.read_line() == "ready"
        assert read_pool_bytes(child.pid) == 8192
        assert child.ask("close") == "closed"
        assert read_pool_bytes(child.pid) == 0
    assert read_pool_bytes(17, tmp_path) == 0
