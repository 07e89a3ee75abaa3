"""Asking the kernel's KSM for merging on behalf of a running process, by calls injected into it."""

from __future__ import annotations

import errno
import os
import platform
from dataclasses import dataclass
from typing import Final

from pagemerge.errors import (
    KernelError,
    NotPermittedError,
    NotSupportedError,
    ProcessGoneError,
    RejectedError,
)
from pagemerge.memory import read_process_text, read_stat
from pagemerge.units import PAGE_SIZE

__all__ = ["Injected", "advise_region", "set_memory_merge"]

_PRCTL: Final = 157  # the numbers of x86-64, where injecting works
_MADVISE: Final = 28
_PR_SET_MEMORY_MERGE: Final = 67
_MADV_MERGEABLE: Final = 12
_MADV_UNMERGEABLE: Final = 13
_ROOT_HINT: Final = "it takes the process's own user, or root (CAP_SYS_PTRACE)"


@dataclass(frozen=True, slots=True)
class Injected:
    """What calls into a process have done; `stopped_seconds` is how long one thread stood still."""

    pid: int
    stopped_seconds: float


def set_memory_merge(pid: int, *, on: bool) -> Injected:
    """Have a process call prctl(PR_SET_MEMORY_MERGE); off unmerges all of its memory at once.

    Off does nothing where merging was not switched on by prctl.

    Raises:
        ProcessGoneError: there is no such process.
        NotPermittedError: it may not be traced by this process, or is being traced.
        NotSupportedError: this kernel has no such call, or the process can't be made to call.
        RejectedError: the kernel refused the call.
    """
    results, injected = _inject(pid, [(_PRCTL, _PR_SET_MEMORY_MERGE, int(on), 0, 0, 0)])
    if results[0] == -errno.EINVAL:
        raise NotSupportedError(
            "this kernel has no prctl(PR_SET_MEMORY_MERGE)",
            where="prctl",
            hint="Linux 6.4 brought it, where it is built with CONFIG_KSM",
        )
    _check(results, "prctl(PR_SET_MEMORY_MERGE)")
    return injected


def advise_region(pid: int, start: int, end: int, *, on: bool) -> Injected:
    """Have a process call madvise(MADV_MERGEABLE or MADV_UNMERGEABLE) for a part of its memory.

    Args:
        pid: the process.
        start: first byte, at the start of a page.
        end: the byte after the last.
        on: whether to merge; else what is merged there is unmerged at once.

    Raises:
        ProcessGoneError, NotPermittedError, NotSupportedError: as `set_memory_merge`.
        RejectedError: the kernel refused; EINVAL: no whole pages, ENOMEM: a part is not mapped.
    """
    if start % PAGE_SIZE or not start < end:
        raise RejectedError(
            f"{start:x}-{end:x} does not begin with a page, or is empty",
            where="madvise",
            errno=errno.EINVAL,
        )
    advice = _MADV_MERGEABLE if on else _MADV_UNMERGEABLE
    results, injected = _inject(pid, [(_MADVISE, start, end - start, advice)])
    _check(results, f"madvise({start:x}-{end:x})")
    return injected


def _check(results: list[int], call: str) -> None:
    reasons = {
        errno.ENOMEM: "a part of it is not mapped, or there is no memory for it",
        errno.EAGAIN: "there is no memory for it",
    }
    for result in results:
        if result < 0:
            reason = reasons.get(-result, os.strerror(-result))
            name = errno.errorcode.get(-result, str(-result))
            raise RejectedError(f"{call}: {reason} ({name})", where=call, errno=-result)


def _inject(pid: int, calls: list[tuple[int, ...]]) -> tuple[list[int], Injected]:
    if pid == os.getpid():
        raise RejectedError(f"process {pid} is this one; it can't stop itself", where="ptrace")
    _check_target(pid)
    from pagemerge._core import inject  # only here: reading needs no C

    try:
        results, stopped_ns = inject(pid, calls)
    except OSError as error:
        raise _explain(pid, error) from error
    return results, Injected(pid, stopped_ns / 1e9)


def _check_target(pid: int) -> None:
    stat = read_stat(pid)
    if stat.is_kernel_thread:
        raise RejectedError(f"process {pid} ({stat.comm}) is a kernel thread: it has no memory")
    if stat.state in "ZX":
        raise RejectedError(f"process {pid} ({stat.comm}) is a zombie: its memory is gone")
    tracer = _tracer_of(pid)
    if tracer:
        raise NotPermittedError(
            f"process {pid} ({stat.comm}) is being traced by process {tracer}",
            where="ptrace",
            hint="end the debugger or strace first",
        )


def _tracer_of(pid: int) -> int:
    for line in read_process_text(pid, "status").splitlines():
        if line.startswith("TracerPid:"):
            return int(line.split()[1])
    return 0


def _explain(pid: int, error: OSError) -> Exception:
    match error.errno:
        case errno.ESRCH:
            return ProcessGoneError(pid)
        case errno.EPERM | errno.EACCES:
            return NotPermittedError(
                f"process {pid} may not be traced by this one", where="ptrace", hint=_ROOT_HINT
            )
        case errno.ENOEXEC:
            return NotSupportedError(
                f"process {pid} is a 32-bit program",
                where="ptrace",
                hint="start it by 'prctl(PR_SET_MEMORY_MERGE)' in its parent: it is inherited",
            )
        case errno.EOPNOTSUPP if platform.machine() != "x86_64":
            return NotSupportedError(
                f"calls can't be injected on {platform.machine()} yet", where="ptrace"
            )
        case errno.EOPNOTSUPP:
            return NotPermittedError(
                f"process {pid} is confined by seccomp, which can't be suspended for the call",
                where="ptrace",
                hint="it takes root (CAP_SYS_ADMIN)",
            )
        case errno.EBUSY:
            return KernelError(
                f"no thread of process {pid} could be stopped", where="ptrace", hint="try again"
            )
        case errno.ENOENT:
            return NotSupportedError(
                f"process {pid} has no system call instruction in its first text", where="ptrace"
            )
    return KernelError(f"process {pid}: {error.strerror}", where="ptrace")
