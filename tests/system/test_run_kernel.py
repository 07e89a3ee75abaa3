"""`pagemerge run --ksm kernel`: the kernel's own KSM for an unmodified command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import require
from tests.support.kernel_ksm import KernelKsmControl
from tests.support.processes import Child
from tests.support.waiting import wait_until

pytestmark = pytest.mark.ksm

PAGES = 2048
# Two processes with the same data, held until they are told to end.
TWINS = f"""
import mmap, random, subprocess, sys
HOLD = '''
import mmap, random, sys
area = mmap.mmap(-1, {PAGES} * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area[:] = random.Random(1).randbytes({PAGES} * 4096)
if sys.argv[1] == "mark":
    area.madvise(mmap.MADV_MERGEABLE)
print("ready", flush=True)
sys.stdin.read()
'''
children = [
    subprocess.Popen([sys.executable, "-c", HOLD, sys.argv[1]], stdin=subprocess.PIPE,
                     stdout=subprocess.PIPE)
    for _ in range(2)
]
for child in children:
    child.stdout.readline()
print(*(child.pid for child in children), flush=True)
sys.stdin.readline()
for child in children:
    child.stdin.close()
    child.wait()
sys.exit(5)
"""


@pytest.fixture(autouse=True)
def _needs() -> None:
    require(Path("/proc/self/ksm_stat").exists(), "the kernel's KSM with ksm_stat")


def start(*options: str, report: Path, how: str = "plain", **more: Any) -> Child:
    argv = [sys.executable, "-m", "pagemerge", "run", "--quiet", "--report", str(report)]
    return Child([*argv, *options, "--", sys.executable, "-c", TWINS, how], **more)


def run_twins(
    control: KernelKsmControl, *options: str, report: Path, how: str = "plain"
) -> dict[str, Any]:
    """Run them until both are merged and have been looked at; the report."""
    control.write("pages_to_scan", 100_000)
    control.write("sleep_millisecs", 1)
    with start(*options, report=report, how=how) as command:
        pids = [int(word) for word in command.read_line().split()]
        wait_until(lambda: all(merging(pid) >= PAGES for pid in pids), "both twins merged", 120)
        wait_for_a_look(command.pid)
        command.send("")
        assert command.process.wait(30) == 5
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def merging(pid: int) -> int:
    return int(Path(f"/proc/{pid}/ksm_merging_pages").read_text())


def wait_for_a_look(pid: int) -> None:
    """Wait until a process that runs a command has read more than one look at it takes."""

    def reads() -> int:
        text = Path(f"/proc/{pid}/io").read_text()
        return int(text.partition("syscr: ")[2].split()[0])

    processes = sum(entry.name.isdigit() for entry in Path("/proc").iterdir())
    most = 3 * processes + 300  # of each a file, in two or three reads; more of the few and sysfs
    target = reads() + 2 * most
    wait_until(lambda: reads() >= target, "a look from beginning to end", 120)


def is_alone(report: dict[str, Any]) -> bool:
    """Whether nobody else on this machine merges, so that the machine's counters are known."""
    return not any(note.startswith("others on this machine") for note in report["notes"])


def test_a_command_is_merged_with_its_children_and_reported(
    kernel_ksm: KernelKsmControl, tmp_path: Path
) -> None:
    kernel_ksm.write("run", 1)
    report = run_twins(kernel_ksm, "--ksm", "kernel", report=tmp_path / "report")
    assert report["ksm"] == "kernel"
    assert report["ksm_stat"]["ksm_merging_pages"] >= 2 * PAGES
    assert report["metadata_bytes"] == 64 * report["ksm_stat"]["ksm_rmap_items"]
    assert report["pss_before_bytes"] > report["pss_after_bytes"] > 0
    if is_alone(report):
        assert report["saved_bytes"] > 0.9 * PAGES * 4096
        assert report["pss_before_bytes"] - report["pss_after_bytes"] >= 0.95 * PAGES * 4096
    assert report["passes"] >= 2
    assert report["exit_status"] == 5
    assert kernel_ksm.read("run") == 1


def test_only_marks_are_merged_with_no_all(kernel_ksm: KernelKsmControl, tmp_path: Path) -> None:
    kernel_ksm.write("run", 1)
    report = run_twins(
        kernel_ksm, "--ksm", "kernel", "--no-all", report=tmp_path / "report", how="mark"
    )
    assert report["ksm_stat"]["ksm_merging_pages"] == 2 * PAGES
    if is_alone(report):
        saved = PAGES * 4096 - report["metadata_bytes"]
        assert abs(report["saved_bytes"] - saved) < 0.03 * saved


def test_start_switches_it_on_and_puts_back_what_was_there(
    kernel_ksm: KernelKsmControl, tmp_path: Path
) -> None:
    assert kernel_ksm.read("run") in (0, 2)
    found = kernel_ksm.read("run")
    report = run_twins(kernel_ksm, "--start", report=tmp_path / "report")
    assert report["ksm_stat"]["ksm_merging_pages"] >= 2 * PAGES
    assert kernel_ksm.read("run") == found


def test_start_puts_it_back_when_the_command_is_ended_by_a_signal(
    kernel_ksm: KernelKsmControl, tmp_path: Path
) -> None:
    kernel_ksm.write("run", 0)
    with start("--start", report=tmp_path / "report") as command:
        command.read_line()
        assert kernel_ksm.read("run") == 1
        os.kill(command.pid, signal.SIGTERM)
        assert command.process.wait(30) == 128 + signal.SIGTERM
    assert kernel_ksm.read("run") == 0


@pytest.mark.parametrize("found", [0, 2])
def test_start_puts_it_back_when_it_is_killed(
    kernel_ksm: KernelKsmControl, tmp_path: Path, found: int
) -> None:
    kernel_ksm.write("run", found)
    with start("--start", report=tmp_path / "report") as command:
        pids = [int(word) for word in command.read_line().split()]
        assert kernel_ksm.read("run") == 1
        parent = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(command.pid, signal.SIGKILL)
        wait_until(lambda: kernel_ksm.read("run") == found, "what was there before")
        os.kill(parent, signal.SIGKILL)  # the command itself goes on; its children see the end


def test_start_leaves_what_somebody_else_has_decided_also_when_it_is_killed(
    kernel_ksm: KernelKsmControl, tmp_path: Path
) -> None:
    kernel_ksm.write("run", 0)
    with start("--start", report=tmp_path / "report") as command:
        command.read_line()
        guard = find_guard(command.pid)
        kernel_ksm.write("run", 2)
        assert os.getpgid(guard) == guard  # what ends the command's group leaves it alone
        command.send("")
        os.kill(command.pid, signal.SIGKILL)
        wait_until(lambda: has_ended(guard), "the guard's end")
        assert kernel_ksm.read("run") == 2


def find_guard(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (found,) = [
        int(child)
        for child in children
        if b"pagemerge-run-guard" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
    ]
    return found


def has_ended(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True


def test_it_is_said_that_nothing_will_be_merged_and_nothing_is_written(
    kernel_ksm: KernelKsmControl,
) -> None:
    kernel_ksm.write("run", 0)
    before = kernel_ksm.save()
    argv = [sys.executable, "-m", "pagemerge", "run", "--ksm", "kernel", "--", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "nothing will be merged: the kernel's KSM is off (run is 0)" in done.stderr
    assert "pagemerge set --ksm kernel run=1" in done.stderr
    assert kernel_ksm.save() == before


@pytest.mark.usefixtures("kernel_ksm")
def test_own_memory_is_the_kernels_by_name() -> None:
    code = """
import mmap, pagemerge
from pagemerge.kernel.processes import read_process
import os
area = mmap.mmap(-1, 8 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
flags = lambda: (read_process(os.getpid()).ksm_mergeable, read_process(os.getpid()).ksm_merge_any)
print(pagemerge.madvise(area, ksm="kernel"), *flags())
print(pagemerge.madvise(area, pagemerge.MADV_UNMERGEABLE, ksm="kernel"), *flags())
pagemerge.enable(ksm="kernel")
print(pagemerge.is_enabled(ksm="kernel"), *flags())
pagemerge.disable(ksm="kernel")
print(pagemerge.is_enabled(ksm="kernel"), *flags())
try:
    pagemerge.madvise(mmap.mmap(-1, 8 * 4096), ksm="kernel")
except pagemerge.RejectedError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{8 * 4096} True False",
        f"{8 * 4096} False False",
        "True True True",
        "False False False",
        "this memory can't be merged: it is a shared mapping (MAP_SHARED)",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ksm", "kernel", "--domain", "x"], "--domain is for the engine"),
        (["--ksm", "kernel", "--set", "run=1"], "--set is for the engine"),
        (["--ksm", "engine", "--start"], "--start is for the kernel's KSM"),
        (["--start", "--domain", "x"], "--domain is for the engine"),
    ],
)
def test_options_of_the_other_implementation_are_refused(options: list[str], words: str) -> None:
    argv = [sys.executable, "-m", "pagemerge", "run", *options, "--", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr
