"""`pagemerge run` on real programs: merged, reported, and otherwise as if started directly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.control_server import short_folder
from tests.support.engine import EngineDaemon
from tests.support.processes import Child
from tests.support.waiting import wait_until

PAGES = 4096
# Two processes with the same data, and some of their own, until the engine has had time to merge.
TWINS = f"""
import os, random, subprocess, sys
HOLD = '''
import hashlib, mmap, random, sys
area = mmap.mmap(-1, {PAGES} * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
chance = random.Random(1)
for page in range({PAGES}):
    area[page * 4096 : (page + 1) * 4096] = chance.randbytes(4096)
before = hashlib.sha256(area).digest()
mark = sys.argv[1] == "mark"
if mark:
    area.madvise(12)
print("ready", flush=True)
sys.stdin.read()
sys.exit(0 if hashlib.sha256(area).digest() == before else 9)
'''
children = [
    subprocess.Popen([sys.executable, "-c", HOLD, sys.argv[1]], stdin=subprocess.PIPE,
                     stdout=subprocess.PIPE)
    for _ in range(2)
]
for child in children:
    child.stdout.readline()
from pagemerge.engine.client import EngineKsm
from pathlib import Path
with EngineKsm(Path(os.environ["PAGEMERGE_RUNTIME_DIR"])) as ksm:
    ksm.settle(int(sys.argv[2]))
import time
time.sleep(float(sys.argv[3]))  # the looks that are tested come by the clock
for child in children:
    child.stdin.close()
    assert child.wait() == 0
sys.exit(5)
"""


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of the test's own, and a place for the folders of `run`."""
    with short_folder() as folder:
        folder.chmod(0o700)
        monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", str(folder / "default"))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield folder


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-m", "pagemerge", "run", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        **options,
    )
    return done


def twins(*options: str, how: str = "mark", report: Path) -> tuple[dict[str, Any], str]:
    done = run(
        *options, "--report", str(report), "--", sys.executable, "-c", TWINS, how, "3", "0.5"
    )
    assert done.returncode == 5, done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    return found, done.stderr


def test_what_a_program_marks_is_merged_and_reported(home: Path, tmp_path: Path) -> None:
    report, text = twins(report=tmp_path / "report")
    assert report["pages_shared"] == PAGES
    assert report["pages_sharing"] == PAGES
    assert report["exit_status"] == 5
    assert report["agents"] == 2
    saved = PAGES * 4096
    assert 0.9 * saved < report["saved_bytes"] <= saved
    assert report["pss_before_bytes"] > 2 * saved
    after = report["pss_after_bytes"] - report["daemon_pss_bytes"]
    assert 0.98 * saved < report["pss_before_bytes"] - after < 1.02 * saved
    assert report["daemon_cpu_seconds"] > 0
    assert report["notes"] == []
    assert text.startswith("pagemerge: saved ")
    assert [path.name for path in home.iterdir()] == []  # its daemon is gone, and its folder


def test_nothing_is_merged_unasked(home: Path, tmp_path: Path) -> None:
    assert home
    done = run("--report", str(tmp_path / "r"), "--", "sleep", "0.5")
    assert done.returncode == 0
    report = json.loads((tmp_path / "r").read_text())
    assert not report["pages_sharing"]
    assert any("--all merges all" in note for note in report["notes"])


def test_all_memory_is_merged_with_all(home: Path, tmp_path: Path) -> None:
    assert home
    report, _ = twins("--all", how="plain", report=tmp_path / "report")
    assert report["pages_sharing"] >= PAGES


def test_who_outlives_the_command_is_named(home: Path) -> None:
    assert home
    script = "sleep 60 >/dev/null 2>&1 & echo $!; sleep 0.5"
    done = run("--all", "--", "sh", "-c", script)
    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.returncode == 0
    assert "1 of its processes still run" in done.stderr


def test_knobs_are_those_given(home: Path) -> None:
    assert home
    code = (
        "import os, pathlib; from pagemerge.engine.client import EngineKsm; "
        "ksm = EngineKsm(pathlib.Path(os.environ['PAGEMERGE_RUNTIME_DIR'])); "
        "print(*(ksm.knobs[name] for name in ('run', 'pages_to_scan', 'smart_scan')))"
    )
    done = run(
        "--quiet",
        "--set",
        "smart_scan=0",
        "--set=pages_to_scan=77",
        "--",
        sys.executable,
        "-c",
        code,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("1 77 0\n", "", 0)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--", "no-such-command"], 127, "No such file"),
        (["--set", "max_page_sharing=1", "--", "true"], 1, "max_page_sharing"),
        (["--set", "run=9", "--", "true"], 1, "hint: accepted: 0, 1 or 2"),
        (["--domain", "x" * 64, "--", "true"], 2, "63 bytes"),
        (["--report", "/nowhere/file", "--quiet", "--", "true"], 2, "/nowhere/file"),
    ],
)
def test_what_goes_wrong_is_said(home: Path, arguments: list[str], status: int, words: str) -> None:
    done = run(*arguments)
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in home.iterdir()] == []


def test_a_report_that_cannot_be_written_is_said_before_the_command_runs(
    home: Path, tmp_path: Path
) -> None:
    assert home
    done = run("--report", "/nowhere/file", "--", "touch", str(tmp_path / "ran"))
    assert done.returncode == 2
    assert not (tmp_path / "ran").exists()


def test_the_report_to_standard_output_comes_behind_what_the_command_prints(
    home: Path, tmp_path: Path
) -> None:
    assert home
    arguments = ["run", "--ksm", "engine", "--report", "-", "--", "echo", "the command's"]
    with (tmp_path / "out").open("w+") as out:
        subprocess.run(
            [sys.executable, "-m", "pagemerge", *arguments], check=True, timeout=120, stdout=out
        )
        out.seek(0)
        assert out.readline() == "the command's\n"
        assert json.load(out)["exit_status"] == 0
    assert not (Path.cwd() / "-").exists()


def test_the_exit_status_is_the_commands_though_nothing_can_be_said(home: Path) -> None:
    assert home
    full = run("--report", "/dev/full", "--", "sh", "-c", "exit 7")
    assert full.returncode == 7
    assert "/dev/full: No space left" in full.stderr
    for redirection in ("2>/dev/full", "2>&-"):
        command = f"{sys.executable} -m pagemerge run -- sh -c 'exit 7' {redirection}"
        assert subprocess.run(["sh", "-c", command], check=False).returncode == 7, redirection


def test_a_daemon_that_runs_already_is_used(
    engine_daemon: EngineDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", str(engine_daemon.runtime))
    engine_daemon.set(run=1)
    report, _ = twins(report=tmp_path / "report")
    assert report["pages_sharing"] == PAGES
    assert report["daemon_pss_bytes"] is None
    assert any("other clients" in note for note in report["notes"])
    assert engine_daemon.process.poll() is None
    refused = run("--set", "run=1", "--", "true")
    assert refused.returncode == 2
    assert "pagemerge set" in refused.stderr


def test_the_daemon_does_not_outlive_a_killed_run(home: Path) -> None:
    command = [sys.executable, "-m", "pagemerge", "run", "--", "sh", "-c"]
    script = "echo $PAGEMERGE_RUNTIME_DIR; read line"
    with Child([*command, script]) as child:
        runtime = Path(child.read_line())
        assert runtime.parent == home
        daemon = int((runtime / "daemon.lock").read_text())
        os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{daemon}/stat").exists(), "the daemon's end")
