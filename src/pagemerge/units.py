"""Pages, bytes and durations, to text and back."""

from __future__ import annotations

import math
import mmap
import re
from typing import Final

from pagemerge.errors import FormatError

__all__ = [
    "PAGE_SIZE",
    "pages_to_bytes",
    "parse_bytes",
    "parse_duration",
    "render_bytes",
    "render_count",
    "render_duration",
    "render_name",
    "render_percent",
]

PAGE_SIZE: Final[int] = mmap.PAGESIZE  # bytes

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_BYTE_FACTORS: Final[dict[str, int]] = {
    "": 1,
    "b": 1,
    **{
        f"{letter}{end}": 1 << 10 * i
        for i, letter in enumerate("kmgtp", 1)
        for end in ("", "b", "ib")
    },
}
_SECONDS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "": 1.0,
    "s": 1.0,
    "min": 60.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Zµ]*)\s*")


def pages_to_bytes(pages: int) -> int:
    """Give the bytes that many pages hold."""
    return pages * PAGE_SIZE


def parse_bytes(text: str) -> int:
    """Read an amount of memory; K, M, G (KB, KiB, ...) are powers of 1024, as in the kernel.

    >>> parse_bytes("64 MiB"), parse_bytes("1.5k"), parse_bytes("4096")
    (67108864, 1536, 4096)

    Raises:
        FormatError: the text is no amount of memory.
    """
    match = _QUANTITY.fullmatch(text)
    factor = _BYTE_FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise FormatError(
            f"{text!r} is no amount of memory", hint="write it like 4096, 512K, 64MiB or 1.5G"
        )
    return round(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def parse_duration(text: str) -> float:
    """Read a duration, in seconds; a bare number is seconds.

    >>> parse_duration("20ms"), parse_duration("1.5 min"), parse_duration("3")
    (0.02, 90.0, 3.0)

    Raises:
        FormatError: the text is no duration.
    """
    match = _QUANTITY.fullmatch(text)
    factor = _SECONDS.get(match[2]) if match else None
    if match is None or factor is None:
        raise FormatError(f"{text!r} is no duration", hint="write it like 20ms, 1.5s, 2min or 1h")
    return float(match[1]) * factor


def render_bytes(count: int) -> str:
    """Write an amount of memory for people, with three figures.

    >>> render_bytes(40_320), render_bytes(-67_108_864), render_bytes(64)
    ('39.4 KiB', '-64.0 MiB', '64 B')
    """
    size = abs(count)
    power = min(max((size.bit_length() - 1) // 10, 0), len(_BINARY) - 1)
    sign = "-" if count < 0 else ""
    if power == 0:
        return f"{sign}{size} B"
    value = size / 1024**power
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    # "64.0" rather than "64": a fixed number of figures keeps columns readable
    return f"{sign}{value:.{digits}f} {_BINARY[power]}"


def render_count(count: int) -> str:
    """Write a count with its thousands apart.

    >>> render_count(1234567)
    '1,234,567'
    """
    return f"{count:,}"


def render_duration(seconds: float) -> str:
    """Write a duration for people.

    >>> render_duration(0.00025), render_duration(1.5), render_duration(3725)
    ('250 µs', '1.50 s', '1 h 02 min')
    """
    if seconds < 0:
        return "-" + render_duration(-seconds)
    if not math.isfinite(seconds):
        return "never"
    for limit, factor, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}" if seconds else "0 s"
    if seconds < 59.95:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"


def render_percent(part: float, whole: float) -> str:
    """Write a share in per cent; a dash where there is no whole.

    >>> render_percent(1, 3), render_percent(1, 0)
    ('33.3 %', '-')
    """
    return f"{100 * part / whole:.1f} %" if whole else "-"


def render_name(text: str) -> str:
    r"""Take out of a name what would move a terminal's cursor: a process may call itself anything.

    >>> render_name("\x1b[31mx\n")
    '?[31mx?'
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
