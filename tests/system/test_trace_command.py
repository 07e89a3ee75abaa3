"""`pagemerge trace` as it is used, on both implementations."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pagemerge.commands import main
from tests.support.engine import EngineDaemon
from tests.support.environment import require
from tests.support.kernel_ksm import KernelKsmControl
from tests.support.processes import Child
from tests.support.tracefs import mounted_tracefs
from tests.support.victims import agent_env, holder
from tests.support.waiting import wait_until

PAGES = 256
TRACE = [sys.executable, "-m", "pagemerge", "trace"]
MERGE = "ksm_merge_with_ksm_page"


class Traced:
    """A running `pagemerge trace` whose output goes into files."""

    def __init__(self, folder: Path, *arguments: str, **env: str) -> None:
        self.out, self.err = folder / "out", folder / "err"
        self.perfetto = folder / "trace.json"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*TRACE, "--perfetto", self.perfetto, *arguments],
                stdout=out,
                stderr=err,
                env={**os.environ, **env},
            )

    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines so far."""
        text = self.out.read_text()
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def count(self, **wanted: object) -> int:
        """How many lines have these values."""
        return sum(
            all(line.get(key) == value for key, value in wanted.items()) for line in self.lines()
        )

    def wait_ready(self) -> None:
        """Wait until events arrive: passes go on all the time."""
        wait_until(lambda: self.count(event="ksm_stop_scan"), "a pass in the trace")

    def wait_merges(self, pid: int) -> None:
        """Wait until all of a process's pages have been merged."""
        wait_until(
            lambda: self.count(event=MERGE, pid=pid, err=0) >= PAGES, "the merges in the trace"
        )

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal and wait."""
        self.process.send_signal(number)
        return self.process.wait(30)


@contextlib.contextmanager
def traced(folder: Path, *arguments: str, **env: str) -> Iterator[Traced]:
    found = Traced(folder, *arguments, **env)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()


def check_perfetto(path: Path, pids: set[int]) -> None:
    """What Perfetto's importer of Chrome's format needs, and what is said to be there."""
    events = json.loads(path.read_text())["traceEvents"]
    for event in events:
        assert {"name", "ph", "ts", "pid", "tid"} <= event.keys()
        assert event["ph"] in {"M", "B", "E", "i", "C"}
    times = [event["ts"] for event in events if event["ph"] != "M"]
    assert times == sorted(times)
    depth = 0
    for event in events:
        depth += {"B": 1, "E": -1}.get(event["ph"], 0)
        assert depth in (0, 1)
    assert depth == 0
    named = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert "ksmd" in named.values()
    assert pids <= named.keys()
    for pid in pids:
        merges = [event for event in events if event["pid"] == pid and event["name"] == "merge"]
        counters = [event for event in events if event["pid"] == pid and event["ph"] == "C"]
        assert len(merges) >= PAGES
        assert counters[-1]["args"] == {"pages": len(merges)}


@pytest.fixture
def tracefs() -> Iterator[Path]:
    with mounted_tracefs() as path:
        require((path / "events/ksm").is_dir(), "trace events of KSM (Linux 6.4)")
        yield path


@pytest.fixture
def twins(engine_daemon: EngineDaemon) -> Iterator[list[Child]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(holder(agent_env(engine_daemon.runtime))) for _ in range(2)]


def test_the_engines_events_come_as_lines_summary_and_perfetto(
    engine_daemon: EngineDaemon, twins: list[Child], tmp_path: Path
) -> None:
    with traced(tmp_path, "--ksm", "engine", "--json", **engine_daemon.env) as trace:
        for child in twins:
            child.ask(f"fill seed {PAGES}")
            assert child.ask("mark") == "0"
        engine_daemon.wait_registered(2)
        engine_daemon.set(run=1)
        trace.wait_ready()
        # what merges before the trace listens is not in it: unmerge, and merge once more
        engine_daemon.set(run=2)
        engine_daemon.set(run=1)
        for child in twins:
            trace.wait_merges(child.pid)
        assert trace.end() == 0
    check_perfetto(trace.perfetto, {child.pid for child in twins})
    merge = next(line for line in trace.lines() if line.get("event") == MERGE)
    assert merge["how"] == "client"
    assert merge["comm"]
    assert "merges" in trace.err.read_text()


@pytest.mark.ksm
def test_the_kernels_events_come_as_lines_summary_and_perfetto(
    kernel_ksm: KernelKsmControl, tracefs: Path, tmp_path: Path
) -> None:
    kernel_ksm.write("pages_to_scan", 1000)
    kernel_ksm.write("sleep_millisecs", 1)
    with (
        holder({}) as one,
        holder({}) as two,
        traced(tmp_path, "--ksm", "kernel", "--json") as trace,
    ):
        one.ask("fill seed 1")
        assert one.ask("mark") == "0"
        kernel_ksm.write("run", 1)
        trace.wait_ready()
        for child in (one, two):
            child.ask(f"fill seed {PAGES}")
            assert child.ask("mark") == "0"
        for child in (one, two):
            trace.wait_merges(child.pid)
        assert trace.end(signal.SIGTERM) == 0
        assert not list((tracefs / "instances").glob(f"pagemerge-{trace.process.pid}-*"))
    check_perfetto(trace.perfetto, {one.pid, two.pid})
    assert "0 lost" in trace.err.read_text()


@pytest.mark.ksm
def test_a_perfetto_file_is_whole_after_a_kill(
    kernel_ksm: KernelKsmControl, tracefs: Path, tmp_path: Path
) -> None:
    kernel_ksm.write("sleep_millisecs", 1)
    with (
        holder({}) as child,
        traced(tmp_path, "--ksm", "kernel", "--json") as trace,
    ):
        child.ask(f"fill seed {PAGES}")
        assert child.ask("mark") == "0"
        kernel_ksm.write("run", 1)
        trace.wait_ready()
        wait_until(lambda: b'"ph":"E"' in trace.perfetto.read_bytes(), "a pass in the file")
        trace.end(signal.SIGKILL)
        events = json.loads(trace.perfetto.read_text())["traceEvents"]
        assert any(event["ph"] == "B" for event in events)
        folder = tracefs / "instances"
        wait_until(lambda: not list(folder.glob(f"pagemerge-{trace.process.pid}-*")), "the guard")


def test_filters_keep_what_was_asked_for(
    engine_daemon: EngineDaemon, twins: list[Child], tmp_path: Path
) -> None:
    for child in twins:
        child.ask(f"fill seed {PAGES}")
        assert child.ask("mark") == "0"
    engine_daemon.wait_registered(2)
    only = ("--event", MERGE, "--pid", str(twins[1].pid))
    with traced(tmp_path, "--ksm", "engine", "--json", *only, **engine_daemon.env) as trace:

        def merged_again() -> int:  # until the trace has begun to listen
            engine_daemon.set(run=2)
            engine_daemon.set(run=1)
            engine_daemon.settle(3)
            return trace.count()

        wait_until(merged_again, "a merge in the trace")
        assert trace.end() == 0
    assert {(line["event"], line["pid"]) for line in trace.lines()} == {(MERGE, twins[1].pid)}


def test_a_terminal_shows_a_live_summary(engine_daemon: EngineDaemon) -> None:
    terminal, end = pty.openpty()
    shown = bytearray()

    def follow() -> None:
        with contextlib.suppress(OSError):  # EIO: all others have closed it
            while data := os.read(terminal, 65536):
                shown.extend(data)

    process = subprocess.Popen(
        [*TRACE, "--ksm", "engine", "--summary"],
        stdout=end,
        stderr=end,
        env={**os.environ, **engine_daemon.env, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(end)
    reader = threading.Thread(target=follow)
    reader.start()
    try:
        wait_until(lambda: b"merges/s now" in shown, "the live summary")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()
        os.close(terminal)
    assert b"events    " in shown[shown.rindex(b"merges/s now") :]


def test_a_time_limit_ends_it_and_the_summary_is_json(engine_daemon: EngineDaemon) -> None:
    result = subprocess.run(
        [*TRACE, "--ksm", "engine", "--summary", "--json", "--seconds", "0.2"],
        env={**os.environ, **engine_daemon.env},
        capture_output=True,
        text=True,
        check=True,
    )
    summary = json.loads(result.stdout)
    assert summary["lost"] == 0
    assert summary["processes"] == []
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--event", "ksm_nonsense"], "ksm_nonsense"),
        (["--seconds", "0"], "--seconds takes a number above 0"),
        (["--seconds", "-1"], "--seconds takes a number above 0"),
        (["--ksm", "engine", "--buffer", "1M"], "--buffer is for the kernel's events"),
        (["--buffer", "much"], "--buffer: 'much' is no amount of memory"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], complaint: str) -> None:
    result = subprocess.run([*TRACE, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert complaint in result.stderr


def test_a_process_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with Child([sys.executable, "-c", ""]) as gone:
        pid = gone.pid
    assert main(["trace", "--ksm", "kernel", "--pid", str(pid), "--seconds", "1"]) == 1
    assert f"process {pid} has ended" in capsys.readouterr().err
