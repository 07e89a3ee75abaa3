"""What kind of content a page has, in words that give nothing of it away."""

from __future__ import annotations

import os

from pagemerge.errors import PagemergeError
from pagemerge.insight.census import Space, SpaceRegion
from pagemerge.memory.contents import read_contents
from pagemerge.units import PAGE_SIZE

__all__ = ["describe_contents", "describe_page"]

_TEXT = frozenset(b"\t\n\r" + bytes(range(32, 127)))


def describe_page(page: bytes) -> str:
    r"""Describe a page: one value repeated, text, mostly zero, or data.

    >>> describe_page(b"*" * 4096), describe_page(b"some words\n" * 372 + bytes(4))
    ('every byte 0x2a', 'text')
    """
    if not page:
        return ""
    if page.count(page[0]) == len(page):
        return f"every byte 0x{page[0]:02x}"
    for width in (2, 4, 8, 16):
        if page == page[:width] * (len(page) // width):
            return f"{width} bytes repeated"
    filled = len(page) - page.count(0)
    if filled * 20 < len(page):
        return "one byte that is not zero" if filled == 1 else f"{filled} bytes that are not zero"
    if sum(byte in _TEXT for byte in page) > 0.9 * filled:
        return "text"
    return "data"


def describe_contents(space: Space, region: SpaceRegion, page: int) -> str:
    """Describe the page with that number in its address space; nothing where it can't be read."""
    address = page * PAGE_SIZE
    try:
        if space.target.path is None:
            return describe_page(read_contents(space.target.pid, address, PAGE_SIZE))
        offset = region.offset + address - region.start
        return describe_page(os.pread(space.fd, PAGE_SIZE, offset))
    except (PagemergeError, OSError):
        return ""
