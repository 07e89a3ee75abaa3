"""The kernel's trace events on real processes: whose they are, what is lost, what is left."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagemerge.errors import CommandError
from pagemerge.kernel import KernelKsm
from pagemerge.ksm import Event, LostEvents
from pagemerge.memory import read_tree
from tests.support.environment import require
from tests.support.kernel_ksm import KernelKsmControl
from tests.support.processes import Child
from tests.support.tracefs import mounted_tracefs, record
from tests.support.users import package_for, python_for
from tests.support.victims import holder
from tests.support.waiting import wait_until

PAGES = 64
TRACE = [sys.executable, "-m", "pagemerge", "trace", "--ksm", "kernel"]
NOBODY = 65534


@pytest.fixture
def tracefs() -> Iterator[Path]:
    with mounted_tracefs() as path:
        require((path / "events/ksm").is_dir(), "trace events of KSM (Linux 6.4)")
        yield path


def full_speed(kernel_ksm: KernelKsmControl) -> None:
    kernel_ksm.write("pages_to_scan", 100_000)
    kernel_ksm.write("sleep_millisecs", 1)


@pytest.mark.ksm
@pytest.mark.usefixtures("tracefs")
def test_merges_are_told_with_their_process_and_how_it_is_known(
    kernel_ksm: KernelKsmControl,
) -> None:
    full_speed(kernel_ksm)
    with holder({}) as before, holder({}) as after:
        for child in (before, after):
            child.ask(f"fill seed {PAGES}")
        assert before.ask("mark") == "0"
        with record(KernelKsm()) as recording:
            assert after.ask("mark") == "0"
            kernel_ksm.write("run", 1)
            kernel_ksm.wait_passes(4)
            kernel_ksm.write("run", 2)
            after.kill()
            recording.wait("ksm_exit", after.pid)
    assert recording.lost == 0
    assert len(recording.merges(before.pid)) >= PAGES
    assert len(recording.merges(after.pid)) >= PAGES
    assert {event.how for event in recording.events(pid=before.pid)} == {"lookup"}
    assert {event.how for event in recording.events(pid=after.pid)} == {"context"}
    assert len(recording.events("ksm_remove_ksm_page")) >= PAGES
    assert recording.events("ksm_enter", pid=after.pid)
    assert not recording.events("ksm_enter", pid=before.pid)
    times = [event.time for event in recording.events()]
    assert times == sorted(times)


@pytest.mark.ksm
@pytest.mark.usefixtures("tracefs")
def test_a_forked_child_is_told_from_its_parent(
    kernel_ksm: KernelKsmControl, tmp_path: Path
) -> None:
    full_speed(kernel_ksm)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with holder({}) as parent:
        parent.ask(f"same x {PAGES}")  # a page and its forked self are not merged
        assert parent.ask("mark") == "0"
        digest = parent.ask("sum")
        with record(KernelKsm()) as recording:
            child = int(parent.ask(f"fork {gate} {digest}"))
            kernel_ksm.write("run", 1)
            kernel_ksm.wait_passes(4)
            gate.write_bytes(b"x")
            assert parent.ask(f"wait {child}") == "0"
            recording.wait("ksm_exit", child)
    (enter,) = recording.events("ksm_enter", pid=child)
    assert enter.how == "fork"
    assert enter.fields["common_pid"] == parent.pid
    assert recording.merges(child)
    assert recording.merges(parent.pid)
    assert {event.how for event in recording.merges(child)} == {"fork"}
    assert {event.how for event in recording.merges(parent.pid)} == {"lookup"}


# Switches merging on for itself, and starts a program that inherits it over exec.
INHERITED = """
import ctypes, subprocess, sys
if ctypes.CDLL(None).prctl(67, 1, 0, 0, 0):
    print("refused", flush=True)
    sys.exit()
code = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"
sys.exit(subprocess.run([sys.executable, "-c", code]).returncode)
"""


@pytest.mark.usefixtures("tracefs")
def test_a_program_that_inherits_merging_over_exec_is_known() -> None:
    with record(KernelKsm()) as recording, Child(INHERITED) as parent:
        answer = parent.read_line()
        require(answer != "refused", "prctl(PR_SET_MEMORY_MERGE), Linux 6.4")
        program = int(answer)
        recording.wait("ksm_enter", parent.pid)
        recording.wait("ksm_enter", program)
        assert parent.finish() == 0
    assert recording.events("ksm_enter", pid=parent.pid)[0].how == "context"
    # after a fork it would be registered twice: as the copy of its parent, and at exec
    assert recording.events("ksm_enter", pid=program)[-1].how == "context"


@pytest.mark.ksm
@pytest.mark.usefixtures("tracefs")
def test_in_another_pid_namespace_processes_have_the_numbers_that_they_have_there(
    kernel_ksm: KernelKsmControl,
) -> None:
    require(shutil.which("unshare") is not None, "unshare (util-linux)")
    full_speed(kernel_ksm)
    kernel_ksm.write("run", 1)
    source = f"""
import json, os
from pagemerge.kernel import KernelKsm
from tests.support.tracefs import record
from tests.support.victims import holder
from tests.support.waiting import wait_until
assert os.getpid() == 1, os.getpid()
with holder({{}}) as one, holder({{}}) as two:
    for child in (one, two):
        child.ask("fill seed {PAGES}")
    one.ask("mark")
    with record(KernelKsm()) as recording:
        def both() -> bool:
            # what was merged before a lookup told whose it is has nobody's number
            for child in (one, two):
                child.ask("unmark")
                child.ask("mark")
            return bool(recording.merges(one.pid) and recording.merges(two.pid))
        wait_until(both, "merges of both", every=0.2)
    hows = {{event.how for event in recording.events() if event.pid}}
    print(json.dumps([one.pid, two.pid, sorted(hows)]))
"""
    argv = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", source]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    one, two, hows = json.loads(done.stdout)
    assert one < two < 100
    assert hows == ["lookup"]


@pytest.mark.ksm
@pytest.mark.usefixtures("tracefs")
def test_passes_begin_and_end_in_pairs(kernel_ksm: KernelKsmControl) -> None:
    names = ["ksm_start_scan", "ksm_stop_scan"]
    with holder({}) as child:
        child.ask(f"fill seed {PAGES}")
        assert child.ask("mark") == "0"
        with record(KernelKsm(), names) as recording:
            full_speed(kernel_ksm)
            kernel_ksm.write("run", 1)
            kernel_ksm.wait_passes(3)
            kernel_ksm.write("run", 0)
            recording.wait("ksm_stop_scan", count=3)
    events = recording.events()
    assert {event.name for event in events} == set(names)
    starts, stops = events[0::2], events[1::2]
    assert {event.name for event in starts} == {"ksm_start_scan"}
    assert {event.name for event in stops} == {"ksm_stop_scan"}
    for start, stop in zip(starts, stops, strict=False):
        assert start.fields["seq"] == stop.fields["seq"]
        assert start.time < stop.time
    assert stops[-1].fields["rmap_entries"] >= PAGES


@pytest.mark.ksm
@pytest.mark.usefixtures("tracefs")
def test_what_a_small_buffer_loses_is_counted(kernel_ksm: KernelKsmControl) -> None:
    pages = 2000
    full_speed(kernel_ksm)
    with holder({}) as child:
        child.ask(f"same x {pages}")
        events = KernelKsm().events(seconds=0.01, buffer_bytes=8192)
        with contextlib.closing(events):
            assert child.ask("mark") == "0"
            kernel_ksm.write("run", 1)
            kernel_ksm.wait_passes(3)  # nobody reads meanwhile
            kernel_ksm.write("run", 0)
            found = list(events)
    lost = sum(event.count for event in found if isinstance(event, LostEvents))
    kept = [
        event
        for event in found
        if isinstance(event, Event) and event.name not in ("ksm_enter", "ksm_exit")
    ]
    assert lost > 0
    assert len(kept) + lost >= pages
    # a flood does not wash away what tells who is who
    enters = [item.pid for item in found if isinstance(item, Event) and item.name == "ksm_enter"]
    assert enters.count(child.pid) == 1


@pytest.mark.usefixtures("tracefs")
def test_an_event_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CommandError, match="no event 'ksm_nonsense'"):
        KernelKsm().events(names=["ksm_nonsense"])


def instances(tracefs: Path, pid: int) -> list[Path]:
    return list((tracefs / "instances").glob(f"pagemerge-{pid}-*"))


def test_a_trace_that_ends_leaves_no_instance(tracefs: Path) -> None:
    events = KernelKsm().events()
    assert instances(tracefs, os.getpid())
    events.close()  # never begun: what was made goes all the same
    del events
    assert not instances(tracefs, os.getpid())
    for _ in KernelKsm().events(seconds=0.05):
        assert instances(tracefs, os.getpid())
    assert not instances(tracefs, os.getpid())


def is_tracing(instance: Path) -> bool:
    """Whether an instance has its events on; the folder is there before its files are."""
    try:
        return (instance / "events/ksm/ksm_stop_scan/enable").read_text().startswith("1")
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def tracing(tracefs: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*TRACE, *arguments], stdout=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: any(is_tracing(path) for path in instances(tracefs, process.pid)),
            "the trace's instance",
        )
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_trace_that_is_killed_leaves_no_instance(tracefs: Path) -> None:
    with tracing(tracefs) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: not instances(tracefs, process.pid), "the guard to tidy up")


def test_what_a_killed_trace_and_its_killed_guard_leave_the_next_one_removes(
    tracefs: Path,
) -> None:
    with tracing(tracefs) as process:
        guards = read_tree([process.pid])[1:]
        assert guards
        for guard in guards:
            os.kill(guard, signal.SIGKILL)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert instances(tracefs, process.pid)
        for _ in KernelKsm().events(seconds=0.01):
            pass
        assert not instances(tracefs, process.pid)


def test_the_instance_of_a_trace_that_runs_is_left_alone(tracefs: Path) -> None:
    with tracing(tracefs) as process:
        for _ in KernelKsm().events(seconds=0.01):
            pass
        assert instances(tracefs, process.pid)


@pytest.mark.usefixtures("tracefs")
def test_without_tracefs_the_command_that_mounts_it_is_named() -> None:
    require(os.geteuid() == 0 and shutil.which("unshare"), "permission to unmount (root), unshare")
    without = ["unshare", "-m", "sh", "-c", 'umount -l -a -t tracefs,debugfs; exec "$@"', "sh"]
    result = subprocess.run(
        [*without, *TRACE, "--seconds", "1"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "pagemerge: error: tracefs is not mounted",
        "hint: mount it, as root: mount -t tracefs nodev /sys/kernel/tracing",
    ]


@pytest.mark.usefixtures("tracefs")
def test_without_root_the_way_out_is_named(tmp_path: Path) -> None:
    target = tmp_path / "trace.json"
    target.write_text("before")
    result = subprocess.run(
        [python_for(NOBODY), *TRACE[1:], "--perfetto", str(target)],
        env={**os.environ, **package_for(NOBODY)},
        user=NOBODY,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 4
    assert "not permitted" in result.stderr
    assert "hint: tracing takes root (sudo pagemerge trace ...)" in result.stderr
    assert target.read_text() == "before"
