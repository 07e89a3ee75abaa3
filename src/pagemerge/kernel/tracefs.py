"""The kernel's tracing files: where they are, and private instances that leave nothing behind.

An instance is a folder `instances/NAME` with ring buffers of its own, so that other users of
tracing are neither seen nor disturbed. It outlives the process that made it, and goes on recording;
therefore a small guard process removes it when its maker dies in whatever way, and whoever makes an
instance first removes those whose maker and guard are both gone.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pagemerge.errors import KernelError, NotPermittedError, NotSupportedError, ProcessGoneError
from pagemerge.kernel.guard import Guard
from pagemerge.kernel.trace_format import (
    EventFormat,
    PageLayout,
    parse_format,
    parse_header_page,
)
from pagemerge.memory import PROC, read_stat
from pagemerge.memory.privileges import what_it_takes

__all__ = ["TRACEFS", "Instance", "Instances", "find_tracefs", "remove_stale_instances"]

TRACEFS: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))

_PREFIX: Final = "pagemerge"
_NAME: Final = re.compile(rf"^{_PREFIX}-(?P<pid>\d+)-(?P<starttime>\d+)-\d+$")
_REMOVE_SECONDS: Final = 5.0
_ROOT_HINT: Final = "tracing takes root (sudo pagemerge trace ...)"
# $@ are folders; the maker's files may close after it.
_GUARD: Final = """
for folder; do
    tries=0
    while [ -d "$folder" ] && ! rmdir "$folder" 2>/dev/null && [ $tries -lt 100 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
done
"""
_counter = itertools.count()


def find_tracefs(candidates: Sequence[Path] = TRACEFS, proc: Path = PROC) -> Path:
    """Find where tracefs is mounted; nothing is mounted here.

    Looks at its two usual places, then at all mounts (/proc/self/mounts).

    Raises:
        NotSupportedError: this kernel has no tracefs.
        NotPermittedError: it is mounted, but not for this user.
        KernelError: it is not mounted; the hint says how to.
    """
    denied: Path | None = None
    for path in (*candidates, *_mounted(proc)):
        try:
            os.stat(path / "events")  # noqa: PTH116  # is_dir() hides a lacking permission
        except PermissionError:
            denied = denied or path
        except OSError:
            continue
        else:
            return path
    if denied is not None:
        raise NotPermittedError(
            f"{denied}: looking into it is not permitted", where=str(denied), hint=_hint()
        )
    filesystems = proc / "filesystems"
    if filesystems.exists() and "\ttracefs" not in filesystems.read_text():
        raise NotSupportedError(
            "this kernel has no tracefs",
            where=str(candidates[0]),
            hint="it takes Linux 4.1, built with CONFIG_TRACING",
        )
    raise KernelError(
        "tracefs is not mounted",
        where=str(candidates[0]),
        hint=f"mount it, as root: mount -t tracefs nodev {candidates[0]}",
    )


def _mounted(proc: Path) -> Iterator[Path]:
    try:
        lines = (proc / "self/mounts").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split(" ")
        if len(words) > 2 and words[2] == "tracefs":
            # blanks in a path are written \040
            text = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), words[1])
            yield Path(text)


def remove_stale_instances(tracefs: Path, proc: Path = PROC) -> list[str]:
    """Remove instances of this package whose makers are gone; the names of those removed.

    One whose maker can't be seen from here, in another container, stays: the kernel refuses to
    remove an instance while its files are open.
    """
    removed = []
    for path in sorted((tracefs / "instances").iterdir()):
        match = _NAME.match(path.name)
        if match and _starttime(int(match["pid"]), proc) != int(match["starttime"]):
            with contextlib.suppress(OSError):
                path.rmdir()
                removed.append(path.name)
    return removed


def _starttime(pid: int, proc: Path) -> int | None:
    try:
        return read_stat(pid, proc).starttime
    except ProcessGoneError:
        return None


class Instance:
    """A private instance: `path` is its folder; made and removed by `Instances`."""

    def __init__(self, path: Path) -> None:
        """Make the folder.

        Raises:
            NotPermittedError: this process may not.
            KernelError: the kernel has no memory for it, or no instances.
        """
        self.path = path
        with telling(path):
            path.mkdir()

    def write(self, name: str, text: str) -> None:
        """Write one of its files.

        Raises:
            NotPermittedError, NotSupportedError, KernelError: the kernel refuses it.
        """
        path = self.path / name
        with telling(path):
            path.write_text(text)

    def read_format(self, event: str) -> EventFormat:
        """Read an event's format, named `group/name`.

        Raises:
            NotSupportedError: this kernel has no such event.
        """
        path = self.path / "events" / event / "format"
        with telling(path):
            return parse_format(path.read_text(), str(path))

    def read_layout(self) -> PageLayout:
        """Read how a ring buffer page begins (events/header_page, the same for all instances)."""
        path = self.path.parent.parent / "events" / "header_page"
        with telling(path):
            return parse_header_page(path.read_text(), str(path))

    def has_event(self, event: str) -> bool:
        """Tell whether this kernel has an event, named `group/name`."""
        return (self.path / "events" / event).is_dir()

    def enable(self, event: str, *, on: bool = True, only: str = "") -> None:
        """Switch an event on, under a filter in the kernel's syntax, or off.

        Raises:
            NotSupportedError: this kernel has no such event.
        """
        if only:
            self.write(f"events/{event}/filter", only)
        self.write(f"events/{event}/enable", "1" if on else "0")

    def open_buffers(self) -> list[int]:
        """Open the raw ring buffers of all CPUs, for reading without waiting."""
        found = []
        for folder in sorted((self.path / "per_cpu").iterdir()):
            path = folder / "trace_pipe_raw"
            try:
                found.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError as error:
                if error.errno not in (errno.ENODEV, errno.ENXIO):  # a CPU that never was on
                    for file in found:
                        os.close(file)
                    raise KernelError(f"{path}: {error.strerror}", where=str(path)) from error
        return found

    def read_lost(self) -> int:
        """Count the events that were not kept on any CPU (per_cpu/*/stats)."""
        lost = 0
        for path in (self.path / "per_cpu").glob("*/stats"):
            lost += _parse_lost(path.read_text())
        return lost

    def read_writer_tid(self) -> int | None:
        """Find the number that events give to this thread, by an event of its own (trace_marker).

        In a pid namespace it is not the one that the thread has there. None where it isn't shown.
        """
        word = f"{_PREFIX}-{os.getpid()}-{next(_counter)}"
        try:
            self.write("trace_marker", word)
            with (self.path / "trace").open(errors="surrogateescape") as lines:
                for line in lines:
                    found = re.search(rf"-(\d+)\s+\[\d+\].*: {word}$", line)
                    if found:
                        return int(found[1])
        except (KernelError, OSError):
            pass
        return None

    def remove(self) -> None:
        """Remove the folder, which ends the recording.

        Raises:
            KernelError: it is still in use after some seconds.
        """
        deadline = time.monotonic() + _REMOVE_SECONDS
        while True:
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise KernelError(
                        f"{self.path}: {error.strerror}",
                        where=str(self.path),
                        hint=f"rmdir {self.path}",
                    ) from error
                time.sleep(0.01)
            else:
                return


def _parse_lost(text: str) -> int:
    r"""Read what a CPU's stats say of events that were not kept.

    >>> _parse_lost("entries: 5\noverrun: 2\ncommit overrun: 0\ndropped events: 1\n")
    3
    """
    lost = 0
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in ("overrun", "commit overrun", "dropped events"):
            lost += int(value)
    return lost


class Instances:
    """Instances of this process and the guard that removes them if it dies; a context manager."""

    def __init__(self, tracefs: Path, count: int = 1, proc: Path = PROC) -> None:
        """Remove stale instances, start the guard, make `count` instances.

        Raises:
            NotPermittedError, KernelError: the kernel refuses, or there is no shell.
        """
        with telling(tracefs / "instances"):
            remove_stale_instances(tracefs, proc)
        start = _starttime(os.getpid(), proc) or 0
        paths = [
            tracefs / "instances" / f"{_PREFIX}-{os.getpid()}-{start}-{next(_counter)}"
            for _ in range(count)
        ]
        self._guard = Guard("pagemerge-trace-guard", _GUARD, [str(path) for path in paths])
        self._made: list[Instance] = []
        try:
            for path in paths:
                self._made.append(Instance(path))
        except BaseException:
            self.close()
            raise

    def __getitem__(self, index: int) -> Instance:
        """Give one of them."""
        return self._made[index]

    def __len__(self) -> int:
        """Count them."""
        return len(self._made)

    def close(self) -> None:
        """Remove them, and let the guard go."""
        try:
            for instance in self._made:
                instance.remove()
            self._made.clear()
        finally:
            if self._made:
                self._guard.release()
            else:
                self._guard.dismiss()

    def __enter__(self) -> Self:
        """Use them."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove them."""
        self.close()


def _hint() -> str:
    return what_it_takes("CAP_SYS_ADMIN", _ROOT_HINT)


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file of tracefs into this package's errors.

    Raises:
        NotPermittedError: this process may not.
        NotSupportedError: this kernel has no such file.
        KernelError: anything else.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotSupportedError(f"this kernel has no {path}", where=str(path)) from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise NotPermittedError(
                f"{path}: {error.strerror}", where=str(path), hint=_hint()
            ) from error
        raise KernelError(f"{path}: {error.strerror}", where=str(path)) from error
