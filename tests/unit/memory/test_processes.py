"""/proc/PID/stat, statm, and who is whose child."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pagemerge.errors import FormatError, NotPermittedError, ProcessGoneError
from pagemerge.memory import (
    parse_stat,
    parse_statm,
    read_comm,
    read_cpu_seconds,
    read_process_text,
    read_stat,
    read_statm,
    read_thread_states,
    read_tree,
)
from tests.support.processes import Child


def stat_line(pid: int, ppid: int, comm: str = "x", flags: int = 0) -> str:
    rest = f"0 0 0 -1 {flags} 0 0 0 0 3 4 0 0 20 0 1 0 777 0 0"
    return f"{pid} ({comm}) S {ppid} {rest}\n"


def machine(root: Path, parents: dict[int, int]) -> Path:
    for pid, ppid in parents.items():
        (root / str(pid)).mkdir()
        (root / str(pid) / "stat").write_text(stat_line(pid, ppid))
    (root / "self").mkdir()
    return root


def test_a_name_may_hold_blanks_and_parentheses() -> None:
    stat = parse_stat(stat_line(7, 1, "a) S (b c"))
    assert (stat.pid, stat.comm, stat.state, stat.ppid) == (7, "a) S (b c", "S", 1)
    assert (stat.utime, stat.stime, stat.starttime) == (3, 4, 777)


def test_a_kernel_thread_is_known() -> None:
    assert parse_stat(stat_line(2, 0, flags=0x00208040)).is_kernel_thread
    assert not parse_stat(stat_line(2, 0, flags=0x00400100)).is_kernel_thread


@pytest.mark.parametrize("text", ["", "7", "7 (x", "7 (x) S", "x (y) S 1"])
def test_what_is_no_stat_line_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_stat(text)


def test_what_is_no_statm_line_is_refused() -> None:
    with pytest.raises(FormatError):
        parse_statm("1 2 3")


def test_a_tree_has_parents_before_children(tmp_path: Path) -> None:
    proc = machine(tmp_path, {1: 0, 10: 1, 11: 10, 12: 11, 13: 10, 20: 1})
    assert read_tree([10], proc) == [10, 11, 13, 12]
    assert read_tree([10, 12, 99], proc) == [10, 12, 11, 13]


def test_our_own_files_are_read() -> None:
    pid = os.getpid()
    assert read_stat(pid).ppid == os.getppid()
    assert read_statm(pid).size >= read_statm(pid).resident > 0
    assert read_cpu_seconds(pid) > 0
    assert read_comm(pid)
    assert pid in read_tree([os.getppid()])


def test_a_process_that_ended_is_said_to_have() -> None:
    with Child("input()") as child:
        assert read_stat(child.pid).ppid == os.getpid()
        child.kill()
        with pytest.raises(ProcessGoneError):
            read_stat(child.pid)


def test_what_is_not_permitted_says_what_would_permit_it(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    folder = tmp_path / "17"
    folder.mkdir()
    (folder / "maps").write_text("")
    (folder / "maps").chmod(0)
    with pytest.raises(NotPermittedError, match="17/maps") as caught:
        read_process_text(17, "maps", tmp_path)
    assert "root" in str(caught.value.hint)


def test_the_state_of_each_thread_is_read(tmp_path: Path) -> None:
    root = machine(tmp_path, {7: 1})
    for tid in (7, 8):
        (root / "7" / "task" / str(tid)).mkdir(parents=True)
        (root / "7" / "task" / str(tid) / "stat").write_text(stat_line(tid, 1, comm="a) Z ("))
    (root / "7" / "task" / "9").mkdir()  # has just ended
    assert read_thread_states(7, root) == ["S", "S"]
    with pytest.raises(ProcessGoneError):
        read_thread_states(8, root)
    assert "R" in read_thread_states(os.getpid())
