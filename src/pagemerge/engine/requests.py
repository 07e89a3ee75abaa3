"""What a Python program asks of the engine for its own memory."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Final, Self

from pagemerge.engine.agent import load_agent
from pagemerge.engine.buffers import HeldBuffer, check_mergeable
from pagemerge.errors import CommandError, RejectedError

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

MADV_MERGEABLE: Final = 12
MADV_UNMERGEABLE: Final = 13


def madvise(buffer: object, advice: int = MADV_MERGEABLE) -> int:
    """Have a buffer merged, or unmerge it: the system call of that name, for the engine.

    The whole pages in the buffer are meant. MADV_UNMERGEABLE gives every page a copy of its own
    before it returns. The advice stays with the memory, not with the object.

    Args:
        buffer: anything with the buffer protocol that is contiguous: mmap, bytearray, NumPy
            array, memoryview. From the heap, too: only whole pages are touched.
        advice: MADV_MERGEABLE or MADV_UNMERGEABLE.

    Returns:
        The bytes that the advice was given for.

    Raises:
        TypeError: it has no buffer.
        CommandError: there is no such advice.
        RejectedError: it is not contiguous, has no whole page, or is memory of a kind that can't
            be merged (a shared mapping, a read-only file); the hint says the way out.
        EngineError: the agent can't run here.
    """
    if advice not in (MADV_MERGEABLE, MADV_UNMERGEABLE):
        raise CommandError(
            f"there is no advice {advice!r}", hint="MADV_MERGEABLE or MADV_UNMERGEABLE"
        )
    with HeldBuffer(buffer) as held:
        if advice == MADV_MERGEABLE:
            check_mergeable(held.address, held.length)
        try:
            load_agent().madvise(held.address, held.length, advice)
        except OSError as error:
            raise RejectedError(str(error), where="madvise", errno=error.errno) from error
        return held.length


def enable() -> None:
    """Have all memory of this process merged, now and later; mirrors PR_SET_MEMORY_MERGE.

    Forked children inherit it.

    Raises:
        EngineError: the agent can't run here.
        RejectedError: the agent refused.
    """
    _set_memory_merge(True)


def disable() -> None:
    """Take back `enable`, and unmerge everything that is merged in this process.

    As with prctl(PR_SET_MEMORY_MERGE, 0) buffers that were marked by `madvise` lose their mark,
    but only if merging was enabled.

    Raises:
        EngineError: the agent can't run here.
        RejectedError: the agent refused.
    """
    _set_memory_merge(False)


def is_enabled() -> bool:
    """Tell whether all memory of this process is merged; mirrors PR_GET_MEMORY_MERGE.

    Raises:
        EngineError: the agent can't run here.
    """
    return load_agent().memory_merge()


class Sealed:
    """A buffer that is finished; see `sealed`.

    Attributes:
        length: the bytes that are sealed: the whole pages of the buffer.
    """

    def __init__(self, buffer: object) -> None:
        """Seal it; `sealed` says what is raised."""
        held = HeldBuffer(buffer)
        try:
            check_mergeable(held.address, held.length)
            agent = load_agent()
            agent.seal(held.address, held.length)
        except OSError as error:
            held.release()
            raise RejectedError(str(error), where="mprotect", errno=error.errno) from error
        except BaseException:
            held.release()
            raise
        self.length = held.length

        def unseal() -> None:
            # before the buffer may be freed: an allocator writes to what it takes back
            agent.unseal(held.address, held.length)
            held.release()

        self._finalizer = weakref.finalize(self, unseal)

    @property
    def is_sealed(self) -> bool:
        """Whether it has not been released yet."""
        return self._finalizer.alive

    def release(self) -> None:
        """Make the buffer writable again and let go of it; it stays mergeable."""
        self._finalizer()

    def __enter__(self) -> Self:
        """Use as a context manager; `release` at its end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release it."""
        self.release()


def sealed(buffer: object) -> Sealed:
    """Declare a buffer finished: a loaded model, a table that is only read.

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


def _set_memory_merge(on: bool) -> None:
    try:
        load_agent().set_memory_merge(on)
    except OSError as error:
        raise RejectedError(str(error), where="prctl", errno=error.errno) from error
