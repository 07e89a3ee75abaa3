"""Tracing for tests: tracefs where there is none, and events collected while a test goes on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

from pagemerge.errors import KernelError
from pagemerge.kernel.tracefs import find_tracefs
from pagemerge.ksm import Event, Ksm, LostEvents
from tests.support.environment import require
from tests.support.waiting import wait_until

__all__ = ["Recording", "mounted_tracefs", "record"]


@contextlib.contextmanager
def mounted_tracefs() -> Iterator[Path]:
    """Where tracefs is mounted; mounted for the test alone where nobody has."""
    require(os.geteuid() == 0, "permission to trace (root)")
    with contextlib.ExitStack() as stack:
        try:
            found = find_tracefs()
        except KernelError:
            folder = tempfile.mkdtemp(prefix="pagemerge-tracefs-")
            stack.callback(os.rmdir, folder)
            mount = subprocess.run(
                ["mount", "-t", "tracefs", "nodev", folder], check=False, stderr=subprocess.DEVNULL
            )
            require(mount.returncode == 0, "tracefs (CONFIG_TRACING)")
            stack.callback(subprocess.run, ["umount", "-l", folder], check=True)
            found = Path(folder)
        yield found


class Recording:
    """Events that a thread collects; got from `record`."""

    def __init__(self) -> None:
        self.items: list[Event | LostEvents] = []
        self.failure: Exception | None = None  # that ended the thread

    def events(self, *names: str, pid: int | None = None) -> list[Event]:
        """Those that came so far, of some names (all), about a process (any)."""
        return [
            item
            for item in list(self.items)
            if isinstance(item, Event)
            and (not names or item.name in names)
            and (pid is None or item.pid == pid)
        ]

    def merges(self, pid: int) -> list[Event]:
        """Merges of a process that succeeded."""
        return [
            event
            for event in self.events("ksm_merge_with_ksm_page", pid=pid)
            if not event.fields["err"]
        ]

    def wait(self, name: str, pid: int | None = None, count: int = 1) -> None:
        """Wait for so many events."""
        wait_until(
            lambda: self.failure or len(self.events(name, pid=pid)) >= count,
            f"{count} {name} of {pid}",
        )
        if self.failure:
            raise self.failure

    @property
    def lost(self) -> int:
        """How many events were lost."""
        return sum(item.count for item in self.items if isinstance(item, LostEvents))


@contextlib.contextmanager
def record(ksm: Ksm, names: Collection[str] | None = None) -> Iterator[Recording]:
    """Collect an implementation's events in a thread; complete when the block has ended."""
    recording, stop = Recording(), threading.Event()
    events = ksm.events(names=names, stop=stop)

    def collect() -> None:
        try:
            for event in events:
                recording.items.append(event)
        except Exception as error:  # noqa: BLE001  # told below, in the test's own thread
            recording.failure = error

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield recording
    finally:
        stop.set()
        thread.join()
    if recording.failure:
        raise recording.failure
