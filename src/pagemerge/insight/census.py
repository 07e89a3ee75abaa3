"""Reading targets with the C core's census, in a thread, so that progress can be shown."""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from pagemerge import _core
from pagemerge.errors import (
    CommandError,
    NotPermittedError,
    NotSupportedError,
    PagemergeError,
    ProcessGoneError,
)
from pagemerge.insight.dumps import read_dump_regions
from pagemerge.insight.targets import Target
from pagemerge.memory import Smap, read_smaps, read_stat
from pagemerge.memory.contents import open_contents
from pagemerge.memory.pagemap import open_pagemap
from pagemerge.memory.privileges import what_it_takes

__all__ = ["Progress", "Space", "SpaceRegion", "load_spaces", "obstacle", "run_census"]

Progress = Callable[[str, int, int], None]  # what is done, pages done, pages in all

_DESCRIPTORS_SPARE: Final = 100  # beside the targets' own

# mm/ksm.c: vma_ksm_compatible(); the letters are those of VmFlags in smaps.
_OBSTACLES: Final = {
    "sh": "shared",
    "ms": "shared",
    "pf": "device memory",
    "io": "device memory",
    "de": "not expandable (device)",
    "mm": "mixed map",
    "ht": "hugetlb",
    "dp": "droppable",
}


@dataclass(frozen=True, slots=True)
class SpaceRegion:
    """A region that is read."""

    start: int
    end: int
    perms: str
    name: str
    mergeable: bool
    anonymous_bytes: int
    offset: int = 0


@dataclass(slots=True)
class Space:
    """A target, its descriptors (pagemap and mem, or the file), and its regions.

    Attributes:
        swapped_bytes: of eligible regions; not read.
    """

    target: Target
    fd: int = -1
    mem_fd: int = -1
    vmas: int = 0
    regions: list[SpaceRegion] = field(default_factory=list)
    swapped_bytes: int = 0
    note: str = ""

    @property
    def anonymous_bytes(self) -> int:
        """Bytes in memory that may be eligible."""
        return sum(region.anonymous_bytes for region in self.regions)


def obstacle(smap: Smap) -> str | None:
    """Say why a region can't be merged; None where it can (mm/ksm.c: vma_ksm_compatible)."""
    return next((_OBSTACLES[flag] for flag in sorted(smap.flags) if flag in _OBSTACLES), None)


@contextmanager
def load_spaces(
    targets: Sequence[Target], *, mergeable: bool = False, progress: Progress | None = None
) -> Iterator[list[Space]]:
    """Open each target and find its eligible regions; what can't be read has a note instead.

    Args:
        targets: processes and files.
        mergeable: only regions that are marked already (VM_MERGEABLE).
        progress: called with "mappings", targets done, targets in all.

    Raises:
        CommandError: more targets than there may be open files.
        FormatError: a file is no dump of memory.
    """
    spaces: list[Space] = []
    with _descriptors(2 * len(targets) + _DESCRIPTORS_SPARE):
        try:
            for target in targets:
                if progress:
                    progress("mappings", len(spaces), len(targets))
                spaces.append(Space(target))
                _load(spaces[-1], mergeable)
            yield spaces
        finally:
            for space in spaces:
                for fd in (space.fd, space.mem_fd):
                    if fd >= 0:
                        os.close(fd)


@contextmanager
def _descriptors(count: int) -> Iterator[None]:
    """Let this process have so many open files meanwhile, where the hard limit allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= count:
        yield
        return
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (count if hard == unlimited else min(count, hard), hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _load(space: Space, mergeable: bool) -> None:
    try:
        if space.target.path is not None:
            _load_file(space)
        else:
            _load_process(space, mergeable)
    except (ProcessGoneError, NotPermittedError, NotSupportedError) as error:
        if space.target.path is not None:
            raise  # it was named
        space.note = _why(error)
        space.regions.clear()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise CommandError(
            f"too many targets: each needs two open files, and there may be {hard}",
            hint="raise the limit ('ulimit -Hn', systemd's LimitNOFILE), or take fewer at a time",
        ) from error


def _needs() -> str:
    needs = "needs its own user, or root (CAP_SYS_PTRACE)"
    if os.geteuid() == 0:
        needs = "kept from this root by the sandbox it is in, or by a security module"
    return what_it_takes("CAP_SYS_PTRACE", needs)


def _why(error: PagemergeError) -> str:
    if isinstance(error, ProcessGoneError):
        return "ended before it was read"
    if isinstance(error, NotPermittedError):
        return f"not permitted: {_needs()}"
    return str(error)


def _load_file(space: Space) -> None:
    assert space.target.path is not None
    regions = read_dump_regions(space.target.path)  # its errors end the run: the file was named
    space.fd = os.open(space.target.path, os.O_RDONLY | os.O_CLOEXEC)
    space.vmas = len(regions)
    space.regions = [
        SpaceRegion(r.start, r.end, r.perms, r.name, False, r.end - r.start, r.offset)
        for r in regions
    ]


def _load_process(space: Space, mergeable: bool) -> None:
    target = space.target
    space.fd = open_pagemap(target.pid)
    space.mem_fd = open_contents(target.pid)
    smaps = read_smaps(target.pid)
    if read_stat(target.pid).starttime != target.starttime:
        raise ProcessGoneError(target.pid)
    space.vmas = len(smaps)
    for smap in smaps:
        if obstacle(smap) or (mergeable and not smap.is_mergeable):
            continue
        space.swapped_bytes += smap.sizes.get("Swap", 0)
        anonymous = smap.sizes.get("Anonymous", smap.vma.size_bytes)
        if not anonymous:
            continue
        vma = smap.vma
        space.regions.append(
            SpaceRegion(vma.start, vma.end, vma.perms, vma.path, smap.is_mergeable, anonymous)
        )
    if not space.regions:
        space.note = (
            "has no region that is marked mergeable" if mergeable else "has no eligible memory"
        )


def fill_census(census: _core.Census, spaces: Sequence[Space]) -> None:
    """Tell the census what to read; numbers of spaces and regions follow the order of the lists."""
    for space in spaces:
        if space.fd < 0:  # keeps the numbers in step
            number = census.add_file(-1)
            continue
        if space.target.path is not None:
            number = census.add_file(space.fd)
        else:
            number = census.add_process(space.target.pid, space.fd, space.mem_fd)
        for region in space.regions:
            census.add_region(number, region.start, region.end, region.offset)


def run_census(
    spaces: Sequence[Space],
    *,
    sample: int,
    salt: int,
    threads: int,
    settle_seconds: float | None,
    progress: Progress | None,
) -> tuple[_core.Census, float]:
    """Read once, and a second time after `settle_seconds`; returns the seconds of the first too.

    Raises:
        MemoryError: there is not enough for the records.
    """
    census = _core.Census(sample, salt, threads)
    fill_census(census, spaces)
    begin = time.monotonic()
    _watch(census, census.read, "reading", progress)
    seconds = time.monotonic() - begin
    if settle_seconds is not None:
        _wait(settle_seconds, progress)
        _watch(census, census.look_again, "second look", progress)
    for space, (state, number) in zip(spaces, census.spaces(), strict=True):
        if state and space.regions:
            space.note = _state_note(state, number)
    return census, seconds


def _state_note(state: int, number: int) -> str:
    if state == 1:
        return "ended, or started another program, while it was read; left out"
    if state == 2:
        return f"not permitted: {_needs()}"
    return f"could not be read: {os.strerror(number)}"


def _wait(seconds: float, progress: Progress | None) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if progress:
            progress("settling", int((seconds - left) * 1000), int(seconds * 1000))
        time.sleep(min(left, 0.1))


def _watch(
    census: _core.Census, work: Callable[[], None], what: str, progress: Progress | None
) -> None:
    """Run a long call of the census beside this thread, which stays able to take Ctrl-C."""
    failure: list[BaseException] = []

    def call() -> None:
        try:
            work()
        except (OSError, MemoryError, ValueError) as error:
            failure.append(error)

    worker = threading.Thread(target=call, name="census", daemon=True)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(0.1)
            if progress and worker.is_alive():
                progress(what, *census.progress())
    except BaseException:
        census.cancel()
        worker.join()
        raise
    if failure:
        raise failure[0]
