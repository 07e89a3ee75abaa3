"""How the daemon comes up: alone in its folder, in the background if wanted, with its log."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from pagemerge._core import step_back
from pagemerge.engine import paths
from pagemerge.engine.daemon import Daemon
from pagemerge.engine.settings import Settings
from pagemerge.errors import CommandError, EngineError, PagemergeError

__all__ = ["main"]

log = logging.getLogger("pagemerge.daemon")


@contextlib.contextmanager
def _only_one(runtime: Path) -> Iterator[None]:
    """Hold the folder's lock: one daemon at a time."""
    with (runtime / paths.LOCK_FILE).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            pid = lock.read().strip() or "?"
            raise EngineError(
                f"a daemon is running already in {runtime} (pid {pid})",
                hint="'pagemerge status' shows it, 'pagemerge stop' ends it",
            ) from error
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def main(values: dict[str, str], *, detach: bool = False, log_file: Path | None = None) -> int:
    """Run the daemon in this process; returns its exit status.

    Args:
        values: knobs to start with, as text.
        detach: go to the background once both sockets answer.
        log_file: where to write the log; standard error, or `daemon.log` when detached.

    Raises:
        RejectedError: a knob's value is refused.
        EngineError: another daemon has this folder.
    """
    settings = Settings()
    settings.apply(values, 0)
    runtime = paths.runtime_dir(create=True)
    ready = None
    if detach:
        log_file = log_file or runtime / "daemon.log"
        ready = _fork_away()
        if ready is None:
            return 0
    try:
        _start_log(log_file)
        with _only_one(runtime):
            _raise_descriptor_limit()
            _step_back()
            daemon = Daemon(runtime, settings)
            daemon.stop_on_signals()
            log.info("ready in %s, pid %d", runtime, os.getpid())
            if ready is not None:
                _leave_terminal()
                os.write(ready, b"ready\n")
                os.close(ready)
            try:
                daemon.serve()
            finally:
                daemon.close()
            log.info("stopped")
    except PagemergeError as error:
        if ready is None:
            raise
        os.write(ready, f"{error}\n{error.hint or ''}".encode())
        os._exit(error.exit_status)
    if ready is not None:
        os._exit(0)
    return 0


def _step_back() -> None:
    """Let others go first, as ksmd does; where that is forbidden, it would only be politer."""
    with contextlib.suppress(OSError):
        step_back(False)
    # Where the kernel schedules sessions as groups, a nice value counts within a session only.
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(os.nice(0)))


def _start_log(log_file: Path | None) -> None:
    try:
        handler: logging.Handler = (
            logging.FileHandler(log_file) if log_file else logging.StreamHandler(sys.stderr)
        )
    except OSError as error:
        raise CommandError(f"the log can't be written: {log_file}: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("pagemerge")
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False


def _raise_descriptor_limit() -> None:
    """Segments and clients take descriptors; use what the limits allow."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _fork_away() -> int | None:
    """Fork the daemon off; None in the parent, which has waited until the child is ready.

    Raises:
        EngineError: the child could not start, with its reason.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.setsid()
        return writing
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123 - a descriptor, not a path
        word, _, hint = pipe.read().decode().strip().partition("\n")
    if word != "ready":
        os.waitpid(pid, 0)
        raise EngineError(
            word or "the daemon ended before it was ready; see its log", hint=hint or None
        )
    return None


def _leave_terminal() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
