"""status, set, ps and regions against the daemon's control server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pagemerge.commands import main
from pagemerge.engine.settings import Settings
from pagemerge.ksm import COUNTERS, KNOBS
from tests.support.control_server import serving, short_folder, status_of

PROCESSES = [
    {
        "pid": 11,
        "comm": "small",
        "ksm_merging_pages": 1,
        "ksm_zero_pages": 0,
        "ksm_rmap_items": 5,
        "ksm_process_profit": 4000,
        "ksm_merge_any": False,
        "ksm_mergeable": True,
        "refused": "",
    },
    {
        "pid": 12,
        "comm": "big",
        "ksm_merging_pages": 1024,
        "ksm_zero_pages": 0,
        "ksm_rmap_items": 2048,
        "ksm_process_profit": 4_000_000,
        "ksm_merge_any": True,
        "ksm_mergeable": True,
        "refused": "io_uring",
    },
]
REGIONS = [
    {
        "start": 0x1000,
        "end": 0x3000,
        "pages": 2,
        "merged_bytes": 4096,
        "zero_bytes": 0,
        "unshared_pages": 1,
        "name": "[heap]",
    },
    {
        "start": 0x10000,
        "end": 0x20000,
        "pages": 16,
        "merged_bytes": 65536,
        "zero_bytes": 0,
        "unshared_pages": 0,
        "name": "",
    },
]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The knobs of a control server that is there for the commands."""
    settings = Settings()

    def set_knobs(request: dict[str, Any]) -> Any:
        settings.apply(request["values"], 7)
        return settings.values()

    with short_folder() as folder:
        monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", str(folder))
        with serving(
            folder,
            status=status_of(settings, pages_shared=7, pages_sharing=9, metadata_bytes=1024),
            set=set_knobs,
            processes=lambda _request: PROCESSES,
            regions=lambda _request: REGIONS,
        ):
            yield settings


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_status_as_json_has_every_knob_and_counter_by_its_name(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    status = json.loads(printed(capsys, "status", "--json"))
    assert status["ksm"] == "engine"
    assert status["pages_to_scan"] == settings.pages_to_scan
    assert (status["pages_sharing"], status["pages_skipped"]) == (9, None)
    assert status.keys() == {"ksm", "ksmd", "worth", *(item.name for item in (*KNOBS, *COUNTERS))}
    assert status["ksmd"]["cpu_seconds"] == 0.5


@pytest.mark.usefixtures("settings")
def test_status_for_people_says_what_the_numbers_mean(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "status")
    assert "engine: running" in text
    line = next(line for line in text.splitlines() if line.startswith("pages_sharing"))
    assert line.split()[1:4] == ["9", "36.0", "KiB"]
    assert "\x1b" not in text  # no colours in a pipe


@pytest.mark.usefixtures("settings")
def test_status_loads_nothing_that_it_does_not_need() -> None:
    program = (
        "import sys\n"
        "from pagemerge.commands import main\n"
        "assert main(['status']) == 0\n"
        "print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert "pagemerge.views.status" in loaded
    assert loaded.isdisjoint({"rich", "rich.console", "numpy", "pagemerge.commands.trace"})


def test_a_table_in_a_pipe_is_not_cut_but_obeys_columns(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings
    assert max(map(len, printed(capsys, "status").splitlines())) > 100
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, printed(capsys, "status").splitlines())) <= 60


def test_set_tells_what_it_changed(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "set", "pages_to_scan=77", "smart_scan=on")
    assert text.splitlines() == ["pages_to_scan: 5,000 -> 77", "smart_scan: 1 already"]
    assert settings.pages_to_scan == 77


def test_a_dry_run_changes_nothing(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "set", "--dry-run", "pages_to_scan=77")
    assert text == "pages_to_scan: 5,000 -> 77 (not written)\n"
    assert settings.pages_to_scan == 5000


def test_set_as_json(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    changes = json.loads(printed(capsys, "set", "--json", "advisor_mode=scan-time"))
    assert changes == {"advisor_mode": {"old": "none", "new": "scan-time"}}
    assert settings.pages_to_scan == 500


@pytest.mark.parametrize(
    ("bad", "reason", "hint"),
    [
        ("smart_scan=maybe", "EINVAL", "accepted: 0 or 1"),
        ("max_page_sharing=9", "EBUSY", "unmerge first"),
        ("max_page_sharing=99999999999", "ERANGE", "accepted: a whole number from 2"),
        ("pages_to_scan=-1", "EINVAL", "from 0 to 4294967295"),
    ],
)
def test_one_bad_value_changes_nothing_and_says_why(
    settings: Settings, capsys: pytest.CaptureFixture[str], bad: str, reason: str, hint: str
) -> None:
    assert main(["set", "sleep_millisecs=1", bad]) == 1
    err = capsys.readouterr().err
    assert reason in err
    assert hint in err
    assert settings.sleep_millisecs == 20


@pytest.mark.usefixtures("settings")
def test_ps_lists_the_most_profitable_first(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capsys, "ps", "--json"))
    assert [row["pid"] for row in rows] == [12, 11]
    assert rows[0]["ksm_process_profit"] == 4_000_000
    assert rows[0]["refused"] == "io_uring"
    assert rows[0]["ksm"] == "engine"
    title, _, first, *_ = printed(capsys, "ps").splitlines()
    assert title == "engine: 2 processes with merging on, profit 3.82 MiB in all"
    assert first.split()[0] == "12"
    assert first.endswith("not merged: io_uring")
    assert [row["pid"] for row in json.loads(printed(capsys, "ps", "--json", "--top", "1"))] == [12]


@pytest.mark.usefixtures("settings")
def test_regions_come_by_saving_or_by_address(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capsys, "regions", "12", "--json"))
    assert [row["start"] for row in rows] == [0x10000, 0x1000]
    rows = json.loads(printed(capsys, "regions", "12", "--json", "--by", "address"))
    assert [row["merged_bytes"] for row in rows] == [4096, 65536]
    assert "[heap]" in printed(capsys, "regions", "12")
