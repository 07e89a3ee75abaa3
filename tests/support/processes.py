"""Child processes that a test talks with, a line each way."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

__all__ = ["Child", "read_smaps_rollup"]


class Child:
    """A child that reads lines and answers each with a line; killed at the end.

    Args:
        argv: The command; a text stands for Python source, run by this interpreter.
        env: Added to this process's environment.
        user: Number of the user to run as (root only).
    """

    def __init__(
        self,
        argv: str | Sequence[str],
        *args: str,
        env: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> None:
        command = [sys.executable, "-c", argv, *args] if isinstance(argv, str) else [*argv, *args]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            user=user,
            bufsize=0,
        )
        self._pending = b""

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def read_line(self, seconds: float = 30.0) -> str:
        """The next line that it prints, without the newline.

        Raises:
            TimeoutError: None came in time.
            EOFError: It ended, or closed its stdout; the message has the exit status.
        """
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"child {self.pid} printed nothing for {seconds:g} s")
                data = os.read(self.process.stdout.fileno(), 65536)
                if not data:
                    raise EOFError(f"child {self.pid} ended with status {self.process.wait(10)}")
                self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        return line.decode()

    def ask(self, line: str, seconds: float = 30.0) -> str:
        """Send a line and wait for the answer."""
        self.send(line)
        return self.read_line(seconds)

    def send(self, line: str) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def finish(self, seconds: float = 30.0) -> int:
        """Close its stdin, wait for its end, return its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(seconds)

    def kill(self) -> None:
        """SIGKILL, and wait; nothing if it has ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def read_smaps_rollup(pid: int) -> dict[str, int]:
    """/proc/PID/smaps_rollup in bytes: Rss, Pss, Private_Dirty, KSM ... ."""
    found: dict[str, int] = {}
    with open(f"/proc/{pid}/smaps_rollup") as file:  # noqa: PTH123
        for line in file:
            name, _, rest = line.partition(":")
            fields = rest.split()
            if len(fields) == 2 and fields[1] == "kB":
                found[name] = int(fields[0]) * 1024
    return found
