"""Images of memory and ELF cores, made of real bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

PAGE = 4096

__all__ = ["PAGE", "page_of", "write_core", "write_image"]


def page_of(number: int) -> bytes:
    """A page that is equal to another only where the number is; 0 is all zero."""
    return struct.pack("<Q", number) * (PAGE // 8)


def write_image(path: Path, numbers: Iterable[int]) -> Path:
    """A raw image of pages with these contents."""
    path.write_bytes(b"".join(map(page_of, numbers)))
    return path


def write_core(
    path: Path,
    segments: Iterable[tuple[int, Iterable[int]]],
    *,
    kind: int = 4,
    names: dict[int, str] | None = None,
) -> Path:
    """A 64-bit ELF core with a PT_LOAD for each (address, contents), and an NT_FILE note."""
    loads = [(address, b"".join(map(page_of, numbers))) for address, numbers in segments]
    note = b""
    if names is not None:
        table = b"".join(struct.pack("<QQQ", start, start + PAGE, 0) for start in names)
        body = struct.pack("<QQ", len(names), PAGE) + table
        body += b"".join(name.encode() + b"\0" for name in names.values())
        note = struct.pack("<III", 5, len(body), 0x46494C45) + b"CORE\0\0\0\0" + body
        note += bytes(-len(body) % 4)
    count = len(loads) + 1
    offset = 64 + 56 * count
    headers = [struct.pack("<IIQQQQQQ", 4, 0, offset, 0, 0, len(note), 0, 4)]
    offset += len(note)
    for address, data in loads:
        headers.append(
            struct.pack("<IIQQQQQQ", 1, 6, offset, address, 0, len(data), len(data), PAGE)
        )
        offset += len(data)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", kind, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    path.write_bytes(head + b"".join(headers) + note + b"".join(data for _, data in loads))
    return path
