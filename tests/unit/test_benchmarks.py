"""The benchmark's own parts: its workload checks itself, its table judges rightly."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cases import LatencyResult, LatencyRound, MergeResult, ScanResult, Settled
from benchmarks.report import Results, build_rows
from benchmarks.workload import Shape, Workload, build_workload


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_workload(tmp_path_factory.mktemp("workload"))


@pytest.mark.parametrize("grain", [0, 1, 16])
def test_a_workload_finds_its_memory_right_after_its_writers_rest(
    program: Path, grain: int
) -> None:
    workload = Workload(program, Shape(256, grain=grain), {})
    try:
        assert 200 < workload.equal_pages < 256
        workload.start_writers(4, 2000)
        lap = workload.lap()
        while lap["took"]["count"] < 100:
            lap = workload.lap()
        workload.rest()
        assert lap["took"]["p50"] <= lap["took"]["p99"] <= lap["took"]["max"]
        assert workload.count_bad_pages() == 0
    finally:
        workload.close()


def test_a_workload_notices_a_page_that_is_not_its_own(program: Path) -> None:
    workload = Workload(program, Shape(64), {})
    try:
        with Path(f"/proc/{workload.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(workload.address + 7 * 4096)
            memory.write(b"not yours")
        assert workload.count_bad_pages() == 1
    finally:
        workload.close()


def merge_result(wall: float, sharing: int = 100) -> MergeResult:
    return MergeResult(
        wall_seconds=wall,
        scanner_cpu_seconds=wall / 2,
        process_cpu_seconds=wall / 2,
        expected_pages=100,
        pages_shared=100,
        pages_sharing=sharing,
        passes=2,
        pss_before_bytes=2**20,
        pss_after_bytes=2**19,
        metadata_bytes_per_page=12.0,
        bad_pages=0,
        settled=Settled(passes=10, seconds=1.0, cpu_seconds=wall / 100),
        max_map_count=65530,
    )


def judge(results: Results) -> dict[str, bool | None]:
    return {row.what: row.met for row in build_rows(results)}


def test_a_quarter_of_ksmds_time_meets_the_goal_and_more_does_not() -> None:
    good = judge({"same": {"engine": merge_result(1.0), "ksmd": merge_result(4.0)}})
    bad = judge({"same": {"engine": merge_result(1.1), "ksmd": merge_result(4.0)}})
    assert good["same order: wall until merged"] is True
    assert good["same order: CPU until merged"] is True
    assert bad["same order: wall until merged"] is False


def test_other_pages_than_ksmds_are_not_as_promised() -> None:
    met = judge({"same": {"engine": merge_result(1.0, 99), "ksmd": merge_result(4.0)}})
    assert met["same order: pages_sharing"] is False


def test_without_ksmd_only_what_needs_no_comparison_is_judged() -> None:
    scan = ScanResult(
        bytes=10**9,
        wall_seconds=0.3,
        cpu_seconds=0.2,
        plain_read_gb_per_second=20.0,
        bad_pages=0,
    )
    met = judge({"same": {"engine": merge_result(1.0)}, "scan": {"engine": scan}})
    assert met["same order: wall until merged"] is None
    assert met["same order: pages_sharing"] is True
    assert met["metadata for a scanned page"] is True
    assert met["first scan, one core (plain read 20.0 GB/s)"] is True


def test_ksmd_alone_gives_rows_that_judge_nothing() -> None:
    assert set(judge({"same": {"ksmd": merge_result(4.0)}}).values()) == {None}


def latency(*added: int) -> LatencyResult:
    before = {"late": {"p99": 1000}, "took": {"p99": 500}}
    return LatencyResult(
        [
            LatencyRound(
                before,
                {"late": {"p99": 1000 + ns}, "took": {"p99": 500 + ns}},
                merging_seconds=1.0,
                pages_sharing=100,
                stolen_seconds=0.0,
                bad_pages=1,
            )
            for ns in added
        ]
    )


def test_of_several_rounds_the_middle_one_counts() -> None:
    rounds = latency(100, 90_000, 200)
    assert rounds.added_p99("late") == 200
    assert rounds.spread("late") == (100, 90_000)
    assert rounds.bad_pages == 3
    met = judge({"latency": {"engine": rounds, "ksmd": latency(250, 250, 50)}})
    assert met["writer, due until done: added p99"] is True


def test_writers_that_notice_more_than_with_ksmd_miss_the_goal() -> None:
    met = judge({"latency": {"engine": latency(300), "ksmd": latency(200)}})
    assert met["writer, due until done: added p99"] is False
    met = judge({"latency": {"engine": latency(100), "ksmd": latency(200)}})
    assert met["writer, the store alone: added p99"] is True
