"""What a Python program asks for its own memory, of the engine or of the kernel's KSM."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

from pagemerge.choice import Implementation, choose
from pagemerge.engine.requests import Sealed
from pagemerge.memory.buffers import MADV_MERGEABLE, MADV_UNMERGEABLE

__all__ = [
    "MADV_MERGEABLE",
    "MADV_UNMERGEABLE",
    "Sealed",
    "disable",
    "enable",
    "is_enabled",
    "madvise",
    "sealed",
]


def madvise(
    buffer: object, advice: int = MADV_MERGEABLE, *, ksm: Implementation | None = None
) -> int:
    """Have a buffer merged, or unmerge it: the system call of that name.

    The whole pages in the buffer are meant. MADV_UNMERGEABLE gives every page a copy of its own
    before it returns. The advice stays with the memory, not with the object.

    Args:
        buffer: anything with the buffer protocol that is contiguous: mmap, bytearray, NumPy
            array, memoryview. From the heap, too: only whole pages are touched.
        advice: MADV_MERGEABLE or MADV_UNMERGEABLE.
        ksm: "kernel" or "engine"; None: the kernel's where it can be used, otherwise the engine,
            as was found when this process first asked.

    Returns:
        The bytes that the advice was given for.

    Raises:
        TypeError: it has no buffer.
        CommandError: there is no such advice, or no such implementation.
        RejectedError: it is not contiguous, has no whole page, or is memory of a kind that can't
            be merged (a shared mapping, a read-only file); the hint says the way out.
        EngineError: the engine's agent can't run here.
        NotSupportedError: this kernel has no KSM.
    """
    advised: int = _home(ksm).madvise(buffer, advice)
    return advised


def enable(*, ksm: Implementation | None = None) -> None:
    """Have all memory of this process merged, now and later; mirrors PR_SET_MEMORY_MERGE.

    Forked children inherit it, and with the kernel's KSM (Linux 6.7) programs that are executed.

    Args:
        ksm: which implementation, as for `madvise`.

    Raises:
        CommandError: there is no such implementation.
        EngineError: the engine's agent can't run here.
        NotSupportedError: this kernel has no such call (before 6.4).
        RejectedError: the agent or the kernel refused.
    """
    _home(ksm).enable()


def disable(*, ksm: Implementation | None = None) -> None:
    """Take back `enable`, and unmerge everything that is merged in this process.

    As with prctl(PR_SET_MEMORY_MERGE, 0) buffers that were marked by `madvise` lose their mark,
    but only if merging was enabled.

    Args:
        ksm: which implementation, as for `madvise`.

    Raises:
        CommandError, EngineError, NotSupportedError, RejectedError: as `enable`.
    """
    _home(ksm).disable()


def is_enabled(*, ksm: Implementation | None = None) -> bool:
    """Tell whether all memory of this process is merged; mirrors PR_GET_MEMORY_MERGE.

    Args:
        ksm: which implementation, as for `madvise`.

    Raises:
        CommandError, EngineError, NotSupportedError: as `enable`.
    """
    enabled: bool = _home(ksm).is_enabled()
    return enabled


def sealed(buffer: object) -> Sealed:
    """Declare a buffer finished: a loaded model, a table that is only read. The engine's alone.

    Its whole pages become read-only and are merged with no barrier, so that no thread is ever
    stopped for them. Writing to them meanwhile kills the process (SIGSEGV); reading into them by
    a system call fails with EFAULT. The handle keeps the buffer alive; the buffer is writable again
    when the handle is released or nobody holds it any more.

    Returns:
        The handle, which is also a context manager.

    Raises:
        TypeError, RejectedError, EngineError: as `madvise`.
    """
    return Sealed(buffer)


def _home(ksm: Implementation | None) -> ModuleType:
    """Load who is asked; by name, since each loads what the other does not need."""
    name = choose(ksm) if ksm else _usual()
    return import_module(f"pagemerge.{'kernel.own' if name == 'kernel' else 'engine.requests'}")


@cache
def _usual() -> Implementation:
    """Choose once a process: what was enabled is taken back where it was, whatever has changed."""
    return choose()
