"""Calls injected into a running process: whom that is refused, and why it failed, in words.

The work is done in C (native/core/inject.c); docs/explanation/requests.md says how.
"""

from __future__ import annotations

import errno
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from pagemerge.errors import (
    KernelError,
    NotPermittedError,
    NotSupportedError,
    ProcessGoneError,
    RejectedError,
)
from pagemerge.memory import (
    PROC,
    ProcessStat,
    read_process_text,
    read_stat,
    read_thread_states,
    reading,
)
from pagemerge.memory.ownership import find_cgroup, read_cgroup
from pagemerge.memory.privileges import has_capability, what_it_takes

__all__ = ["CallNumbers", "call_numbers", "check_injectable", "inject_calls"]

_ELF_32BIT: Final = b"\x7fELF\x01"
_YAMA: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
_ROOT_HINT: Final = "it takes the process's own user, or root (CAP_SYS_PTRACE)"
_SECCOMP_HINT: Final = "it takes root (CAP_SYS_ADMIN), itself outside of any seccomp filter"
_INHERIT_HINT: Final = "merging is inherited: switch it on for the program that starts it"


class CallNumbers(NamedTuple):
    """The kernel's numbers of the calls that are injected."""

    prctl: int
    madvise: int


_NUMBERS: Final = {"x86_64": CallNumbers(157, 28), "aarch64": CallNumbers(167, 233)}


def call_numbers(machine: str | None = None) -> CallNumbers:
    """The numbers of a machine's architecture (default: this one's).

    Raises:
        NotSupportedError: calls can't be injected there.
    """
    machine = machine or platform.machine()
    try:
        return _NUMBERS[machine]
    except KeyError:
        raise NotSupportedError(
            f"calls can't be injected on {machine}: only on {' and '.join(_NUMBERS)}",
            where="ptrace",
            hint=_INHERIT_HINT,
        ) from None


def inject_calls(pid: int, calls: list[tuple[int, ...]]) -> tuple[list[int], float]:
    """Have one thread of a process make calls; the process's other threads go on.

    Args:
        pid: the process.
        calls: each a call's number and its arguments.

    Returns:
        What each returned (0, or -errno), and for how many seconds the thread stood still at most.

    Raises:
        ProcessGoneError: there is no such process.
        NotPermittedError: it may not be traced by this process, or is being traced.
        NotSupportedError: it can't be made to call (32 bits, no system call instruction).
        RejectedError: it has no memory, or is this process.
        KernelError: no thread of it could be stopped in time.
    """
    _check_target(pid)
    from pagemerge._core import inject  # only here: reading needs no C

    try:
        results, stopped_ns = inject(pid, calls)
    except OSError as error:
        raise _explain(pid, error) from error
    return results, stopped_ns / 1e9


def check_injectable(pid: int) -> None:
    """Find what would keep a call from being injected, as far as it shows; nothing is stopped.

    Raises:
        PagemergeError: what `inject_calls` would raise.
    """
    call_numbers()
    stat = _check_target(pid)
    if not _may_trace(pid):
        raise _not_permitted(pid, stat)
    mine, its = _seccomp("self"), _seccomp(str(pid))
    if its and (mine or not has_capability("CAP_SYS_ADMIN")):
        raise _confined(f"process {pid} ({stat.comm})")


def _seccomp(name: str) -> int:
    """Read the mode of a process's first thread; 0: it is not confined."""
    with suppress(OSError):
        for line in (PROC / name / "status").read_text(errors="surrogateescape").splitlines():
            if line.startswith("Seccomp:"):
                return int(line.split()[1])
    return 0


def _confined(name: str) -> NotPermittedError:
    return NotPermittedError(
        f"{name} is confined by seccomp, which can't be suspended for the call",
        where="ptrace",
        hint=what_it_takes("CAP_SYS_ADMIN", _SECCOMP_HINT),
    )


def _check_target(pid: int) -> ProcessStat:
    if pid == os.getpid():
        raise RejectedError(f"process {pid} is this one; it can't stop itself", where="ptrace")
    stat = read_stat(pid)
    if stat.is_kernel_thread:
        raise RejectedError(f"process {pid} ({stat.comm}) is a kernel thread: it has no memory")
    # the first thread may have exited while others go on
    if stat.state in "ZX" and not set(read_thread_states(pid)) - set("ZX"):
        raise RejectedError(f"process {pid} ({stat.comm}) is a zombie: its memory is gone")
    _check_tracer(pid, stat)
    with suppress(OSError), (PROC / str(pid) / "exe").open("rb") as file:
        if file.read(len(_ELF_32BIT)) == _ELF_32BIT:
            raise _only_32bit(pid, stat)
    return stat


def _may_trace(pid: int) -> bool:
    """Tell whether it may be traced: to the kernel, as to Yama, whether its memory may be opened.

    Raises:
        ProcessGoneError: it has ended.
    """
    threads = PROC / str(pid) / "task"
    with reading(pid, threads):
        names = sorted(threads.iterdir())
    for thread in names:  # the first may have exited, and its memory with it
        try:
            os.close(os.open(thread / "mem", os.O_RDONLY | os.O_CLOEXEC))
            if (thread / "maps").read_bytes():  # empty: it ends
                return True
        except PermissionError:
            return False
        except OSError:
            continue
    raise ProcessGoneError(pid)


def _check_tracer(pid: int, stat: ProcessStat, name: str = "status") -> None:
    for line in read_process_text(pid, name).splitlines():
        if line.startswith("TracerPid:") and (tracer := int(line.split()[1])):
            raise NotPermittedError(
                f"process {pid} ({stat.comm}) is being traced by process {tracer}",
                where="ptrace",
                hint="end the debugger or strace first",
            )


def _only_32bit(pid: int, stat: ProcessStat) -> NotSupportedError:
    return NotSupportedError(
        f"process {pid} ({stat.comm}) is a 32-bit program: only 64-bit ones can be made to call",
        where="ptrace",
        hint=_INHERIT_HINT,
    )


def _explain(pid: int, error: OSError) -> Exception:
    if error.errno == errno.ESRCH:
        return ProcessGoneError(pid)
    try:
        stat = read_stat(pid)
        match error.errno:
            case errno.EPERM | errno.EACCES:
                for thread in sorted((PROC / str(pid) / "task").iterdir()):
                    with suppress(NotSupportedError):  # the thread has ended
                        _check_tracer(pid, stat, f"task/{thread.name}/status")
                return _not_permitted(pid, stat)
            case errno.EBUSY:
                return _busy(pid, stat)
    except (NotPermittedError, ProcessGoneError) as reason:
        return reason
    except FileNotFoundError:  # the folder of its threads
        return ProcessGoneError(pid)
    name = f"process {pid} ({stat.comm})"
    match error.errno:
        case errno.ENOEXEC:
            return _only_32bit(pid, stat)
        case errno.EOPNOTSUPP:
            return _confined(name)
        case errno.ENOENT:
            try:
                if not _may_trace(pid):  # so that its text could not be looked through
                    return _not_permitted(pid, stat)
            except ProcessGoneError as reason:  # it was ending, its memory was gone already
                return reason
            return NotSupportedError(
                f"{name} has no system call instruction in its text",
                where="ptrace",
                hint=_INHERIT_HINT,
            )
        case errno.EINTR:
            return KernelError(f"{name}: the helper that traced it was killed", where="ptrace")
    return KernelError(f"{name}: {error.strerror}", where="ptrace")


def _not_permitted(pid: int, stat: ProcessStat) -> NotPermittedError:
    hint = what_it_takes("CAP_SYS_PTRACE", _ROOT_HINT)
    with suppress(OSError, ValueError):
        scope = int(_YAMA.read_text())
        if scope == 3:
            hint = "kernel.yama.ptrace_scope=3 forbids tracing, until the machine is restarted"
        elif scope and os.geteuid():
            hint = f"kernel.yama.ptrace_scope={scope} leaves it to root (CAP_SYS_PTRACE)"
    return NotPermittedError(
        f"process {pid} ({stat.comm}) may not be traced by this one", where="ptrace", hint=hint
    )


def _busy(pid: int, stat: ProcessStat) -> KernelError:
    reason, hint = "no thread of it could be stopped in time", "try again"
    if not set(read_thread_states(pid)) - set("DZX"):
        reason = "it waits in the kernel and can't be interrupted (state D)"
        hint = f"try again; /proc/{pid}/stack says what it waits for"
    with suppress(OSError, NotPermittedError, NotSupportedError):
        events = find_cgroup(read_cgroup(pid)) / "cgroup.events"
        if "frozen 1" in events.read_text():
            reason, hint = "its cgroup is frozen", f"thaw {events.parent} first"
    return KernelError(f"process {pid} ({stat.comm}): {reason}", where="ptrace", hint=hint)
