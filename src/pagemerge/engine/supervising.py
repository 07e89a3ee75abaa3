"""Running a command as a child that nobody can tell from one that was started directly."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from pagemerge.errors import CommandError, KernelError

__all__ = ["run_command"]

Signals = AbstractSet[int]

NOT_FOUND: Final = 127  # the statuses that a shell gives
NOT_EXECUTABLE: Final = 126
SIGNAL_BASE: Final = 128

FIRST_LOOK_SECONDS: Final = 0.05
_FORWARDED: Final = frozenset(
    {
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
    }
)


def run_command(
    argv: Sequence[str],
    environment: Mapping[str, str],
    look: Callable[[int], float],
    before_exec: Callable[[], None] | None = None,
) -> int:
    """Run a command to its end, in this terminal and process group.

    Signals that other processes send to this one go to the command; those of the terminal reach
    it by themselves.

    Args:
        argv: the command and its arguments; it is looked up in PATH.
        environment: its environment.
        look: called with its pid now and then; returns the seconds until it wants to be again.
        before_exec: called in the child between fork and exec; what it raises keeps the command
            from starting.

    Returns:
        Its exit status; 128 + N when signal N ended it.

    Raises:
        CommandError: it can't be started; the exit status is a shell's, 127 or 126.
        KernelError: `before_exec` has failed.
    """
    waited: Signals = _FORWARDED | {signal.SIGCHLD}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited SIG_IGN would lose the exit status
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    try:
        process = _start(argv, environment, before, before_exec)
        return _attend(process, waited, look)
    finally:
        while signal.sigtimedwait(waited, 0):
            pass  # what came too late for the command is not for us either
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(
    argv: Sequence[str],
    environment: Mapping[str, str],
    mask: Signals,
    before_exec: Callable[[], None] | None,
) -> subprocess.Popen[bytes]:
    def prepare() -> None:
        if before_exec is not None:
            before_exec()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        return subprocess.Popen(
            argv,
            env=environment,
            close_fds=False,  # what was handed to us, such as make's jobs, is for the command
            # not posix_spawn: glibc's leaves two real-time signals ignored in the command
            preexec_fn=prepare,
        )
    except subprocess.SubprocessError as error:
        raise KernelError(f"{argv[0]} could not be prepared in the child: {error}") from error
    except OSError as error:
        failure = CommandError(f"{argv[0]}: {error.strerror}")
        missing = isinstance(error, FileNotFoundError)
        failure.exit_status = NOT_FOUND if missing else NOT_EXECUTABLE
        raise failure from error


def _attend(process: subprocess.Popen[bytes], waited: Signals, look: Callable[[int], float]) -> int:
    wake = time.monotonic() + FIRST_LOOK_SECONDS
    while True:
        happened = signal.sigtimedwait(waited, max(0.0, wake - time.monotonic()))
        if happened is None:
            wake = time.monotonic() + look(process.pid)
        elif happened.si_signo == signal.SIGCHLD:
            code = process.poll()
            if code is not None:
                return code if code >= 0 else SIGNAL_BASE - code
        elif happened.si_code <= 0:  # sent by a process; the terminal's have reached the command
            process.send_signal(happened.si_signo)
