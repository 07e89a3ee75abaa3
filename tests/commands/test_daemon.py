"""`pagemerge daemon` and `pagemerge stop`: real daemons, started and ended by command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.control_server import short_folder


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with short_folder() as folder:
        monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", str(folder))
        yield folder
        pagemerge("stop")


def pagemerge(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pagemerge", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_detached_daemon_answers_when_the_command_returns(home: Path) -> None:
    started = pagemerge("daemon", "--detach", "--set", "run=0", "--set", "pages_to_scan=7")
    assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
    status = json.loads(pagemerge("status", "--json").stdout)
    assert (status["ksm"], status["run"], status["pages_to_scan"]) == ("engine", 0, 7)
    assert status["pages_sharing"] == 0
    assert (home / "daemon.log").exists()
    assert json.loads(pagemerge("ps", "--json").stdout) == []
    assert pagemerge("stop").returncode == 0
    gone = pagemerge("status", "--ksm", "engine")
    assert gone.returncode == 1
    assert "no daemon is running" in gone.stderr


def test_there_is_only_one_in_a_folder(home: Path) -> None:
    assert home
    assert pagemerge("daemon", "--detach").returncode == 0
    second = pagemerge("daemon", "--detach")
    assert second.returncode == 1
    assert "running already" in second.stderr
    third = pagemerge("daemon")
    assert "running already" in third.stderr


def test_a_log_that_cannot_be_written_is_said(home: Path) -> None:
    for more in ([], ["--detach"]):
        done = pagemerge("daemon", *more, "--log", str(home / "no" / "log"))
        assert done.returncode == 2 - len(more)
        assert "log can't be written" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_knob_that_is_refused_keeps_it_from_starting(home: Path) -> None:
    done = pagemerge("daemon", "--detach", "--set", "max_page_sharing=1")
    assert done.returncode == 1
    assert "accepted: a whole number from 2" in done.stderr
    assert not (home / "control.sock").exists()


def test_the_log_goes_where_it_is_wanted(home: Path) -> None:
    log = home / "my.log"
    assert pagemerge("daemon", "--detach", "--log", str(log)).returncode == 0
    assert "ready in" in log.read_text()


def test_a_process_without_an_agent_is_said_to_have_none(home: Path) -> None:
    assert home
    assert pagemerge("daemon", "--detach").returncode == 0
    done = pagemerge("regions", "1")
    assert done.returncode == 1
    assert "process 1 is not a client" in done.stderr
    assert "pagemerge run" in done.stderr
