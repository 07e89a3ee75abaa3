"""Starting programs with the agent in them, and a daemon of their own where none is running."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pagemerge.engine import paths
from pagemerge.engine.agent import AGENT_SOCKET_VARIABLE
from pagemerge.engine.client import EngineKsm, daemon_answers
from pagemerge.errors import CommandError, EngineError

__all__ = ["RUN_DEFAULTS", "Session", "agent_environment", "open_session"]

ALL_VARIABLE: Final = "PAGEMERGE_ALL"
CONNECT_VARIABLE: Final = "PAGEMERGE_CONNECT"
DOMAIN_VARIABLE: Final = "PAGEMERGE_DOMAIN"
DOMAIN_MAX: Final = 63  # bytes; PM_DOMAIN_MAX less its NUL

# About half a core until what can be merged is merged; a settled command costs next to nothing.
RUN_DEFAULTS: Final[Mapping[str, str]] = {
    "run": "1",
    "pages_to_scan": "25000",
    "sleep_millisecs": "20",
}

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class Session:
    """A daemon to run a command under.

    Attributes:
        ksm: the connection to it.
        is_own: whether it serves this command alone, and ends with it.
    """

    ksm: EngineKsm
    is_own: bool

    @property
    def runtime(self) -> Path:
        """The folder of its sockets."""
        return self.ksm.runtime


def agent_environment(
    runtime: Path,
    *,
    everything: bool = False,
    connect: bool = False,
    domain: str = "",
    base: Mapping[str, str],
) -> dict[str, str]:
    """Make the environment that brings the agent into a program and its children.

    Args:
        runtime: the folder of the daemon's sockets.
        everything: as if each process had called prctl(PR_SET_MEMORY_MERGE, 1).
        connect: each process is a client from its start, though it marks nothing.
        domain: processes of different domains never share a page.
        base: the environment to add to.

    Raises:
        EngineError: the agent is missing.
        CommandError: the domain's name is too long.
    """
    if len(domain.encode()) > DOMAIN_MAX or "\0" in domain:
        raise CommandError(f"the domain's name has more than {DOMAIN_MAX} bytes: {domain!r}")
    library = str(paths.agent_library())
    # the agent first: it must see a call before another preloaded library can swallow it
    others = base.get("LD_PRELOAD", "").replace(":", " ").split()
    environment = {
        **base,
        "LD_PRELOAD": " ".join([library, *(name for name in others if name != library)]),
        paths.RUNTIME_DIR_VARIABLE: str(runtime),
        AGENT_SOCKET_VARIABLE: str(runtime / paths.AGENT_SOCKET),
    }
    for variable, is_meant in ((ALL_VARIABLE, everything), (CONNECT_VARIABLE, connect)):
        environment.pop(variable, None)
        if is_meant:
            environment[variable] = "1"
    if domain:
        environment[DOMAIN_VARIABLE] = domain
    return environment


@contextlib.contextmanager
def open_session(values: Mapping[str, str]) -> Iterator[Session]:
    """Use this user's daemon, or start one that ends with the session.

    Args:
        values: knobs for a daemon of its own, added to `RUN_DEFAULTS`.

    Raises:
        CommandError: knobs are given, and a daemon is running that others use.
        RejectedError: a knob's value is refused.
        EngineError: the daemon can't be started.
    """
    runtime = paths.runtime_dir()
    if daemon_answers(runtime):
        if values:
            raise CommandError(
                f"a daemon is running already in {runtime}; its knobs aren't this command's",
                hint="set them with 'pagemerge set', or end it with 'pagemerge stop'",
            )
        with EngineKsm(runtime) as ksm:
            yield Session(ksm, is_own=False)
        return
    with _own_folder() as folder, _own_daemon(folder, {**RUN_DEFAULTS, **values}) as ksm:
        yield Session(ksm, is_own=True)


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    parent = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    usable = parent.is_absolute() and os.access(parent, os.W_OK) and len(str(parent)) < 60
    folder = Path(tempfile.mkdtemp(prefix="pagemerge-run-", dir=parent if usable else "/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _own_daemon(runtime: Path, values: Mapping[str, str]) -> Iterator[EngineKsm]:
    log = runtime / paths.LOG_FILE
    environment = {**os.environ, paths.RUNTIME_DIR_VARIABLE: str(runtime)}
    environment.pop("LD_PRELOAD", None)
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def end_with_parent() -> None:
        """However this process ends, the daemon does not outlive it."""
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    sets = [f"--set={name}={value}" for name, value in values.items()]
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            # -P: what lies in the current folder must not pose as a module
            [sys.executable, "-P", "-m", "pagemerge", "daemon", *sets],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the command
            preexec_fn=end_with_parent,  # safe: there are no threads here
        )
    try:
        _wait_ready(daemon, runtime, log)
        with EngineKsm(runtime) as ksm:
            yield ksm
    finally:
        daemon.terminate()
        try:
            daemon.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _wait_ready(daemon: subprocess.Popen[bytes], runtime: Path, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not daemon_answers(runtime):
        if daemon.poll() is not None:
            raise _last_words(log) or EngineError(f"the daemon ended with {daemon.returncode}")
        if time.monotonic() > deadline:
            raise EngineError(f"the daemon was not ready in {START_SECONDS:g} seconds")
        time.sleep(0.005)


def _last_words(log: Path) -> EngineError | None:
    """Give the daemon's error with its hint, or else the last line of its log."""
    lines = log.read_text(errors="replace").splitlines()
    for at, line in enumerate(lines):
        if line.startswith("pagemerge: error: "):
            hints = [after.removeprefix("hint: ") for after in lines[at:] if after[:6] == "hint: "]
            words = line.removeprefix("pagemerge: error: ")
            hint = hints[0] if hints else None
            return EngineError(f"the daemon did not start: {words}", hint=hint)
    return EngineError(f"the daemon did not start: {lines[-1]}") if lines else None
