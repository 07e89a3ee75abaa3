"""What a trace comes to, its lines, and its Perfetto file, from events made up for it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pagemerge.errors import CommandError
from pagemerge.ksm import Event, LostEvents
from pagemerge.views.perfetto import PerfettoFile
from pagemerge.views.trace import event_data, print_summary, render_event
from pagemerge.views.trace_summary import TraceSummary

MERGE, ZERO = "ksm_merge_with_ksm_page", "ksm_merge_one_page"
EVENTS: list[Event | LostEvents] = [
    Event("ksm_start_scan", 10.0, {"seq": 4, "rmap_entries": 100}),
    Event(MERGE, 10.1, {"pfn": 7, "mm": 0xABC, "err": 0}, 20, "lookup"),
    Event(MERGE, 10.2, {"pfn": 7, "mm": 0xABC, "err": 0}, 20, "lookup"),
    Event(MERGE, 10.3, {"pfn": 7, "mm": 0xABC, "err": -14}, 20, "lookup"),
    Event(ZERO, 10.4, {"pfn": 1, "mm": 0xDEF, "err": 0}),
    Event("ksm_advisor", 10.5, {"scan_time": 2, "pages_to_scan": 900, "cpu_percent": 30}),
    Event("ksm_stop_scan", 12.0, {"seq": 4, "rmap_entries": 100}),
    Event("ksm_remove_rmap_item", 12.1, {"pfn": 7, "mm": 0xABC}, 20, "lookup"),
    Event("ksm_remove_ksm_page", 12.2, {"pfn": 7}),
    LostEvents(5),
    Event("ksm_stop_scan", 14.0, {"seq": 5, "rmap_entries": 100}),
]


def name_of(pid: int) -> str | None:
    return {20: "redis"}.get(pid)


def summarize(events: list[Event | LostEvents]) -> TraceSummary:
    summary = TraceSummary()
    for event in events:
        summary.add(event)
    return summary


def test_a_summary_counts_merges_failures_passes_and_losses() -> None:
    data = summarize(EVENTS).to_dict()
    assert (data["events"], data["lost"], data["seconds"]) == (10, 5, 4.0)
    assert (data["merged"], data["zeroed"], data["failed"]) == (2, 1, {"EFAULT": 1})
    # the second end has no beginning: what came before it was lost
    assert data["passes"]["count"] == 1
    assert data["passes"]["mean_seconds"] == pytest.approx(2.0)
    assert data["advice"]["pages_to_scan"] == 900
    assert data["how"] == {"lookup": 4}
    assert data["processes"] == [
        {"pid": 20, "merged": 2, "zeroed": 0, "failed": {"EFAULT": 1}, "removed": 1},
        {"pid": None, "merged": 0, "zeroed": 1, "failed": {}, "removed": 0},
    ]


def test_a_pass_over_which_events_were_lost_has_no_duration() -> None:
    start, stop = EVENTS[0], EVENTS[6]
    assert summarize([start, LostEvents(1), stop]).passes.count == 0


def test_the_rate_of_now_forgets_what_is_long_ago() -> None:
    summary = summarize(EVENTS)
    assert summary.recent_rate(10.5) == 1.5  # three in two seconds
    assert summary.recent_rate(20.0) == 0.0


def test_a_summary_is_printed() -> None:
    file = io.StringIO()
    print_summary(summarize(EVENTS), name_of, file)
    assert file.getvalue().splitlines() == [
        "events    10 in 4.00 s, 5 lost",
        "merges    2, and 1 into the zero page; 1/s",
        "failed    EFAULT 1",
        "passes    1, 2.00 s each (2.00 s to 2.00 s)",
        "advisor   1 decisions, the last: pages_to_scan 900 after a pass of 2 s, 30 % of a CPU",
        "given up  1 shared pages",
        "known by  lookup 4",
        "pid  merged  zeroed  failed  removed  comm",
        " 20       2       0       1        1  redis",
        "  -       0       1       0        0  unknown",
    ]


def test_a_line_says_who_and_how_it_is_known() -> None:
    lines = [" ".join(render_event(event, name_of).split()) for event in EVENTS]
    assert lines[0] == "10.000000 ksm_start_scan seq=4 rmap_entries=100"
    assert lines[3] == (
        "10.300000 ksm_merge_with_ksm_page 20 redis (lookup) pfn=7 mm=0xabc err=-14 (EFAULT)"
    )
    assert lines[9] == "5 events were lost"


def test_a_json_line_is_flat_and_losses_stand_alone() -> None:
    assert event_data(EVENTS[1], name_of) == {
        "event": MERGE,
        "time": 10.1,
        "pid": 20,
        "comm": "redis",
        "how": "lookup",
        "pfn": 7,
        "mm": 0xABC,
        "err": 0,
    }
    assert event_data(EVENTS[0], name_of) == {
        "event": "ksm_start_scan",
        "time": 10.0,
        "pid": None,
        "how": None,
        "seq": 4,
        "rmap_entries": 100,
    }
    assert event_data(LostEvents(5), name_of) == {"lost": 5}


def read_events(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return found


def test_a_perfetto_file_is_whole_after_every_write(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with PerfettoFile(path, name_of, ksmd=37) as file:
        assert {event["ph"] for event in read_events(path)} == {"M"}
        for event in EVENTS:
            file.add(event)
            file.flush()
            read_events(path)
    events = read_events(path)
    assert [event["ts"] for event in events] == sorted(event["ts"] for event in events)
    phases = [(event["ph"], event["name"], event["pid"]) for event in events]
    assert phases.count(("B", "pass", 37)) == phases.count(("E", "pass", 37)) == 1
    assert phases.count(("i", "merge", 20)) == 2
    assert ("i", "merge: EFAULT", 20) in phases
    assert ("i", "zero page", 37) in phases
    assert ("C", "advisor", 37) in phases
    assert ("i", "5 events lost", 37) in phases
    assert ("M", "process_name", 20) in phases
    counters = [e["args"]["pages"] for e in events if e["ph"] == "C" and e["pid"] == 20]
    assert counters[-1] == 2


def test_a_pass_that_has_not_ended_is_closed_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with PerfettoFile(path, name_of) as file:
        file.add(EVENTS[0])
        file.add(EVENTS[1])
    (end,) = [event for event in read_events(path) if event["ph"] == "E"]
    assert end["args"] == {"unfinished": True}
    assert end["ts"] == 10.1e6


def test_pointers_stay_exact_for_readers_that_take_numbers_for_floating_point(
    tmp_path: Path,
) -> None:
    path = tmp_path / "trace.json"
    with PerfettoFile(path, name_of) as file:
        fields = {"mm": 0xFFFF88813F5C1440, "pfn": 3022239, "err": 0}
        file.add(Event(MERGE, 10.0, fields, 20, "lookup"))
    (args,) = [event["args"] for event in read_events(path) if event["ph"] == "i"]
    assert (args["mm"], args["pfn"]) == ("0xffff88813f5c1440", 3022239)
    assert 0 not in {event["pid"] for event in read_events(path)}  # to Perfetto the idle task


def test_many_events_are_written_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with PerfettoFile(path, name_of) as file:
        for number in range(5000):
            file.add(Event(MERGE, 10 + number / 1000, {"pfn": number, "err": 0}, 20, "lookup"))
        written = [event["args"]["pfn"] for event in read_events(path) if event["ph"] == "i"]
        assert 1000 < len(written) < 5000
    assert sum(event["ph"] == "i" for event in read_events(path)) == 5000
    assert sum(event["ph"] == "C" for event in read_events(path)) < 600  # no more than it takes


def test_a_perfetto_file_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="can't be written: No such file or directory"):
        PerfettoFile(tmp_path / "none/trace.json", name_of)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(CommandError, match="No space left"):
        PerfettoFile(Path("/dev/full"), name_of)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
