"""Lists of any length, laid out without rich."""

from __future__ import annotations

from pagemerge.views.terminal import render_list

COLUMNS = ("pid", "size", "zero", "name")
ROWS = (("7", "4.00 KiB", "-", "/usr/lib/x86_64-linux-gnu/libc.so.6"), ("123", "1", "-", "[heap]"))


def test_columns_line_up_and_those_that_say_nothing_are_left_out() -> None:
    assert render_list(COLUMNS, ROWS, left=("name",)) == [
        "pid      size  name",
        "  7  4.00 KiB  /usr/lib/x86_64-linux-gnu/libc.so.6",
        "123         1  [heap]",
    ]


def test_no_line_is_wider_than_the_screen_and_a_path_keeps_its_end() -> None:
    lines = render_list(COLUMNS, ROWS, left=("name",), width=40)
    assert max(map(len, lines)) == 40
    assert lines[1].endswith("…6_64-linux-gnu/libc.so.6")


def test_columns_that_can_be_spared_go_before_the_last_is_shortened_too_far() -> None:
    lines = render_list(COLUMNS, ROWS, left=("name",), spare=("size",), width=30)
    assert lines[0] == "pid  name"
    assert max(map(len, lines)) == 30


def test_a_name_cannot_move_the_cursor() -> None:
    assert render_list(("comm",), [("a\x1b[2Jb\n",)], left=("comm",)) == ["comm", "a?[2Jb?"]


def test_a_list_without_rows_has_its_head() -> None:
    assert render_list(COLUMNS, [], left=("name",)) == ["pid  size  zero  name"]
