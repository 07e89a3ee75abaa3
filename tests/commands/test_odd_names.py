"""estimate and advise where names move a cursor, end a line, are HTML, or are no UTF-8."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pagemerge.commands import main
from pagemerge.insight import estimate, find_targets
from tests.support.images import write_image

_ODD = b"<script>\x1b[31m\xff\n[bold]"


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Two with the same 200 pages, one of them zero."""
    names = (os.fsdecode(_ODD + bytes([48 + i])) for i in range(2))
    return [str(write_image(tmp_path / name, [0, *range(1, 200)])) for name in names]


@pytest.mark.parametrize("command", [["estimate"], ["advise"], ["advise", "--code", "c"]])
def test_names_neither_move_the_cursor_nor_end_a_line(
    images: list[str], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *images]) == 0
    captured = capsys.readouterr()
    assert "<script>?[31m??[bold]" in captured.out
    for text in (captured.out, captured.err):
        assert "\x1b" not in text
        assert not any(line.startswith("[bold]") for line in text.splitlines())


def test_the_page_with_plots_takes_any_name(images: list[str], tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    assert main(["estimate", *images, "--html", str(report)]) == 0
    text = report.read_text(encoding="utf-8")
    assert "&lt;script&gt;" in text
    assert "<script>" not in text
    assert "\x1b" not in text


def test_json_has_the_names_as_they_are(
    images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", *images, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {os.fsencode(row["command"]) for row in data["processes"]} == {_ODD + b"0", _ODD + b"1"}


def test_columns_hold_text_that_every_format_takes(images: list[str]) -> None:
    result = estimate(find_targets(files=images))
    names = [str(name) for name in result.columns("processes")["command"]]
    assert [name.encode("utf-8") for name in names] == [
        _ODD.replace(b"\xff", b"\\xff") + digit for digit in (b"0", b"1")
    ]


def test_a_read_that_fails_leaves_no_empty_page(images: list[str], tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    assert main(["estimate", f"{images[0]}-not", "--html", str(report)]) == 1
    assert not report.exists()
    report.write_text("of before")
    assert main(["estimate", f"{images[0]}-not", "--html", str(report)]) == 1
    assert report.read_text() == "of before"


def test_an_empty_word_is_no_folder(images: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", images[0], ""]) == 2
    assert "a target is empty" in capsys.readouterr().err
