"""The errors of pagemerge, all of them.

::

    PagemergeError                      exit status 1
    ├── KernelError                     the running kernel said no
    │   ├── NotSupportedError      3    this kernel lacks it; the version that brought it
    │   ├── NotPermittedError      4    exists, but not for this process; what would permit it
    │   └── RejectedError               the value was refused (EINVAL, ERANGE, EBUSY)
    ├── EngineError                     the daemon said no, or is gone
    ├── ProcessGoneError                ended while being read: expected, callers go on
    ├── FormatError                     text that cannot be parsed, with path and line
    └── CommandError               2    cannot be carried out as asked
"""

from __future__ import annotations

__all__ = [
    "CommandError",
    "EngineError",
    "FormatError",
    "KernelError",
    "NotPermittedError",
    "NotSupportedError",
    "PagemergeError",
    "ProcessGoneError",
    "RejectedError",
]


class PagemergeError(Exception):
    """What went wrong, in words for people; `hint` says the way out where there is one."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Keep the message and the hint."""
        super().__init__(message)
        self.hint = hint


class KernelError(PagemergeError):
    """The running kernel said no; `where` is the file or system call."""

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        """Keep the file or call beside the message."""
        super().__init__(message, hint=hint)
        self.where = where


class NotSupportedError(KernelError):
    """This kernel lacks the file or system call; the message names the version that brought it."""

    exit_status = 3


class NotPermittedError(KernelError):
    """It exists, but not for this process; the hint says what would permit it."""

    exit_status = 4


class RejectedError(KernelError):
    """The value was refused; nothing was changed. `errno` is the kernel's number for the reason."""

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        errno: int | None = None,
    ) -> None:
        """Keep the error number (EINVAL, ERANGE, EBUSY) beside the message."""
        super().__init__(message, where=where, hint=hint)
        self.errno = errno


class EngineError(PagemergeError):
    """The engine's daemon said no, is not running, or is gone."""


class ProcessGoneError(PagemergeError):
    """The process ended while it was being read; `pid` is its number."""

    def __init__(self, pid: int) -> None:
        """Keep the process's number."""
        super().__init__(f"process {pid} has ended")
        self.pid = pid


class FormatError(PagemergeError):
    """Text that cannot be parsed; the message gives path and line."""


class CommandError(PagemergeError):
    """The command cannot be carried out as asked."""

    exit_status = 2
