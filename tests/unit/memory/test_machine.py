"""/proc/meminfo and /proc/vmstat."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagemerge.errors import FormatError
from pagemerge.memory import (
    parse_meminfo,
    parse_vmstat,
    read_max_map_count,
    read_meminfo,
    read_vmstat,
)


def test_meminfo_is_bytes_but_for_counts() -> None:
    text = "MemTotal:       16 kB\nHugePages_Total:       3\n"
    assert parse_meminfo(text) == {"MemTotal": 16384, "HugePages_Total": 3}


def test_vmstat_is_counts() -> None:
    assert parse_vmstat("cow_ksm 7\nksm_swpin_copy 0\n") == {"cow_ksm": 7, "ksm_swpin_copy": 0}


def test_nonsense_is_named_with_its_line() -> None:
    with pytest.raises(FormatError, match="meminfo:2"):
        parse_meminfo("MemTotal: 1 kB\nwhat\n")
    with pytest.raises(FormatError, match="vmstat:1"):
        parse_vmstat("what\n")


def test_this_machine_is_read() -> None:
    meminfo = read_meminfo()
    assert meminfo["MemTotal"] >= meminfo["MemAvailable"] > 0
    assert read_vmstat()["pgfault"] > 0


def test_a_limit_that_is_not_shown_reads_as_none(tmp_path: Path) -> None:
    assert read_max_map_count(tmp_path) is None
    (tmp_path / "sys/vm").mkdir(parents=True)
    (tmp_path / "sys/vm/max_map_count").write_text("65530\n")
    assert read_max_map_count(tmp_path) == 65530
