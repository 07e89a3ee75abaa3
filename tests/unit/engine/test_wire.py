from __future__ import annotations

import re
from pathlib import Path

import pytest

from pagemerge.engine import wire

HEADER = Path(__file__).parents[3] / "native/core/protocol.h"


def in_header(prefix: str) -> dict[str, int]:
    """The constants of the C header that begin with a prefix."""
    pattern = rf"\bPM_{prefix}([A-Z_]+) = (\d+u << \d+|\d+)"
    found = {}
    for name, value in re.findall(pattern, HEADER.read_text()):
        number, _, shift = value.partition("u << ")
        found[name] = int(number) << int(shift or 0)
    return found


@pytest.mark.parametrize(
    ("prefix", "enum"),
    [
        ("FD_", wire.HelloFd),
        ("HELLO_", wire.HelloFlag),
        ("BARRIER_", wire.Barrier),
        ("MARK_", wire.Mark),
    ],
)
def test_the_numbers_are_those_of_the_header(prefix: str, enum: type) -> None:
    assert in_header(prefix) == {item.name: item.value for item in enum}  # type: ignore[attr-defined]


def test_the_kinds_of_messages_are_those_of_the_header() -> None:
    numbers = in_header("")
    assert {kind.name: kind.value for kind in wire.Kind} == {
        name: numbers[name] for name in wire.Kind.__members__
    }


def test_a_welcome_is_well_formed() -> None:
    datagram = wire.render_welcome(1234)
    assert wire.parse_header(datagram) == (wire.Kind.WELCOME, 1, 0)
    assert len(datagram) == 32
