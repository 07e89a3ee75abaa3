"""Where the daemon and its clients meet: the runtime folder and what is in it.

The folder is `$PAGEMERGE_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/pagemerge`, else
`/tmp/pagemerge-UID`. Whoever could put a socket of his own there could pose as the daemon, so it
must be a real folder, belong to the user and have mode 0700, and lie where nobody else can
replace it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from pagemerge.errors import EngineError

__all__ = [
    "AGENT_SOCKET",
    "CONTROL_SOCKET",
    "LOCK_FILE",
    "LOG_FILE",
    "POOL_NAME",
    "RUNTIME_DIR_VARIABLE",
    "agent_library",
    "check_runtime_dir",
    "runtime_dir",
]

RUNTIME_DIR_VARIABLE: Final = "PAGEMERGE_RUNTIME_DIR"
AGENT_SOCKET: Final = "agent.sock"
CONTROL_SOCKET: Final = "control.sock"
LOCK_FILE: Final = "daemon.lock"
LOG_FILE: Final = "daemon.log"
POOL_NAME: Final = "/memfd:pagemerge"  # how a mapping of the pool shows in /proc/PID/maps

_SOCKET_PATH_MAX = 107  # bytes; sockaddr_un.sun_path less its NUL


def runtime_dir(*, create: bool = False, visiting: bool = False) -> Path:
    """Find the runtime folder; where it exists it is checked.

    Args:
        create: make it when it is not there (its parent must be).
        visiting: only to speak to the daemon there, which root may do with any user's.

    Raises:
        EngineError: it is not private to this user, can't be made, or its path is too long.
    """
    path = _named_dir()
    if len(os.fsencode(path / CONTROL_SOCKET)) > _SOCKET_PATH_MAX:
        raise EngineError(
            f"the runtime folder's path is too long for a socket: {path}",
            hint=f"set {RUNTIME_DIR_VARIABLE} to a shorter one",
        )
    if create:
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise EngineError(
                f"the runtime folder {path} can't be made: {error.strerror}",
                hint=f"set {RUNTIME_DIR_VARIABLE} to a folder whose parent is yours",
            ) from error
    if create or path.is_symlink() or path.exists():
        check_runtime_dir(path, visiting=visiting)
    return path


def check_runtime_dir(path: Path, *, visiting: bool = False) -> None:
    """Make sure that the folder is this user's alone; or, for a visit of root's, some user's alone.

    Raises:
        EngineError: it is not; the hint says how it would be.
    """
    try:
        found, above = path.lstat(), path.parent.stat()
    except OSError as error:
        raise EngineError(f"the runtime folder {path}: {error.strerror}") from error
    uid = os.geteuid()
    elsewhere = f"set {RUNTIME_DIR_VARIABLE} to a folder of your own"
    if stat.S_ISLNK(found.st_mode):
        raise EngineError(
            f"the runtime folder {path} is a symbolic link", hint=f"remove it, or {elsewhere}"
        )
    if not stat.S_ISDIR(found.st_mode):
        raise EngineError(f"the runtime folder {path} is not a folder", hint=elsewhere)
    if found.st_uid != uid and not (visiting and uid == 0):
        raise EngineError(
            f"the runtime folder {path} belongs to user {found.st_uid}, not to you (user {uid})",
            hint=elsewhere,
        )
    if found.st_mode & 0o077:
        raise EngineError(
            f"the runtime folder {path} is open to others (mode {found.st_mode & 0o777:04o})",
            hint=f"chmod 700 {path}",
        )
    if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
        raise EngineError(
            f"anybody can replace the runtime folder {path}: its parent is writable for all",
            hint=f"chmod +t {path.parent}, or {elsewhere}",
        )


def agent_library() -> Path:
    """Find the agent that is preloaded into programs.

    Raises:
        EngineError: it was not built with the package.
    """
    path = Path(__file__).resolve().parent.parent / "libpagemerge-agent.so"
    if not path.is_file():
        raise EngineError(
            f"the agent {path} is missing", hint="install the package again: pip install ."
        )
    return path


def _named_dir() -> Path:
    named = os.environ.get(RUNTIME_DIR_VARIABLE)
    if named:
        return Path(named).absolute()
    session = os.environ.get("XDG_RUNTIME_DIR")
    # after `su` or `sudo` it may still be another user's
    if session and _is_mine(Path(session)):
        return Path(session, "pagemerge")
    return Path(f"/tmp/pagemerge-{os.geteuid()}")  # checked above


def _is_mine(path: Path) -> bool:
    try:
        return path.is_absolute() and path.stat().st_uid == os.geteuid()
    except OSError:
        return False
