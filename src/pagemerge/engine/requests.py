"""What a Python program asks of the engine for its own memory."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Self

from pagemerge.engine.agent import load_agent
from pagemerge.engine.paths import POOL_NAME
from pagemerge.errors import RejectedError
from pagemerge.memory.buffers import (
    MADV_MERGEABLE,
    HeldBuffer,
    check_advice,
    check_mergeable,
)

__all__ = [
    "Sealed",
    "disable",
    "enable",
    "is_enabled",
    "madvise",
]


def madvise(buffer: object, advice: int = MADV_MERGEABLE) -> int:
    """Advise the engine on the whole pages of a buffer; returns their bytes.

    Raises:
        TypeError, CommandError, RejectedError: as `pagemerge.madvise`.
        EngineError: the agent can't run here.
    """
    check_advice(advice)
    with HeldBuffer(buffer) as held:
        if advice == MADV_MERGEABLE:
            check_mergeable(held.address, held.length, POOL_NAME)
        try:
            load_agent().madvise(held.address, held.length, advice)
        except OSError as error:
            raise RejectedError(str(error), where="madvise", errno=error.errno) from error
        return held.length


def enable() -> None:
    """Have the engine merge all memory of this process, now and later.

    Raises:
        EngineError: the agent can't run here.
        RejectedError: the agent refused.
    """
    _set_memory_merge(True)


def disable() -> None:
    """Take back `enable`, and unmerge everything that is merged in this process.

    Raises:
        EngineError: the agent can't run here.
        RejectedError: the agent refused.
    """
    _set_memory_merge(False)


def is_enabled() -> bool:
    """Tell whether the engine merges all memory of this process.

    Raises:
        EngineError: the agent can't run here.
    """
    return load_agent().memory_merge()


class Sealed:
    """A buffer that is finished; see `pagemerge.sealed`.

    Attributes:
        length: the bytes that are sealed: the whole pages of the buffer.
    """

    def __init__(self, buffer: object) -> None:
        """Seal it; `pagemerge.sealed` says what is raised."""
        held = HeldBuffer(buffer)
        try:
            check_mergeable(held.address, held.length, POOL_NAME)
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


def _set_memory_merge(on: bool) -> None:
    try:
        load_agent().set_memory_merge(on)
    except OSError as error:
        raise RejectedError(str(error), where="prctl", errno=error.errno) from error
