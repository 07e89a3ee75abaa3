"""What may be written into a knob, and what may not: tried on the parser and on the kernel."""

from __future__ import annotations

__all__ = ["TEXTS", "WORDS"]

TEXTS = (
    "0",
    "1",
    "2",
    "3",
    "+1",
    "++1",
    "-1",
    "-99999999999999999999",
    "007",
    "1\n",
    "1\n\n",
    "\n",
    " 1",
    "1 ",
    "0x1",
    "1.5",
    "1e3",
    "y",
    "N",
    "t",
    "F",
    "on",
    "ON",
    "off",
    "oh",
    "o",
    "yes please",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "99999999999999999999999x",
    "17x",
    "³",
)
WORDS = ("none", "scan-time", "scan-time\n", "none\n\n", "Scan-Time", "scan", "")
