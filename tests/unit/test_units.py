"""Amounts and durations, to text and back."""

from __future__ import annotations

import math

import pytest

from pagemerge.errors import FormatError
from pagemerge.units import (
    parse_bytes,
    parse_duration,
    render_bytes,
    render_duration,
    render_percent,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1k", 1024),
        ("1 KiB", 1024),
        ("1KB", 1024),
        ("1.5M", 3 * 2**19),
        (" 2 GiB ", 2**31),
        (".5k", 512),
    ],
)
def test_amounts_are_read_in_powers_of_1024(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "k", "-1", "1 kk", "1e3", "1 2", "0x10", "1..2"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="no amount") as caught:
        parse_bytes(text)
    assert caught.value.hint


@pytest.mark.parametrize("count", [0, 1, 4096, 2**62 + 1])
def test_an_exact_amount_of_any_size_is_kept_exactly(count: int) -> None:
    assert parse_bytes(str(count)) == count


@pytest.mark.parametrize(
    ("text", "seconds"), [("20ms", 0.02), ("2", 2.0), ("1.5s", 1.5), ("2 min", 120.0), ("1h", 3600)]
)
def test_durations_are_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1 fortnight", "1 M"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="no duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (-(2**20), "-1.00 MiB"),
        (100 * 2**30, "100 GiB"),
        (2**70, "1048576 PiB"),
    ],
)
def test_amounts_are_written_with_three_figures(count: int, text: str) -> None:
    assert render_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (3e-9, "3 ns"),
        (0.02, "20 ms"),
        (59.0, "59.0 s"),
        (60, "1 min 00 s"),
        (90000, "1 d 01 h"),
        (-0.5, "-500 ms"),
        (math.inf, "never"),
    ],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert render_duration(seconds) == text


def test_a_share_of_nothing_is_a_dash() -> None:
    assert render_percent(5, 0) == "-"
