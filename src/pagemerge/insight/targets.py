"""Whose memory is meant: processes by number, tree, name, cgroup, unit; or files."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pagemerge.errors import CommandError, PagemergeError, ProcessGoneError
from pagemerge.memory import (
    iter_pids,
    read_process_file,
    read_stat,
    read_thread_states,
    read_tree,
)
from pagemerge.memory.ownership import (
    find_cgroup,
    iter_cgroup_pids,
    iter_unit_cgroups,
    read_cgroup,
    read_user,
)
from pagemerge.units import render_name

__all__ = ["Target", "Targets", "find_targets"]

_HINT: Final = "give process numbers or files, or --tree, --name, --cgroup, --unit, --all"


@dataclass(frozen=True, slots=True)
class Target:
    """A process, or a file with a dump of memory (`pid` 0).

    Attributes:
        starttime: of /proc/PID/stat; with `pid`, it names one process.
        path: the file; None for a process.
    """

    pid: int
    command: str
    user: str = ""
    cgroup: str = ""
    starttime: int = 0
    path: Path | None = None

    @property
    def label(self) -> str:
        """What people call it."""
        return render_name(
            str(self.path) if self.path is not None else f"{self.command}[{self.pid}]"
        )


@dataclass(frozen=True, slots=True)
class Targets:
    """What is to be looked at, and what was left out and why."""

    items: tuple[Target, ...]
    notes: tuple[str, ...] = field(default=())


def find_targets(
    words: Sequence[str] = (),
    *,
    pids: Iterable[int] = (),
    trees: Iterable[int] = (),
    names: Iterable[str] = (),
    cgroups: Iterable[str] = (),
    units: Iterable[str] = (),
    files: Iterable[str | os.PathLike[str]] = (),
    everything: bool = False,
    hint: str = _HINT,
) -> Targets:
    """Find what is meant; each process once, kernel threads and zombies left out with a note.

    Args:
        words: each a process's number or a file.
        pids: processes.
        trees: processes with all their descendants.
        names: shell patterns for commands (/proc/PID/comm, or the program's name).
        cgroups: paths below /sys/fs/cgroup, with all below them.
        units: systemd units.
        files: dumps of memory.
        everything: all processes but this one.
        hint: what to give, said where nothing is found.

    Raises:
        CommandError: nothing is meant, or what is meant does not exist.
        NotSupportedError, NotPermittedError: cgroups can't be looked into.
    """
    notes: list[str] = []
    if "" in words:  # an empty variable of a script
        raise CommandError("a target is empty", hint=hint)
    wanted = [int(word) for word in words if _is_number(word)] + list(pids)
    paths = [Path(word) for word in words if not _is_number(word)] + [Path(file) for file in files]
    roots = list(trees)
    for pid in (*wanted, *roots):
        if not _exists(pid):
            raise CommandError(f"no process {pid}")
    for pid in sorted({pid for pid in wanted if wanted.count(pid) > 1}):
        notes.append(f"process {pid} was given {wanted.count(pid)} times; it counts once")
    broad: list[int] = read_tree(roots)
    broad += _by_name(list(names))
    for name in cgroups:
        if not name:  # an empty variable of a script must not mean the whole machine
            raise CommandError("--cgroup: no path", hint="all processes there are: --cgroup /")
        folder = find_cgroup(name)
        if not folder.is_dir():
            raise CommandError(f"no cgroup {name}", hint="its path, as in /proc/PID/cgroup")
        broad += iter_cgroup_pids(folder)
    for unit in units:
        folders = list(iter_unit_cgroups(unit))
        if not folders:
            raise CommandError(f"no running unit {unit}", hint="systemctl list-units")
        broad += [pid for folder in folders for pid in iter_cgroup_pids(folder)]
    if everything:
        broad += iter_pids()
    named = set(wanted)
    if os.getpid() in broad and os.getpid() not in named:
        broad = [pid for pid in broad if pid != os.getpid()]
    items = _describe(dict.fromkeys([*wanted, *broad]), named, notes)
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            notes.append(f"{path} was given more than once; it counts once")
            continue
        seen.add(path.resolve())
        items.append(Target(0, path.name, path=path))
    if not items:
        raise CommandError(
            "; ".join(notes) or "nothing to look at",
            hint=hint,
        )
    return Targets(tuple(items), tuple(notes))


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()


def _exists(pid: int) -> bool:
    try:
        read_stat(pid)
    except PagemergeError:
        return False
    return True


def _by_name(patterns: list[str]) -> list[int]:
    if not patterns:
        return []
    found = []
    for pid in iter_pids():
        if pid == os.getpid():
            continue
        try:
            comm = read_stat(pid).comm
            program = read_process_file(pid, "cmdline").split(b"\0", 1)[0]
        except PagemergeError:
            continue
        have = {comm, Path(os.fsdecode(program)).name}
        if any(fnmatch.fnmatchcase(name, pattern) for name in have for pattern in patterns):
            found.append(pid)
    if not found:
        raise CommandError(f"no process is called {', '.join(patterns)}")
    return found


def _describe(pids: Iterable[int], named: set[int], notes: list[str]) -> list[Target]:
    items = []
    for pid in pids:
        try:
            stat = read_stat(pid)
            # Those that come in by --all and the like are left out without a word each.
            if stat.is_kernel_thread:
                if pid in named:
                    notes.append(f"process {pid} ({stat.comm}) is a kernel thread: no memory")
                continue
            # the first thread may have exited while others go on
            if stat.state in "ZX" and not set(read_thread_states(pid)) - set("ZX"):
                if pid in named:
                    notes.append(f"process {pid} ({stat.comm}) is a zombie: its memory is gone")
                continue
            items.append(Target(pid, stat.comm, read_user(pid), read_cgroup(pid), stat.starttime))
        except ProcessGoneError as error:
            notes.append(str(error))
    return items
