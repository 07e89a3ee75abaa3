"""Asking the kernel's KSM for merging on behalf of a running process, by calls injected into it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Final

from pagemerge.errors import NotPermittedError, NotSupportedError, RejectedError
from pagemerge.kernel import own
from pagemerge.kernel.injecting import call_numbers, check_injectable
from pagemerge.kernel.processes import obstacle_of, read_process
from pagemerge.kernel.slicing import MADV_UNMERGEABLE, Progress, Unmerging
from pagemerge.memory import read_smaps_rows
from pagemerge.units import PAGE_SIZE

__all__ = [
    "Injected",
    "advise_region",
    "check_memory_merge",
    "check_region",
    "set_memory_merge",
]

_PR_SET_MEMORY_MERGE: Final = 67
_PR_GET_MEMORY_MERGE: Final = 68
_MADV_MERGEABLE: Final = 12
_ALL: Final = (0, 1 << 64)  # whatever the size of its address space
_PASSES: Final = 4  # over memory that the process maps, and ksmd merges, meanwhile
_FEW_BYTES: Final = 64 * PAGE_SIZE  # merged ones that the last call may be left with


@dataclass(frozen=True, slots=True)
class Injected:
    """What calls into a process have done.

    Attributes:
        stopped_seconds: how long one thread stood still at most; the others went on.
        stops: how often one was stopped.
    """

    pid: int
    stopped_seconds: float
    stops: int = 1


def set_memory_merge(pid: int, *, on: bool, progress: Progress | None = None) -> Injected:
    """Have a process call prctl(PR_SET_MEMORY_MERGE); off unmerges all of its memory.

    Off does nothing where merging was not switched on by prctl. Before the call, memory is unmerged
    in slices, each in a stop of its own, so that no thread is held for long. If that is broken off,
    merging stays on for the process, and off for the memory that was done; called again it goes on.

    Args:
        pid: the process.
        on: whether to merge.
        progress: told now and then how many bytes are done, and of how many, while that takes long.

    Raises:
        ProcessGoneError: there is no such process.
        NotPermittedError: it may not be traced by this process, or is being traced.
        NotSupportedError: this kernel has no such call, or the process can't be made to call.
        RejectedError: the kernel refused the call, or the process has no memory.
        KernelError: no thread of it could be stopped in time.
    """
    unmerging = Unmerging(pid)
    name = "prctl(PR_SET_MEMORY_MERGE)"
    if not on and _merges_any(unmerging):
        for _ in range(_PASSES):
            _check(unmerging.run(*_ALL, progress), name)
            if unmerging.read_merged_bytes() <= _FEW_BYTES:
                break
    result = unmerging.call((call_numbers().prctl, _PR_SET_MEMORY_MERGE, int(on), 0, 0, 0))
    if result == -errno.EINVAL:
        raise NotSupportedError(
            "this kernel has no prctl(PR_SET_MEMORY_MERGE)",
            where="prctl",
            hint="Linux 6.4 brought it, where it is built with CONFIG_KSM",
        )
    _check(result, name)
    return Injected(pid, unmerging.longest_seconds, unmerging.stops)


def check_memory_merge(pid: int) -> None:
    """Find what would keep `set_memory_merge` from its work, as far as it shows; nothing is done.

    Raises:
        PagemergeError: what `set_memory_merge` would raise.
    """
    own.is_enabled()  # does this kernel have the call?
    check_injectable(pid)


def check_region(pid: int, start: int, end: int, *, on: bool) -> None:
    """Find what would keep `advise_region` from its work, as far as it shows; nothing is done.

    Raises:
        RejectedError: also where the kernel would take the call and never merge anything there.
        PagemergeError: what `advise_region` would raise.
    """
    _check_pages(start, end)
    check_injectable(pid)
    at, obstacles, able = start, dict[str, None](), False
    for vma, _, flags in read_smaps_rows(pid, ("Size",)):
        if vma.end <= start or vma.start >= end:
            continue
        if vma.start > at:
            break
        at = vma.end
        why = obstacle_of(vma.path, flags)
        able = able or why is None
        if why:
            obstacles[why] = None
    call = f"madvise({start:x}-{end:x})"
    if at < end:
        raise _refused(call, errno.ENOMEM)
    if on and not able:
        raise RejectedError(
            f"nothing in {start:x}-{end:x} can be merged: it is {', '.join(obstacles)}",
            where=call,
            hint=f"'pagemerge regions {pid} --ksm kernel' shows what can",
            errno=errno.EINVAL,
        )


def advise_region(
    pid: int, start: int, end: int, *, on: bool, progress: Progress | None = None
) -> Injected:
    """Have a process call madvise(MADV_MERGEABLE or MADV_UNMERGEABLE) for a part of its memory.

    What is merged there is unmerged in slices; see `set_memory_merge`.

    Args:
        pid: the process.
        start: first byte, at the start of a page.
        end: the byte after the last.
        on: whether to merge; else what is merged there is unmerged.
        progress: as for `set_memory_merge`.

    Raises:
        ProcessGoneError, NotPermittedError, NotSupportedError: as `set_memory_merge`.
        RejectedError: the kernel refused; EINVAL: not whole pages, ENOMEM: a part is not mapped.
        KernelError: no thread of it could be stopped in time.
    """
    _check_pages(start, end)
    name = f"madvise({start:x}-{end:x})"
    unmerging = Unmerging(pid)
    if not on:
        _check(unmerging.run(start, end, progress), name)
    advice = _MADV_MERGEABLE if on else MADV_UNMERGEABLE
    _check(unmerging.call((call_numbers().madvise, start, end - start, advice)), name)
    return Injected(pid, unmerging.longest_seconds, unmerging.stops)


def _merges_any(unmerging: Unmerging) -> bool:
    """Whether the process has called prctl; before Linux 6.14 it has to be asked itself."""
    try:
        process = read_process(unmerging.pid)
    except (NotPermittedError, NotSupportedError):
        process = None
    if process is not None and process.ksm_merge_any is not None:
        return process.ksm_merge_any
    return unmerging.call((call_numbers().prctl, _PR_GET_MEMORY_MERGE, 0, 0, 0, 0)) == 1


def _check_pages(start: int, end: int) -> None:
    if start % PAGE_SIZE or end % PAGE_SIZE or not start < end:
        raise RejectedError(
            f"{start:x}-{end:x} is not whole pages of {PAGE_SIZE} bytes, or is empty",
            where="madvise",
            errno=errno.EINVAL,
        )


def _check(result: int, call: str) -> None:
    if result < 0:
        raise _refused(call, -result)


def _refused(call: str, code: int) -> RejectedError:
    reasons = {
        errno.ENOMEM: "a part of it is not mapped, or there is no memory for it",
        errno.EAGAIN: "there is no memory for it",
    }
    reason = reasons.get(code, os.strerror(code))
    name = errno.errorcode.get(code, str(code))
    return RejectedError(f"{call}: {reason} ({name})", where=call, errno=code)
