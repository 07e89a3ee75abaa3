"""`ps` and `regions` of real processes, and views that refresh themselves."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pagemerge.commands import main
from pagemerge.kernel import advise_region
from tests.support.environment import lacking, require
from tests.support.kernel_ksm import KernelKsmControl
from tests.support.users import package_for, python_for
from tests.support.victims import holder
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("kernel_ksm_lock")  # they register with it

PAGEMERGE = [sys.executable, "-m", "pagemerge"]
PAGES = 64
NOBODY = 65534


@pytest.fixture(autouse=True)
def _needs() -> None:
    require(Path("/proc/self/ksm_stat").exists(), "the kernel's KSM with ksm_stat")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "--ksm", "kernel"]) == 0
    return capsys.readouterr().out


@contextmanager
def empty_cgroup() -> Iterator[Path]:
    """The folder of a cgroup; removed when all processes in it have ended."""
    root = Path("/sys/fs/cgroup")
    base = root if (root / "cgroup.controllers").exists() else root / "memory"
    require(os.access(base / "cgroup.procs", os.W_OK), "cgroups that may be made")
    folder = base / f"pagemerge-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        lacking(f"cgroups that may be made ({error})")
    try:
        yield folder
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), "the cgroup's end")
        folder.rmdir()


@pytest.mark.ksm
def test_regions_are_ranked_by_what_is_merged_and_say_why_not(
    kernel_ksm: KernelKsmControl, capsys: pytest.CaptureFixture[str]
) -> None:
    with holder({}) as child:
        child.ask(f"same x {PAGES}")
        start = int(child.ask("address"))
        child.ask("mark")
        kernel_ksm.write("run", 1)
        kernel_ksm.wait_passes()
        rows = json.loads(printed(capsys, "regions", str(child.pid), "--json"))
        title, *lines = printed(capsys, "regions", str(child.pid)).splitlines()
        own = json.loads(printed(capsys, "ps", "--json"))
    first = rows[0]
    assert first["start"] <= start < first["end"]
    assert (first["ksm"], first["mergeable"], first["obstacle"]) == ("kernel", True, None)
    assert (first["merged_bytes"], first["anonymous_bytes"]) == (PAGES * 4096, PAGES * 4096)
    assert title.startswith(f"kernel: process {child.pid}, {len(rows)} regions, ")
    assert title.endswith("256 KiB merged")
    assert "no: the kernel's own" in next(line for line in lines if line.endswith("[vdso]"))
    assert "not marked" in next(line for line in lines if line.endswith("[heap]"))
    assert child.pid in [row["pid"] for row in own]


@pytest.mark.ksm
def test_a_cgroups_regions_are_summed_by_name(
    kernel_ksm: KernelKsmControl, capsys: pytest.CaptureFixture[str]
) -> None:
    with empty_cgroup() as folder, holder({}) as one, holder({}) as two:
        name = folder.name
        for child in (one, two):
            (folder / "cgroup.procs").write_text(str(child.pid))
            child.ask(f"fill seed {PAGES}")
            child.ask("mark")
        kernel_ksm.write("run", 1)
        kernel_ksm.wait_passes()
        rows = json.loads(printed(capsys, "regions", "--cgroup", name, "--json"))
        text = printed(capsys, "regions", "--cgroup", name)
    assert (rows[0]["name"], rows[0]["processes"]) == ("", 2)
    assert rows[0]["merged_bytes"] == 2 * PAGES * 4096
    heap = next(row for row in rows if row["name"] == "[heap]")
    assert (heap["processes"], heap["merged_bytes"]) == (2, 0)
    assert text.startswith(f"kernel: {name}: 2 processes, 512 KiB merged\n")


def test_a_region_that_is_marked_says_so_before_it_is_merged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    require(os.geteuid() == 0, "root, to mark a region of another process")
    with holder({}) as child:
        child.ask(f"fill seed {PAGES}")
        start = int(child.ask("address"))
        advise_region(child.pid, start, start + PAGES * 4096, on=True)
        rows = json.loads(printed(capsys, "regions", str(child.pid), "--json"))
        row = next(row for row in rows if row["start"] <= start < row["end"])
        assert row["mergeable"]
        # what is merged comes first; with nothing merged, what is marked
        assert rows[0] == row


def test_processes_that_may_not_be_looked_at_are_not_taken_for_absent() -> None:
    require(os.geteuid() == 0, "root")
    env = {**os.environ, **package_for(NOBODY)}
    for command in (
        ["ps"],
        ["ps", "--json"],
        ["doctor", "--ksm", "kernel", "--look", "0ms", "--json"],
    ):
        done = subprocess.run(
            [python_for(NOBODY), "-m", "pagemerge", *command],
            env={**env, "PAGEMERGE_KSM": "kernel"},
            user=NOBODY,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert "of other users" in done.stdout + done.stderr, command
        assert "nobody_registered" not in done.stdout


@pytest.mark.parametrize(
    "arguments", [["regions"], ["regions", "1", "--cgroup", "x"], ["ps", "--top", "-1"]]
)
def test_contradictions_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--ksm", "kernel"]) == 2
    assert capsys.readouterr().err.startswith("pagemerge: error: ")


@pytest.mark.parametrize("watch", ["0", "0.01", "soon"])
def test_a_watch_that_is_no_time_is_refused(watch: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--ksm", "kernel", "--watch", watch]) == 2
    assert "pagemerge: error: " in capsys.readouterr().err


@pytest.mark.parametrize("command", [["status"], ["ps"], ["regions", str(os.getpid())]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_watch_on_a_terminal_refreshes_and_gives_the_screen_back(
    command: list[str], number: signal.Signals
) -> None:
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [*PAGEMERGE, *command, "--ksm", "kernel", "--watch", "0.05"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment,
        start_new_session=True,
    )
    os.close(terminal)
    seen = b""

    def read() -> bytes:
        nonlocal seen
        try:
            seen += os.read(controller, 65536)
        except OSError:  # the other side is closed
            return b"closed"
        return b""

    try:
        wait_until(lambda: not read() and seen.count(b"\x1b[H") >= 3, "three drawings", every=0.0)
        process.send_signal(number)
        wait_until(read, "the end", every=0.0)
        assert process.wait(30) == 128 + number
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    assert seen.count(b"\x1b[?1049h") == seen.count(b"\x1b[?1049l") == 1
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")  # the cursor shows
    assert b"Traceback" not in seen


def test_a_watch_in_a_pipe_prints_again_and_again() -> None:
    argv = [*PAGEMERGE, "status", "--ksm", "kernel", "--watch", "0.05"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        heads = 0
        for line in watch.stdout:
            assert "\x1b" not in line
            heads += line.startswith("kernel: ")
            if heads == 3:
                break
        watch.send_signal(signal.SIGINT)
        watch.stdout.close()
        assert watch.stderr.read() == ""
        assert watch.wait(30) == 130
