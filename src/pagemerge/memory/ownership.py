"""To whom a process belongs: its user and its cgroup; and which processes a cgroup holds."""

from __future__ import annotations

import glob
import pwd
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from pagemerge.errors import NotPermittedError, NotSupportedError
from pagemerge.memory.files import PROC, read_process_text, reading

__all__ = [
    "CGROUPS",
    "find_cgroup",
    "iter_cgroup_pids",
    "iter_unit_cgroups",
    "read_cgroup",
    "read_user",
]

CGROUPS: Final = Path("/sys/fs/cgroup")


def read_user(pid: int, proc: Path = PROC) -> str:
    """Name the user whose process it is; a number where it has no name.

    Raises:
        ProcessGoneError: it has ended.
    """
    path = proc / str(pid)
    with reading(pid, path, proc):
        return _user_name(path.stat().st_uid)


@cache
def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def read_cgroup(pid: int, proc: Path = PROC) -> str:
    """Read a process's cgroup, as in /proc/PID/cgroup: version 2's, else the memory controller's.

    Raises:
        ProcessGoneError: it has ended.
    """
    found = "/"
    for line in read_process_text(pid, "cgroup", proc).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            return path
        if number == "0":
            found = path
    return found


def find_cgroup(name: str, root: Path = CGROUPS) -> Path:
    """Find a cgroup's folder by its path, with or without the mount point before it.

    Raises:
        NotSupportedError: no cgroups are mounted.
    """
    if not root.is_dir():
        raise NotSupportedError(f"no cgroups are mounted at {root}", where=str(root))
    path = Path(name)
    if path.is_absolute() and path.is_relative_to(root):
        return path
    for base in (root, root / "memory", root / "unified"):
        candidate = base / name.lstrip("/")
        if (candidate / "cgroup.procs").exists():
            return candidate
    return root / name.lstrip("/")


def iter_cgroup_pids(folder: Path) -> Iterator[int]:
    """Go through the processes of a cgroup and of those below it.

    Raises:
        NotPermittedError: it may not be looked into.
    """
    for path in sorted(folder.rglob("cgroup.procs")):
        try:
            text = path.read_text()
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError as error:  # EOPNOTSUPP: threaded; EACCES
            if isinstance(error, PermissionError):
                raise NotPermittedError(f"{path}: reading it is not permitted") from error
            continue
        for line in text.split():
            if line != "0":  # a process outside of this PID namespace
                yield int(line)


def iter_unit_cgroups(unit: str, root: Path = CGROUPS) -> Iterator[Path]:
    """Find the cgroups of a systemd unit by name (`.service` is added where there is no suffix)."""
    name = unit if "." in unit else f"{unit}.service"
    if "/" in name:
        return
    for path in sorted(root.rglob(glob.escape(name))):
        if (path / "cgroup.procs").exists():
            yield path
