"""The quick reader of smaps gives what the line-by-line reader gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pagemerge.memory import parse_smaps, parse_smaps_rows
from pagemerge.memory.smaps import _parse_any

NAMES = ("Size", "Rss", "Pss", "KSM", "Swap", "THPeligible", "ProtectionKey")


@st.composite
def mapping(draw: st.DrawFn, names: tuple[str, ...]) -> str:
    start = draw(st.integers(0, 2**35)) * 4096
    size = draw(st.integers(1, 2**20)) * 4096
    path = draw(st.sampled_from(["", "[heap]", "/lib/a: b", "/Rss: 1 kB", "VmFlags"]))
    lines = [f"{start:x}-{start + size:x} rw-p 00000000 00:00 0 {path}".rstrip()]
    for name in names:
        unit = "" if name in ("THPeligible", "ProtectionKey") else " kB"
        lines.append(f"{name + ':':16} {draw(st.integers(0, 2**40)):>8}{unit}")
    flags = draw(st.lists(st.sampled_from(["rd", "wr", "mg", "ac"]), unique=True))
    lines.append(f"VmFlags: {' '.join(flags)} ")
    return "\n".join(lines) + "\n"


@st.composite
def smaps(draw: st.DrawFn) -> str:
    same = tuple(draw(st.lists(st.sampled_from(NAMES), unique=True)))
    ways = st.just(same) if draw(st.booleans()) else st.lists(st.sampled_from(NAMES), unique=True)
    count = draw(st.integers(0, 6))
    return "".join(draw(mapping(tuple(draw(ways)))) for _ in range(count))


@given(smaps())
def test_both_readers_agree(text: str) -> None:
    assert parse_smaps(text) == list(_parse_any(text.splitlines()))


@given(smaps(), st.lists(st.sampled_from(NAMES), unique=True))
def test_the_reader_of_some_sizes_agrees_with_the_reader_of_all(
    text: str, names: list[str]
) -> None:
    rows = list(parse_smaps_rows(text, names))
    assert [(row.vma, row.flags) for row in rows] == [
        (smap.vma, smap.flags) for smap in parse_smaps(text)
    ]
    assert [row.sizes for row in rows] == [
        tuple(map(smap.sizes.get, names)) for smap in parse_smaps(text)
    ]
