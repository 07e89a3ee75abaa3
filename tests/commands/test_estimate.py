"""estimate and advise, over images of memory."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pagemerge.commands import main
from tests.support.images import write_image


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Two that have 99 pages in common, one each of their own, and two zero pages."""
    contents = ([*range(1, 100), 1000 + i, 0, 0] for i in range(2))
    return [str(write_image(tmp_path / f"{i}.raw", numbers)) for i, numbers in enumerate(contents)]


def test_estimate_prints_totals_and_who_shares(
    images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", *images, "--use-zero-pages", "0", "--max-page-sharing", "256"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("merging would save 408 KiB of 816 KiB (50.0 %)")
    assert re.search(r"^pages_sharing +102 ", out, re.MULTILINE)
    assert "shared by command" not in out  # it would say the same
    assert "shared by process" in out


def test_json_follows_the_knobs_that_are_assumed(
    images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for use in "01":
        assert main(["estimate", *images, "--json", "--use-zero-pages", use]) == 0
        data = json.loads(capsys.readouterr().out)
        found.append((data["pages_shared"], data["pages_sharing"], data["ksm_zero_pages"]))
    assert found == [(100, 102, 0), (99, 99, 4)]


def test_a_sample_comes_with_intervals(
    images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", *images, "--json", "--sample", "1/4"]) == 0
    data = json.loads(capsys.readouterr().out)
    interval = data["intervals"]["pages_sharing"]
    assert data["sample"] == 4
    assert interval["low"] < data["pages_sharing"] < interval["high"]


def test_html_is_written_beside(images: list[str], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert main(["estimate", *images, "--html", str(path)]) == 0
    assert path.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("share", ["0/4", "2/4", "x", "1/", "-1"])
def test_a_share_that_is_none_is_refused(
    images: list[str], share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", *images, f"--sample={share}"]) == 2
    assert "1/16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["estimate"], "nothing to look at"),
        (["estimate", "4194305"], "no process 4194305"),
        (["estimate", "--name", "no-such-program-*"], "no process is called"),
        (["estimate", "--unit", "no-such-unit"], "no"),
        (["advise", "1", "--share", "much"], "no share"),
        (["advise", "1", "--json", "--code", "c"], "exclude each other"),
    ],
)
def test_what_cannot_be_done_is_said(
    argv: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) in (2, 3)
    captured = capsys.readouterr()
    assert what in captured.err
    assert captured.out == ""


def test_advise_prints_regions_json_and_code(
    images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", *images]) == 0
    assert "2 of 2 regions give" in capsys.readouterr().out
    assert main(["advise", *images, "--json", "--share", "50%"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["share"] == 0.5
    assert data["saved_pages"] == 103
    assert main(["advise", *images, "--code", "rust"]) == 0
    assert "MERGE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("--threads=-1", "threads is -1"),
        ("--pages-to-scan=-3", "pages-to-scan is -3"),
        ("--max-page-sharing=1", "max-page-sharing is 1"),
        ("--top=-1", "at least 0"),
        ("--html=/nowhere/report.html", "No such file"),
        ("--unit=/x", "no running unit /x"),
    ],
)
def test_options_that_make_no_sense_are_named(
    images: list[str], option: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", *images, option]) == 2
    assert what in capsys.readouterr().err


def test_a_ksmd_that_scans_nothing_never_settles(
    images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", *images, "--pages-to-scan", "0"]) == 0
    assert "never" in capsys.readouterr().out
    assert main(["estimate", *images, "--pages-to-scan", "0", "--json"]) == 0
    data = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert data["ksmd"]["settle_seconds"] is None


def test_a_file_of_holes_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    assert main(["estimate", str(path)]) == 0
    assert "nothing but holes" in capsys.readouterr().err
