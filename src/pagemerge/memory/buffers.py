"""Where a Python object's memory is, and whether it can be merged."""

from __future__ import annotations

import ctypes
import errno
import os
from types import TracebackType
from typing import Final, Self

from pagemerge.errors import CommandError, RejectedError
from pagemerge.memory.maps import Vma, read_maps
from pagemerge.units import PAGE_SIZE, render_bytes

__all__ = ["MADV_MERGEABLE", "MADV_UNMERGEABLE", "HeldBuffer", "check_advice", "check_mergeable"]

MADV_MERGEABLE: Final = 12
MADV_UNMERGEABLE: Final = 13

_PYBUF_ANY_CONTIGUOUS: Final = 0x98  # C or Fortran order; read-only is all right
_HUGETLB_NAMES: Final = ("/anon_hugepage", "/dev/hugepages", "/memfd:hugetlb")


class _PyBuffer(ctypes.Structure):
    """Py_buffer of the stable ABI (Python 3.11)."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


class HeldBuffer:
    """An object's buffer, exported: until it is released it can't be resized, closed or freed.

    Attributes:
        address: the first whole page in it.
        length: bytes of the whole pages in it.
    """

    def __init__(self, buffer: object) -> None:
        """Take hold of anything with the buffer protocol: mmap, bytearray, NumPy array ...

        Raises:
            TypeError: it has no buffer.
            RejectedError: it is not contiguous, or has no whole page.
        """
        self._view: _PyBuffer | None = None
        view = _PyBuffer()
        try:
            ctypes.pythonapi.PyObject_GetBuffer(
                ctypes.py_object(buffer), ctypes.byref(view), _PYBUF_ANY_CONTIGUOUS
            )
        except (BufferError, ValueError) as error:
            raise RejectedError(
                f"the {type(buffer).__name__} is not in one piece: {error}",
                hint="make a contiguous copy, e.g. numpy.ascontiguousarray(x)",
                errno=errno.EINVAL,
            ) from error
        self._view = view
        first: int = view.buf or 0
        end: int = first + view.len
        self.address = -(-first // PAGE_SIZE) * PAGE_SIZE
        self.length: int = max(end // PAGE_SIZE * PAGE_SIZE - self.address, 0)
        if not self.length:
            self.release()
            raise RejectedError(
                f"the {type(buffer).__name__} of {render_bytes(view.len)} has no whole page of "
                f"{PAGE_SIZE} bytes",
                hint="small data is merged with pagemerge.enable(), which takes all memory",
                errno=errno.EINVAL,
            )

    def release(self) -> None:
        """Let go of it; again does nothing."""
        view, self._view = self._view, None
        if view is not None:
            ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))

    def __enter__(self) -> Self:
        """Use as a context manager; `release` at its end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of it."""
        self.release()


def check_advice(advice: int) -> None:
    """Make sure that there is such an advice.

    Raises:
        CommandError: there is none.
    """
    if advice not in (MADV_MERGEABLE, MADV_UNMERGEABLE):
        raise CommandError(
            f"there is no advice {advice!r}", hint="MADV_MERGEABLE or MADV_UNMERGEABLE"
        )


def check_mergeable(address: int, length: int, pool_name: str | None = None) -> None:
    """Make sure that there is something that can be merged in a range of this process.

    madvise(2) returns 0 where it can do nothing; here the reason is said.

    Args:
        address: the first byte.
        length: bytes.
        pool_name: how the name of a mapping begins that is merged already.

    Raises:
        RejectedError: none of the mappings in it can be merged.
    """
    end = address + length
    inside = [vma for vma in read_maps(os.getpid()) if vma.start < end and address < vma.end]
    obstacles = [
        None if pool_name and vma.path.startswith(pool_name) else _obstacle(vma) for vma in inside
    ]
    if all(obstacles):
        why, hint = obstacles[0] or ("it is not mapped", None)
        raise RejectedError(f"this memory can't be merged: {why}", hint=hint, errno=errno.EINVAL)


def _obstacle(vma: Vma) -> tuple[str, str | None] | None:
    """Say why a mapping can't be merged, and the way out; None where it can."""
    if vma.path.startswith(_HUGETLB_NAMES):
        return "it is in pages of hugetlbfs", "use ordinary memory; transparent huge pages are fine"
    if not vma.is_private:
        return (
            "it is a shared mapping (MAP_SHARED)",
            "map it private: mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)",
        )
    if vma.inode and "w" not in vma.perms:
        return (
            f"it is a read-only mapping of {vma.path}",
            "all who map the file share its pages already; nothing is to be gained",
        )
    return None
