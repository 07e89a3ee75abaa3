"""`pagemerge doctor --ksm engine`: causes that are brought about with real daemons and agents."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pagemerge.commands import main
from pagemerge.engine.doctor import read_facts
from tests.support.control_server import short_folder
from tests.support.engine import EngineDaemon, run_engine_daemon
from tests.support.environment import require
from tests.support.processes import Child
from tests.support.victims import agent_env, compiled, holder
from tests.support.waiting import wait_until

PAGES = 512
NOBODY = 65534


@pytest.fixture
def daemon(engine_daemon: EngineDaemon, monkeypatch: pytest.MonkeyPatch) -> EngineDaemon:
    """The daemon that the command line finds."""
    monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", str(engine_daemon.runtime))
    return engine_daemon


def examine(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Run it; the findings by name."""
    capsys.readouterr()
    words = ["doctor", "--json", "--ksm", "engine", "--look", "1ms", *map(str, arguments)]
    status = main(words)
    data = json.loads(capsys.readouterr().out)
    assert data["ksm"] == "engine"
    assert data.keys() == {"ksm", "findings", "processes", "breakage", "unread"}
    worst = {finding["severity"] for finding in data["findings"]}
    assert status == int("problem" in worst)
    return {finding["name"]: finding for finding in data["findings"]}


def evidence(finding: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item["value"] for item in finding["evidence"]}


def client(daemon: EngineDaemon, **env: str) -> Child:
    return holder({**agent_env(daemon.runtime), **env})


def mark(child: Child, fill: str) -> int:
    child.ask(fill)
    assert child.ask("mark") == "0"
    return child.pid


def test_no_daemon_is_found_and_its_cure_cures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with short_folder() as folder:
        monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", str(folder / "run"))
        found = examine(capsys)
        assert found["no_daemon"]["severity"] == "problem"
        assert "no daemon is running" in found["no_daemon"]["cause"]
        assert main(found["no_daemon"]["cure"][0].split()[1:]) == 0
        try:
            assert examine(capsys).keys() == {"nobody_registered"}
        finally:
            assert main(["stop"]) == 0


def test_a_stopped_daemon_is_found_its_cure_cures_and_then_nothing_is_wrong(
    daemon: EngineDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    with client(daemon) as one, client(daemon) as two:
        pids = [mark(child, f"fill alike {PAGES}") for child in (one, two)]
        daemon.wait_registered(2)
        found = examine(capsys, *pids)
        assert found["not_running"]["evidence"][0]["file"].endswith("control.sock: run")
        (cure,) = found["not_running"]["cure"]
        assert main(cure.split()[1:]) == 0
        wait_until(lambda: daemon.counters()["pages_sharing"] == PAGES, "the merging")
        found = examine(capsys, *pids)
        assert "problem" not in {finding["severity"] for finding in found.values()}
        assert found.keys().isdisjoint({"not_visited", "not_mergeable", "nothing_equal"})
        facts = read_facts(pids, look_seconds=0)
        assert [process.marked_anonymous for process in facts.processes] == [PAGES * 4096] * 2
        assert facts.processes[0].merged_pages == PAGES


def test_without_a_pid_all_that_have_asked_are_looked_at(
    daemon: EngineDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    with client(daemon) as one:
        pid = mark(one, f"fill alike {PAGES}")
        daemon.wait_registered(1)
        assert main(["doctor", "--json", "--ksm", "engine", "--look", "1ms"]) == 1
        data = json.loads(capsys.readouterr().out)
        assert data["processes"] == [pid]
        assert data["breakage"]["available_bytes"] > 0


def test_a_process_without_an_agent_is_found(
    daemon: EngineDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.process.pid
    with holder({}) as stranger:
        stranger.ask(f"fill alike {PAGES}")
        found = examine(capsys, stranger.pid)
        assert found["no_agent"]["pid"] == stranger.pid
        assert f"pagemerge enable {stranger.pid} --ksm kernel" in found["no_agent"]["cure"]


def test_a_program_that_the_agent_cannot_come_into_is_named(
    daemon: EngineDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    program = compiled("handlers", "-static")
    with subprocess.Popen(["/bin/sleep", "1000"]) as plain:
        try:
            assert "statically" not in examine(capsys, plain.pid)["no_agent"]["cause"]
        finally:
            plain.kill()
    with subprocess.Popen(
        [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=agent_env(daemon.runtime)
    ) as still:
        try:
            os.kill(still.pid, signal.SIGSTOP)
            assert "statically linked" in examine(capsys, still.pid)["no_agent"]["cause"]
        finally:
            still.kill()


def test_an_agent_that_was_never_asked_for_anything_is_told_from_one_that_marked_nothing(
    daemon: EngineDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    with client(daemon) as quiet:
        quiet.ask(f"fill alike {PAGES}")
        assert "not_asked" in examine(capsys, quiet.pid)
        mark(quiet, f"fill alike {PAGES}")
        daemon.wait_registered(1)
        assert quiet.ask("unmark") == "0"
        daemon.set(run=1)  # a pass notices it
        wait_until(lambda: "not_mergeable" in examine(capsys, quiet.pid), "the unmarking")
        cure = examine(capsys, quiet.pid)["not_mergeable"]["cure"][0]
        assert main(cure.split()[1:]) == 0
        assert "not_mergeable" not in examine(capsys, quiet.pid)


def test_a_process_of_another_daemon_is_led_to_it(
    daemon: EngineDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    with run_engine_daemon() as other, client(other) as child:
        mark(child, f"fill alike {PAGES}")
        other.wait_registered(1)
        found = examine(capsys, child.pid)["other_daemon"]
        assert evidence(found)["folder in its environment"] == str(other.runtime)
        assert evidence(found)["folder looked at"] == str(daemon.runtime)


def test_a_process_of_another_user_is_found(
    daemon: EngineDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    require(os.geteuid() == 0, "root, to run as another user")
    assert daemon.process.pid
    with Child(["/bin/cat"], user=NOBODY) as child:
        assert child.ask("there") == "there"
        found = examine(capsys, child.pid)
        assert "other_user" in found
        assert "no_agent" not in found


@pytest.mark.parametrize("what", ["mlockall", "userfaultfd"])
def test_a_refusal_is_told_with_its_reason(
    daemon: EngineDaemon, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    env, program = agent_env(daemon.runtime), str(compiled("refused"))
    with (
        Child([program, what, str(PAGES)], env=env) as child,
        Child([program, "nothing", str(PAGES)], env=env) as twin,
    ):
        assert child.read_line() == twin.read_line() == "ready"
        daemon.wait_registered(2)
        require(child.ask("begin") == "done", f"leave to use {what}")
        daemon.set(run=1)
        wait_until(lambda: "refused" in examine(capsys, child.pid), "the refusal")
        found = examine(capsys, child.pid)["refused"]
        assert evidence(found) == {"refused": what}
        assert "as long as it is so" in found["cause"]


def test_contents_that_differ_and_what_they_cost_are_found(
    daemon: EngineDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    with client(daemon) as one:
        pid = mark(one, f"unique {PAGES}")
        daemon.wait_registered(1)
        daemon.set(run=1)
        daemon.settle(4)
        found = examine(capsys, pid)
        values = evidence(found["nothing_equal"])
        assert values["ksm_rmap_items"] == values["pages_unshared"] == PAGES
        assert "costs_more" in found


def test_a_pool_that_cannot_grow_is_found(
    daemon: EngineDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    with client(daemon) as one, client(daemon) as two:
        pids = [mark(child, f"fill alike {PAGES}") for child in (one, two)]
        daemon.wait_registered(2)
        # the pool's files are 64 MiB each; a limit on files' size stands for any want of memory
        _soft, hard = resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (1 << 20, hard))
        daemon.set(run=1)
        wait_until(lambda: daemon.counters()["write_errors"], "the pool to be refused")
        found = examine(capsys, *pids)["pool_full"]
        assert found["severity"] == "problem"
        assert evidence(found)["pool_bytes"] == 0
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        wait_until(lambda: daemon.counters()["pages_sharing"] == PAGES, "the merging after it")
        assert examine(capsys, *pids)["pool_full"]["severity"] == "warning"


def test_more_users_than_max_page_sharing_and_zero_pages_are_found(
    daemon: EngineDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.set(max_page_sharing=4, use_zero_pages=1)
    with client(daemon) as one, client(daemon) as two:
        pids = [mark(one, f"same x {PAGES}"), mark(two, f"zero {2 * PAGES}")]
        daemon.wait_registered(2)
        daemon.set(run=1)
        wait_until(lambda: daemon.counters()["ksm_zero_pages"] == 2 * PAGES, "the zero pages")
        wait_until(lambda: daemon.counters()["stable_node_dups"] >= PAGES // 4, "the copies")
        found = examine(capsys, *pids)
        assert evidence(found["sharing_limit"])["max_page_sharing"] == 4
        assert evidence(found["zero_pages_apart"])["ksm_zero_pages"] == 2 * PAGES
        cure = found["sharing_limit"]["cure"]
        assert all(main(command.split()[1:]) == 0 for command in cure)
        assert daemon.call("status")["knobs"]["max_page_sharing"] == 4096


def test_domains_are_told_of(daemon: EngineDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    with client(daemon) as one, client(daemon, PAGEMERGE_DOMAIN="apart") as two:
        pids = [mark(child, f"fill alike {PAGES}") for child in (one, two)]
        daemon.wait_registered(2)
        assert evidence(examine(capsys, *pids)["domains_apart"]) == {"domains": ", apart"}


def test_marked_memory_that_was_never_written_to_is_found(
    daemon: EngineDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import ctypes, mmap, sys\n"
        "region = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "region.madvise(mmap.MADV_MERGEABLE)\n"
        "print('ok', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with Child(program, env=agent_env(daemon.runtime)) as child:
        assert child.read_line() == "ok"
        daemon.wait_registered(1)
        daemon.set(run=1)
        daemon.settle(2)
        found = examine(capsys, child.pid)
        assert evidence(found["not_touched"])["marked bytes"] == 8 << 20


def test_it_is_printed_for_people_too(
    daemon: EngineDaemon, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert tmp_path
    assert main(["doctor", "--ksm", "engine", "--look", "1ms"]) == 1
    text = capsys.readouterr().out
    assert "problem: nobody_registered" in text
    assert "cure: pagemerge run --ksm engine --all -- COMMAND" in text
    assert "Merging by the engine spares" in text
    assert daemon.process.poll() is None
