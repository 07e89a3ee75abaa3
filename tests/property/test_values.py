"""Numbers and texts survive the way there and back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pagemerge.errors import FormatError, RejectedError
from pagemerge.ksm import KNOBS, Knob, Type, parse_knob, parse_shown, render_knob
from pagemerge.units import parse_bytes, parse_duration, render_bytes


@given(st.integers(0, 2**63))
def test_an_amount_written_for_people_is_right_to_three_figures(count: int) -> None:
    again = parse_bytes(render_bytes(count))
    assert abs(again - count) <= 0.005 * count + 1


@given(st.text())
def test_any_text_is_an_amount_or_refused(text: str) -> None:
    for parse in (parse_bytes, parse_duration):
        try:
            assert parse(text) >= 0
        except FormatError:
            continue


@given(st.sampled_from(KNOBS), st.text() | st.integers().map(str))
def test_what_a_knob_accepts_it_shows_and_accepts_again(knob: Knob, text: str) -> None:
    try:
        value = parse_knob(knob, text)
    except RejectedError:
        return
    shown = f"[{value}] x" if knob.type is Type.CHOICE else f"{value}\n"
    assert parse_shown(knob, shown) == value
    assert parse_knob(knob, render_knob(value)) == value
