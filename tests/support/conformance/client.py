"""A real process that does to its memory what a test tells it."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tests.support.processes import Child

__all__ = ["PAGE", "Client", "Descendant", "Refused"]

PAGE = os.sysconf("SC_PAGE_SIZE")

_PROGRAM = Path(__file__).with_name("program.py")
_PROT_READ_WRITE = 3
_MAP_PRIVATE_ANONYMOUS = 0x22
_PRESENT, _PFN = 1 << 63, (1 << 55) - 1
_SET_MERGE, _GET_MERGE = 67, 68
_MERGEABLE, _UNMERGEABLE, _DONTNEED, _HUGEPAGE, _NOHUGEPAGE = 12, 13, 4, 14, 15
_MREMAP_MAYMOVE = 1


class Refused(Exception):  # noqa: N818 - what happened to the call, not what went wrong in a test
    """A call that failed, as its errno's name."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call}: {errno.errorcode[code]}")
        self.errno = code


class _Speaker:
    """What can be asked of a process; addresses and lengths are bytes unless said otherwise."""

    pid: int

    def do(self, what: str, *args: Any) -> Any:
        """Have it do something; what that gave."""
        raise NotImplementedError

    def call(self, name: str, *args: int) -> int:
        """A C library function, which is to succeed.

        Raises:
            Refused: It did not.
        """
        value, code = self.do("call", name, *args)
        if code:
            raise Refused(name, code)
        return int(value)

    def errno_of(self, name: str, *args: int) -> int:
        """A C library function's errno, 0 when it succeeds."""
        return int(self.do("call", name, *args)[1])

    # memory

    def map(self, values: Sequence[int] | int, prot: int = _PROT_READ_WRITE, flags: int = 0) -> int:
        """Map anonymous memory and fill it, each page with its number; or only so many pages."""
        pages = values if isinstance(values, int) else len(values)
        flags = flags or _MAP_PRIVATE_ANONYMOUS
        address = self.call("mmap", 0, pages * PAGE, prot, flags, -1, 0)
        self.call("madvise", address, pages * PAGE, _NOHUGEPAGE)
        if not isinstance(values, int):
            self.fill(address, values)
        return address

    def fill(self, address: int, values: Sequence[int]) -> None:
        """Fill pages, each with its number over and over."""
        self.do("fill", address, list(values))

    def poke(self, address: int, byte: int) -> None:
        """Write one byte."""
        self.do("poke", address, byte)

    def peek(self, address: int, pages: int) -> list[int]:
        """The numbers that pages hold; -1 for a page that is not all one number."""
        found: list[int] = self.do("peek", address, pages)
        return found

    def mark(self, address: int, pages: int) -> None:
        """MADV_MERGEABLE."""
        self.call("madvise", address, pages * PAGE, _MERGEABLE)

    def unmark(self, address: int, pages: int) -> None:
        """MADV_UNMERGEABLE."""
        self.call("madvise", address, pages * PAGE, _UNMERGEABLE)

    def discard(self, address: int, pages: int) -> None:
        """MADV_DONTNEED."""
        self.call("madvise", address, pages * PAGE, _DONTNEED)

    def want_huge(self, address: int, pages: int) -> None:
        """MADV_HUGEPAGE."""
        self.call("madvise", address, pages * PAGE, _HUGEPAGE)

    def protect(self, address: int, pages: int, prot: int) -> None:
        """mprotect(2)."""
        self.call("mprotect", address, pages * PAGE, prot)

    def unmap(self, address: int, pages: int) -> None:
        """munmap(2)."""
        self.call("munmap", address, pages * PAGE)

    def remap(self, address: int, pages: int, new_pages: int, to: int | None = None) -> int:
        """mremap(2), to a place of the kernel's choice or to `to`; the new address."""
        if to is None:
            return self.call("mremap", address, pages * PAGE, new_pages * PAGE, _MREMAP_MAYMOVE)
        return self.call("mremap", address, pages * PAGE, new_pages * PAGE, 3, to)

    def merge_any(self, on: bool) -> None:
        """prctl(PR_SET_MEMORY_MERGE)."""
        self.call("prctl", _SET_MERGE, int(on), 0, 0, 0)

    def merges_any(self) -> int:
        """prctl(PR_GET_MEMORY_MERGE)."""
        return self.call("prctl", _GET_MERGE, 0, 0, 0, 0)

    def fork(self) -> Descendant:
        """Fork a child."""
        return Descendant(self, int(self.do("fork")))

    # what the kernel says of it

    def frames(self, address: int, pages: int) -> list[int]:
        """The page frame of each page that is present (/proc/PID/pagemap; needs root)."""
        with Path(f"/proc/{self.pid}/pagemap").open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), pages * 8, address // PAGE * 8)
        entries = struct.unpack(f"<{pages}Q", data)
        return [entry & _PFN for entry in entries if entry & _PRESENT]

    def frames_read(self, address: int, pages: int) -> list[int]:
        """The page frame of each page, after reading it: what nobody has read may not be mapped."""
        self.do("peek", address, pages)
        return self.frames(address, pages)

    def has_own_frames(self, address: int, pages: int) -> bool:
        """Whether every page is present, each on a frame of its own."""
        return len(set(self.frames(address, pages))) == pages


class Client(_Speaker):
    """A process of its own; `commands` counts what all of them were told.

    Args:
        env: Added to this process's environment.
    """

    commands: ClassVar[int] = 0

    def __init__(self, env: Mapping[str, str]) -> None:
        self._child = Child([sys.executable, "-I", "-S", str(_PROGRAM)], env=env)
        self.pid = self._child.pid

    def do(self, what: str, *args: Any) -> Any:
        """Have it do something; what that gave."""
        Client.commands += 1
        return json.loads(self._child.ask(json.dumps({"do": what, "with": args})))["value"]

    def exec_itself(self) -> None:
        """Have it replace itself by the same program, started anew."""
        self.do("replace_self")

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self._child.kill()

    def finish(self) -> int:
        """Have it end; its exit status."""
        return self._child.finish()


class Descendant(_Speaker):
    """A child that a client, or another child, has forked."""

    def __init__(self, parent: _Speaker, pid: int) -> None:
        self._parent = parent
        self.pid = pid

    def do(self, what: str, *args: Any) -> Any:
        """Have it do something; what that gave."""
        return self._parent.do("tell", self.pid, json.dumps({"do": what, "with": args}))

    def end(self) -> int:
        """Have it end, and wait; its exit status."""
        return int(self._parent.do("end", self.pid))


def page_of_zeros_frame() -> int:
    """The frame of the kernel's zero page, seen through memory of our own that was only read."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, PAGE, 1, _MAP_PRIVATE_ANONYMOUS, -1, 0)
    ctypes.string_at(address, 1)
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        (entry,) = struct.unpack("<Q", os.pread(file.fileno(), 8, address // PAGE * 8))
    libc.munmap(ctypes.c_void_p(address), PAGE)
    return int(entry & _PFN)
