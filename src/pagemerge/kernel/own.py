"""What a program asks of the kernel's KSM for its own memory: madvise(2) and prctl(2).

The calls are made by number: where the engine's agent is in this process, the C library's functions
of these names lead to the engine.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from functools import cache
from typing import Final

from pagemerge.errors import KernelError, NotSupportedError, RejectedError
from pagemerge.memory.buffers import (
    MADV_MERGEABLE,
    HeldBuffer,
    check_advice,
    check_mergeable,
)

__all__ = ["call_prctl", "disable", "enable", "is_enabled", "madvise"]

PR_SET_MEMORY_MERGE: Final = 67
PR_GET_MEMORY_MERGE: Final = 68

_NUMBERS: Final = {  # madvise, prctl
    "x86_64": (28, 157),
    "aarch64": (233, 167),
    "riscv64": (233, 167),
    "loongarch64": (233, 167),
    "ppc64le": (205, 171),
    "s390x": (219, 172),
}


def madvise(buffer: object, advice: int = MADV_MERGEABLE) -> int:
    """Advise the kernel on the whole pages of a buffer; returns their bytes.

    Raises:
        TypeError: it has no buffer.
        CommandError: there is no such advice.
        RejectedError: as `pagemerge.madvise`; or the kernel refused.
        NotSupportedError: this kernel has no KSM.
    """
    check_advice(advice)
    with HeldBuffer(buffer) as held:
        if advice == MADV_MERGEABLE:
            check_mergeable(held.address, held.length)
        code = _call(_numbers()[0], held.address, held.length, advice)
        if code == errno.EINVAL:
            raise _no_ksm("madvise(MADV_MERGEABLE)", "2.6.32")
        if code:
            raise _refused("madvise", code)
        return held.length


def enable() -> None:
    """Call prctl(PR_SET_MEMORY_MERGE, 1): all memory of this process, now and later.

    Raises:
        NotSupportedError: this kernel has no such call (before 6.4), or no KSM.
        RejectedError: the kernel refused.
    """
    _check_prctl(call_prctl(1))


def disable() -> None:
    """Call prctl(PR_SET_MEMORY_MERGE, 0): everything that is merged gets copies of its own.

    Raises:
        NotSupportedError, RejectedError: as `enable`.
    """
    _check_prctl(call_prctl(0))


def is_enabled() -> bool:
    """Call prctl(PR_GET_MEMORY_MERGE).

    Raises:
        NotSupportedError: as `enable`.
    """
    result = _call_raw(_numbers()[1], PR_GET_MEMORY_MERGE, 0, 0, 0, 0)
    if result < 0:
        _check_prctl(ctypes.get_errno())
    return bool(result)


def call_prctl(on: int) -> int:
    """Call prctl(PR_SET_MEMORY_MERGE, `on`); returns 0 or the error number.

    It is fit for a child between fork and exec once it has been called before the fork.
    """
    return _call(_numbers()[1], PR_SET_MEMORY_MERGE, on, 0, 0, 0)


def _check_prctl(code: int) -> None:
    if code == errno.EINVAL:
        raise _no_ksm("prctl(PR_SET_MEMORY_MERGE)", "6.4")
    if code:
        raise _refused("prctl", code)


def _no_ksm(call: str, since: str) -> NotSupportedError:
    return NotSupportedError(
        f"this kernel has no {call}",
        where=call.partition("(")[0],
        hint=f"Linux {since} brought it, where it is built with CONFIG_KSM; "
        'or use the engine: ksm="engine", --ksm engine',
    )


def _refused(call: str, code: int) -> RejectedError:
    name = errno.errorcode.get(code, str(code))
    return RejectedError(f"{call}: {os.strerror(code)} ({name})", where=call, errno=code)


def _call(number: int, *arguments: int) -> int:
    """Make a system call; returns 0 or the error number."""
    return ctypes.get_errno() if _call_raw(number, *arguments) < 0 else 0


def _call_raw(number: int, *arguments: int) -> int:
    result: int = _libc().syscall(
        ctypes.c_long(number), *(ctypes.c_ulong(argument) for argument in arguments)
    )
    return result


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


@cache
def _numbers() -> tuple[int, int]:
    machine = platform.machine()
    if machine not in _NUMBERS:
        raise KernelError(
            f"the numbers of madvise and prctl on {machine} are not known",
            where="syscall",
            hint="mmap.mmap.madvise(mmap.MADV_MERGEABLE) does it for an mmap",
        )
    return _NUMBERS[machine]
