"""The client of the control socket, against the daemon's own server with verbs of the test's."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pagemerge.engine.client import EngineKsm, daemon_answers
from pagemerge.engine.settings import Settings
from pagemerge.errors import CommandError, EngineError, ProcessGoneError, RejectedError
from pagemerge.ksm import COUNTERS, Change, Event, LostEvents
from tests.support.control_server import serving, short_folder, status_of


@pytest.fixture
def runtime() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


@contextlib.contextmanager
def talking(runtime: Path, **verbs: Any) -> Iterator[EngineKsm]:
    with serving(runtime, **verbs), EngineKsm(runtime) as ksm:
        yield ksm


def fail(error: Exception) -> Callable[[dict[str, Any]], Any]:
    def verb(_request: dict[str, Any]) -> Any:
        raise error

    return verb


def test_no_daemon_is_said_with_the_way_out(runtime: Path) -> None:
    with pytest.raises(EngineError, match="no daemon is running") as caught:
        EngineKsm(runtime).counters()
    assert "pagemerge daemon" in str(caught.value.hint)
    assert not daemon_answers(runtime)


def test_counters_the_daemon_lacks_read_as_none(runtime: Path) -> None:
    with talking(runtime, status=status_of(Settings(), pages_sharing=9)) as ksm:
        counters = ksm.counters()
    assert list(counters) == [counter.name for counter in COUNTERS]
    assert (counters["pages_sharing"], counters["pages_skipped"]) == (9, None)


def test_knobs_are_a_mapping_and_set_checks_before_it_asks(runtime: Path) -> None:
    settings = Settings()
    asked: list[Any] = []

    def set_knobs(request: dict[str, Any]) -> Any:
        asked.append(request["values"])
        settings.apply(request["values"], 0)
        return settings.values()

    with talking(runtime, status=status_of(settings, pages_shared=4), set=set_knobs) as ksm:
        assert ksm.knobs["advisor_mode"] == "none"
        assert "pages_to_scan" in ksm.knobs
        assert "nonsense" not in ksm.knobs
        with pytest.raises(KeyError):
            ksm.knobs["nonsense"]
        with pytest.raises(RejectedError, match="EBUSY"):
            ksm.knobs.set(pages_to_scan=5, max_page_sharing=17)
        with pytest.raises(CommandError):
            ksm.knobs.plan(nonsense=1)
        assert not asked
        assert ksm.knobs.set(pages_to_scan=5, use_zero_pages=True) == [
            Change("pages_to_scan", 5000, 5),
            Change("use_zero_pages", 0, 1),
        ]
        assert asked == [{"pages_to_scan": "5", "use_zero_pages": "1"}]
        assert ksm.knobs["use_zero_pages"] == 1


@pytest.mark.parametrize(
    "error",
    [
        RejectedError("too large (ERANGE)", hint="smaller", errno=errno.ERANGE),
        CommandError("no such thing"),
        EngineError("not a client", hint="preload"),
        ProcessGoneError(123),
    ],
)
def test_an_error_of_the_daemon_arrives_as_it_was(runtime: Path, error: Exception) -> None:
    with talking(runtime, enable=fail(error)) as ksm, pytest.raises(type(error)) as caught:
        ksm.enable(1)
    assert str(caught.value) == str(error)
    for name in ("hint", "errno", "pid"):
        assert getattr(caught.value, name, None) == getattr(error, name, None)


def test_a_new_daemon_is_found_by_an_old_client(runtime: Path) -> None:
    ksm = EngineKsm(runtime)
    for sharing in (1, 2):
        with serving(runtime, status=status_of(Settings(), pages_sharing=sharing)):
            assert ksm.counters()["pages_sharing"] == sharing
    with pytest.raises(EngineError, match="no daemon is running"):
        ksm.counters()


def test_processes_keep_what_only_the_engine_knows(runtime: Path) -> None:
    row = {
        "pid": 5,
        "comm": "redis",
        "ksm_merging_pages": 10,
        "ksm_merge_any": True,
        "barrier": "uffd",
    }
    with talking(runtime, processes=lambda _request: [row]) as ksm:
        (process,) = ksm.processes()
    assert (process.comm, process.ksm_merging_pages, process.ksm_zero_pages) == ("redis", 10, None)
    assert process.own == {"barrier": "uffd"}


def test_regions_are_in_bytes(runtime: Path) -> None:
    row = {
        "start": 4096,
        "end": 16384,
        "pages": 3,
        "merged_bytes": 8192,
        "zero_bytes": 0,
        "unshared_pages": 1,
        "name": "[heap]",
    }
    with talking(runtime, regions=lambda request: [row] * request["pid"]) as ksm:
        (region,) = ksm.regions(1)
    assert (region.merged_bytes, region.unshared_pages, region.name) == (8192, 1, "[heap]")


def test_events_come_with_those_that_were_lost(runtime: Path) -> None:
    line = {"event": "ksm_stop_scan", "time": 1.5, "seq": 3, "rmap_entries": 9}
    with serving(runtime, events=lambda _request: {}) as server, EngineKsm(runtime) as ksm:
        server.publish([line])
        events = ksm.events(30)
        with contextlib.closing(events):
            assert next(events) == LostEvents(3)
            assert next(events) == Event("ksm_stop_scan", 1.5, {"seq": 3, "rmap_entries": 9})


def test_events_end_when_their_time_is_over(runtime: Path) -> None:
    with talking(runtime, events=lambda _request: {}) as ksm:
        assert list(ksm.events(0.05)) == []
