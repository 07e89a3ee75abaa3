"""A private engine daemon for a test: its own runtime folder, its own log, gone at the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.users import package_for, python_for
from tests.support.waiting import wait_until

__all__ = ["EngineDaemon", "run_engine_daemon"]


class EngineDaemon:
    """A running `pagemerge daemon`, spoken to in plain JSON, not through the client under test.

    Attributes:
        runtime: Its runtime folder.
        env: What a client process needs in its environment to find it.
        process: The daemon.
    """

    def __init__(
        self,
        runtime: Path,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> None:
        self.runtime = runtime
        self.env = {"PAGEMERGE_RUNTIME_DIR": str(runtime)}
        self.log_path = runtime.with_suffix(".log")
        self._arguments = arguments
        self._extra = {"PYTHONFAULTHANDLER": "1"} | dict(env or {})
        self._user = user
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                [python_for(self._user), "-m", "pagemerge", "daemon", *self._arguments],
                env={**os.environ, **self.env, **self._extra, **package_for(self._user)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self._user,
            )
        self.process = process
        try:
            wait_until(self._answers, "an answer of the daemon")
        except Exception:
            process.kill()
            process.wait()
            raise
        return process

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"the daemon ended at once:\n{self.log_text()}")
        try:
            self.call("status")
        except OSError:
            return False
        return True

    def call(self, do: str, seconds: float = 60.0, **arguments: Any) -> Any:
        """Ask the control socket; the value, or RuntimeError with the daemon's message."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(seconds)
            sock.connect(str(self.runtime / "control.sock"))
            sock.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
            with sock.makefile("rb") as lines:
                line = lines.readline()
        if not line:
            raise ConnectionResetError("the daemon closed the connection without an answer")
        answer = json.loads(line)
        if not answer["ok"]:
            raise RuntimeError(f"{answer['error']}: {answer['message']}")
        return answer["value"]

    def set(self, **knobs: int | str) -> None:
        """Turn knobs."""
        self.call("set", values={name: str(value) for name, value in knobs.items()})

    def counters(self) -> dict[str, int]:
        """The counters, by the kernel's names."""
        found: dict[str, int] = self.call("status")["counters"]
        return found

    def wait_registered(self, processes: int) -> None:
        """Wait until ksmd knows of so many processes: marks reach it after madvise has returned."""
        wait_until(
            lambda: self.call("status")["daemon"]["registered"] == processes,
            f"{processes} registered processes",
        )

    def settle(self, passes: int = 3, seconds: float = 60.0) -> dict[str, int]:
        """Wait until that many passes have ended, and return the counters."""
        self.call("settle", seconds + 5, passes=passes, timeout=seconds)
        return self.counters()

    def kill(self) -> None:
        """SIGKILL: the daemon has no chance to tidy up."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start a new daemon in the same folder."""
        self.process = self._start()

    def stop(self) -> None:
        """End it in order; kill it if it does not."""
        if self.process.poll() is not None:
            return
        with contextlib.suppress(OSError, RuntimeError):
            self.call("stop", 5)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def show_log(self) -> None:
        """Print the end of its log: pytest shows that of tests that fail."""
        status, text = self.process.poll(), self.log_text()[-4000:]
        sys.stdout.write(f"the daemon (status {status}) logged:\n{text}")

    def log_text(self) -> str:
        """What it has logged so far."""
        return self.log_path.read_text(errors="replace")


@contextlib.contextmanager
def run_engine_daemon(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    user: int | None = None,
    **knobs: int | str,
) -> Iterator[EngineDaemon]:
    """Run a daemon of the test's own.

    Args:
        arguments: For the `pagemerge daemon` command.
        env: Added to its environment.
        user: Number of the user to run it as (root only).
        knobs: Set before it is handed out.
    """
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    folder = Path(tempfile.mkdtemp(prefix="pagemerge-", dir="/tmp"))
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    if user is not None:
        folder.chmod(0o755)
        os.chown(runtime, user, -1)
    try:
        daemon = EngineDaemon(runtime, *arguments, env=env, user=user)
        try:
            if knobs:
                daemon.set(**knobs)
            yield daemon
        except BaseException:
            daemon.show_log()
            raise
        finally:
            daemon.stop()
    finally:
        shutil.rmtree(folder)
