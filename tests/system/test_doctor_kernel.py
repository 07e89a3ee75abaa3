"""`pagemerge doctor` on the running kernel: causes that are brought about, found, and cured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pagemerge.commands import main
from tests.support.kernel_ksm import KernelKsmControl
from tests.support.processes import Child, read_smaps_rollup
from tests.support.victims import holder
from tests.support.waiting import wait_until

pytestmark = pytest.mark.ksm
PAGES = 512


@pytest.fixture
def child() -> Iterator[Child]:
    with holder({}) as child:
        yield child


def examine(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Run it; the findings by name, and the exit status as "status"."""
    status = main(["doctor", "--ksm", "kernel", "--json", *map(str, arguments)])
    data = json.loads(capsys.readouterr().out)
    found = {finding["name"]: finding for finding in data["findings"]}
    worst = {finding["severity"] for finding in data["findings"]}
    assert status == int("problem" in worst)
    return found


def mark(child: Child, fill: str) -> int:
    child.ask(fill)
    assert child.ask("mark") == "0"
    return child.pid


def settle(control: KernelKsmControl, **knobs: int) -> None:
    for name, value in {"pages_to_scan": 100_000, "sleep_millisecs": 1, **knobs}.items():
        control.write(name, value)
    control.write("run", 1)
    control.wait_passes(4)


def test_ksm_being_off_is_found_and_its_cure_cures(
    kernel_ksm: KernelKsmControl, child: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = mark(child, f"same x {PAGES}")
    kernel_ksm.write("run", 0)
    found = examine(capsys, pid, "--look", "1ms")
    assert found["not_running"]["severity"] == "problem"
    (cure,) = found["not_running"]["cure"]
    assert main(cure.split()[1:]) == 0
    assert kernel_ksm.read("run") == 1
    settle(kernel_ksm)
    capsys.readouterr()
    found = examine(capsys, pid, "--look", "1ms")
    assert found.keys().isdisjoint({"not_running", "not_visited", "nothing_equal", "not_mergeable"})


def test_everything_having_been_unmerged_is_found(
    kernel_ksm: KernelKsmControl, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kernel_ksm.read("run") == 2
    assert examine(capsys, "--look", "1ms")["unmerged"]["evidence"][0]["value"] == 2


def test_looking_at_no_pages_and_sleeping_for_an_hour_are_found(
    kernel_ksm: KernelKsmControl, child: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = mark(child, f"same x {PAGES}")
    for name, value in {"pages_to_scan": 0, "sleep_millisecs": 3_600_000, "run": 1}.items():
        kernel_ksm.write(name, value)
    found = examine(capsys, pid, "--look", "1ms")
    assert {"scans_nothing", "long_sleep", "not_visited", "too_few_passes"} <= found.keys()


@pytest.mark.usefixtures("kernel_ksm")
def test_memory_that_nobody_marked_is_found(
    child: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    child.ask(f"same x {PAGES}")
    found = examine(capsys, child.pid, "--look", "1ms")
    assert found["not_mergeable"]["pid"] == child.pid
    assert found["not_mergeable"]["cure"] == [f"pagemerge enable {child.pid}"]


def test_contents_that_differ_are_found(
    kernel_ksm: KernelKsmControl, child: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = mark(child, f"unique {PAGES}")
    settle(kernel_ksm)
    found = examine(capsys, pid, "--look", "1ms")
    evidence = {item["name"]: item["value"] for item in found["nothing_equal"]["evidence"]}
    assert evidence == {"pages read": PAGES, "pages with an equal one": 0}
    assert found["process_costs_more"]["evidence"][0]["value"] == -64 * PAGES


def test_zero_pages_are_found_where_they_are_counted_and_where_they_are_not_used(
    kernel_ksm: KernelKsmControl, child: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = mark(child, f"zero {PAGES}")
    assert "zero_unused" in examine(capsys, pid, "--look", "1ms")
    settle(kernel_ksm, use_zero_pages=1)
    found = examine(capsys, pid, "--look", "1ms")
    assert "zero_unused" not in found
    counted = {item["name"]: item["value"] for item in found["zero_pages_apart"]["evidence"]}
    assert counted["ksm_zero_pages"] >= PAGES


def test_more_users_than_max_page_sharing_are_found(
    kernel_ksm: KernelKsmControl, child: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = mark(child, f"same x {PAGES}")
    settle(kernel_ksm, max_page_sharing=4)
    found = examine(capsys, pid, "--look", "1ms")["sharing_limit"]
    assert found["severity"] == "warning"
    values = {item["name"]: item["value"] for item in found["evidence"]}
    assert values["max_page_sharing"] == 4
    assert values["stable_node_dups"] >= PAGES // 4


def test_smart_scan_leaving_pages_out_is_found(
    kernel_ksm: KernelKsmControl, child: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    if not kernel_ksm.has("smart_scan"):
        pytest.skip("this kernel has no smart_scan (Linux 6.7)")
    pid = mark(child, f"unique {PAGES}")
    settle(kernel_ksm, smart_scan=1)
    wait_until(
        lambda: "smart_scan_skips" in examine(capsys, pid, "--quick", "--look", "500ms"),
        "ksmd to leave out more pages than it looks at",
    )


def test_ksmd_that_never_sleeps_is_found(
    kernel_ksm: KernelKsmControl, child: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = mark(child, f"unique {PAGES}")
    settle(kernel_ksm, sleep_millisecs=0)
    found = examine(capsys, pid, "--quick", "--look", "1ms")
    assert "never sleeps" in found["ksmd_busy"]["cause"]


def test_ksmd_going_over_settled_pages_again_and_again_is_found_and_its_cure_cures(
    kernel_ksm: KernelKsmControl, child: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = mark(child, f"unique {8 * PAGES}")
    settle(kernel_ksm, sleep_millisecs=0)
    # a look while something else merges, or while ksmd gets no processor, says nothing
    found = wait_until(
        lambda: examine(capsys, pid, "--quick", "--look", "300ms").get("scans_in_vain", {}),
        "a look at settled pages",
    )
    assert found["evidence"][0]["value"] >= 4
    assert main(found["cure"][0].split()[1:]) == 0
    capsys.readouterr()
    assert "scans_in_vain" not in examine(capsys, pid, "--quick", "--look", "300ms")


def test_the_advisor_is_told_of(
    kernel_ksm: KernelKsmControl, capsys: pytest.CaptureFixture[str]
) -> None:
    if not kernel_ksm.has("advisor_mode"):
        pytest.skip("this kernel has no advisor (Linux 6.8)")
    kernel_ksm.write("advisor_mode", "scan-time")
    assert "advisor_drives" in examine(capsys, "--look", "1ms")


@pytest.mark.usefixtures("kernel_ksm")
def test_memory_in_huge_pages_is_found(child: Child, capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import mmap, random, sys\n"
        "region = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "region.madvise(mmap.MADV_HUGEPAGE)\n"
        "region.madvise(mmap.MADV_MERGEABLE)\n"
        "region[:] = random.randbytes(8 << 20)\n"
        "print('ok', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    assert child  # the holder's own memory has no huge pages
    with Child(program) as huge:
        assert huge.read_line() == "ok"
        if not read_smaps_rollup(huge.pid).get("AnonHugePages"):
            pytest.skip("the kernel gave no huge page (switched off, or memory is in pieces)")
        found = examine(capsys, huge.pid, "--quick", "--look", "1ms")["in_huge_pages"]
        assert found["pid"] == huge.pid
        assert found["evidence"][0]["value"] >= 2 << 20


@pytest.mark.usefixtures("kernel_ksm")
def test_marked_memory_that_was_never_written_to_is_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = (
        "import mmap, sys\n"
        "region = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "region.madvise(mmap.MADV_MERGEABLE)\n"
        "print('ok', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with Child(program) as child:
        assert child.read_line() == "ok"
        found = examine(capsys, child.pid, "--quick", "--look", "1ms")
        assert found["not_touched"]["evidence"][0]["value"] == 8 << 20


def test_a_process_that_has_ended_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Child("print('ok')") as child:
        child.read_line()
        child.finish()
    assert main(["doctor", "--ksm", "kernel", str(child.pid), "--quick", "--look", "1ms"]) == 1
    assert "has ended" in capsys.readouterr().err
