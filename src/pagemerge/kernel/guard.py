"""A guard: a small process that outlives this one, and tidies up when it was killed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from pagemerge.errors import KernelError

__all__ = ["Guard"]

# What a guard does first: wait for a word, or for the end of the pipe, which the kernel brings
# about when whoever it guards has gone, by whatever signal.
_WAIT: Final = 'read -r word\n[ "$word" = done ] && exit\n'


class Guard:
    """A shell that runs a script once this process has gone without a word."""

    def __init__(self, name: str, script: str, arguments: Sequence[str]) -> None:
        """Start it.

        Args:
            name: shown by ps(1).
            script: for /bin/sh.
            arguments: its $1, $2 ...

        Raises:
            KernelError: it can't be started.
        """
        # A session of its own: what ends this process's group, such as Ctrl-C, leaves it alone.
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _WAIT + script, name, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            raise KernelError(
                f"the guard that would tidy up after this process can't be started: {error}",
                where="/bin/sh",
            ) from error

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def dismiss(self) -> None:
        """Let it go: there is nothing to tidy up."""
        assert self._process.stdin is not None
        with suppress(OSError):  # somebody has killed it
            self._process.stdin.write(b"done\n")
            self._process.stdin.flush()
        self.release()
        self._process.wait()

    def release(self) -> None:
        """Have it do its work now, as if this process had gone."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
