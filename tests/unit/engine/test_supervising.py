"""A command run by `run_command` behaves as one that was started directly."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import Child
from tests.support.waiting import wait_until

# Runs its arguments; prints nothing of its own. Errors end with the error's status.
RUNNER = """
import os, sys
from pagemerge.engine.supervising import run_command
from pagemerge.errors import CommandError
looks = []
def look(pid):
    looks.append(pid)
    return 0.01
try:
    status = run_command(sys.argv[1:], {**os.environ, "SEEN": "yes"}, look)
except CommandError as error:
    print(error, file=sys.stderr)
    status = error.exit_status
sys.exit(status)
"""


def run(*argv: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", RUNNER, *argv], capture_output=True, text=True, **options
    )


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)],
)
def test_the_exit_status_is_the_commands(script: str, status: int) -> None:
    assert run("sh", "-c", script).returncode == status


def test_streams_and_environment_pass_through() -> None:
    done = run("sh", "-c", "cat; echo $SEEN; echo oops >&2", input="hello\n")
    assert (done.stdout, done.stderr) == ("hello\nyes\n", "oops\n")


def test_a_command_that_is_not_there_ends_with_127() -> None:
    done = run("no-such-command-anywhere")
    assert (done.returncode, done.stderr) == (
        127,
        "no-such-command-anywhere: No such file or directory\n",
    )


def test_a_file_that_is_no_program_ends_with_126(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    assert run(str(tmp_path / "data")).returncode == 126


def test_signal_dispositions_are_as_for_any_program() -> None:
    done = run("sh", "-c", "grep -E 'Sig(Blk|Ign)' /proc/self/status")
    directly = subprocess.run(
        ["sh", "-c", "grep -E 'Sig(Blk|Ign)' /proc/self/status"], capture_output=True, text=True
    )
    assert done.stdout == directly.stdout


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT]
)
def test_a_signal_from_a_process_reaches_the_command(number: signal.Signals) -> None:
    script = (
        f"trap 'echo got; exit 3' {number.name.removeprefix('SIG')}; echo up; while :; do :; done"
    )
    with Child([sys.executable, "-c", RUNNER, "bash", "-c", script]) as child:
        assert child.read_line() == "up"
        os.kill(child.pid, number)
        assert child.read_line() == "got"
        assert child.finish() == 3


def test_ctrl_c_in_a_terminal_reaches_the_command_once(tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    script = f"""
import os, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: open({str(counts)!r}, "a").write("x"))
signal.signal(signal.SIGTERM, lambda *_: os._exit(5))  # raised in a destructor it would be lost
print("up", flush=True)
while True: time.sleep(0.01)
"""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", RUNNER, sys.executable, "-c", script])
    try:
        wait_until(lambda: b"up" in os.read(terminal, 100), "the command")
        os.write(terminal, b"\x03")
        wait_until(lambda: counts.exists() and counts.read_text(), "the interrupt")
        os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 5
        assert counts.read_text() == "x"
    finally:
        os.close(terminal)
