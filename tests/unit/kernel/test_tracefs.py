"""Finding tracefs, and tidying up after those who could not, on made-up folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pagemerge.errors import KernelError, NotSupportedError
from pagemerge.kernel.tracefs import find_tracefs, remove_stale_instances
from pagemerge.kernel.tracing import KernelTrace
from pagemerge.memory import read_stat


def make_proc(folder: Path, *, filesystems: str = "nodev\ttracefs\n", mounts: str = "") -> Path:
    proc = folder / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "filesystems").write_text(filesystems)
    (proc / "self/mounts").write_text(mounts)
    return proc


def test_the_first_place_that_has_events_is_taken(tmp_path: Path) -> None:
    empty, there = tmp_path / "tracing", tmp_path / "debug/tracing"
    empty.mkdir()
    (there / "events").mkdir(parents=True)
    assert find_tracefs((empty, there), make_proc(tmp_path)) == there


def test_any_other_mount_is_found_by_the_list_of_mounts(tmp_path: Path) -> None:
    there = tmp_path / "my tracing"
    (there / "events").mkdir(parents=True)
    shown = str(there).replace(" ", "\\040")
    proc = make_proc(tmp_path, mounts=f"proc /proc proc rw 0 0\nnodev {shown} tracefs rw 0 0\n")
    assert find_tracefs((tmp_path / "none",), proc) == there


def test_a_tracefs_that_is_not_mounted_is_told_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="not mounted") as told:
        find_tracefs((tmp_path / "tracing",), make_proc(tmp_path))
    assert told.value.hint == f"mount it, as root: mount -t tracefs nodev {tmp_path}/tracing"


def test_a_kernel_without_tracing_is_not_supported(tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match="no tracefs") as told:
        find_tracefs((tmp_path / "tracing",), make_proc(tmp_path, filesystems="nodev\tproc\n"))
    assert told.value.exit_status == 3


def test_a_kernel_before_6_4_has_no_events_of_ksm(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    with pytest.raises(NotSupportedError, match="no trace events of KSM") as told:
        KernelTrace(tracefs=tmp_path)
    assert told.value.hint is not None
    assert "Linux 6.4 brought them" in told.value.hint


def test_a_kernel_before_6_8_has_no_event_of_the_advisor(tmp_path: Path) -> None:
    (tmp_path / "events/ksm/ksm_start_scan").mkdir(parents=True)
    with pytest.raises(NotSupportedError, match="no event ksm_advisor") as told:
        KernelTrace(["ksm_start_scan", "ksm_advisor"], tracefs=tmp_path)
    assert told.value.hint == "Linux 6.8 brought it"


def test_only_instances_whose_makers_are_gone_are_removed(tmp_path: Path) -> None:
    alive = read_stat(os.getpid()).starttime
    gone = ["pagemerge-4194305-17-0", f"pagemerge-{os.getpid()}-{alive + 1}-0"]
    kept = [f"pagemerge-{os.getpid()}-{alive}-0", "pagemerge-test-1", "others", "pagemerge-1-x-0"]
    for name in gone + kept:
        (tmp_path / "instances" / name).mkdir(parents=True)
    assert sorted(remove_stale_instances(tmp_path)) == sorted(gone)
    assert sorted(path.name for path in (tmp_path / "instances").iterdir()) == sorted(kept)
