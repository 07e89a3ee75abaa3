"""What users see of the types; mypy checks the functions that are never called."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import assert_type

import pagemerge


def test_the_package_says_that_it_is_typed() -> None:
    assert (files("pagemerge") / "py.typed").is_file()


def check_connecting() -> None:
    assert_type(pagemerge.connect(), pagemerge.Ksm)
    assert_type(pagemerge.connect(runtime_dir=Path("/tmp/x")), pagemerge.EngineKsm)
    assert_type(pagemerge.connect("engine"), pagemerge.EngineKsm)
    assert_type(pagemerge.connect("kernel"), pagemerge.Ksm)
    pagemerge.connect("windows")  # type: ignore[call-overload]


def check_reading(ksm: pagemerge.Ksm) -> None:
    assert_type(ksm.knobs["run"], int | str | None)
    assert_type(ksm.counters(), dict[str, int | None])
    assert_type(ksm.processes(), list[pagemerge.Process])
    assert_type(ksm.processes()[0].ksm_process_profit, int | None)
    assert_type(ksm.regions(1)[0].merged_bytes, int | None)
    for event in ksm.events(seconds=1.0):
        assert_type(event, pagemerge.Event | pagemerge.LostEvents)
    with ksm as same:
        assert_type(same, pagemerge.Ksm)


def check_writing(ksm: pagemerge.Ksm) -> None:
    ksm.knobs.set(run=1, advisor_mode="none", smart_scan=True)
    ksm.knobs.set(run=1.5)  # type: ignore[arg-type]
    ksm.knobs["run"] = 1  # type: ignore[index]


def check_own_memory(buffer: bytearray) -> None:
    assert_type(pagemerge.madvise(buffer), int)
    assert_type(pagemerge.madvise(buffer, pagemerge.MADV_UNMERGEABLE), int)
    assert_type(pagemerge.madvise(buffer, ksm="kernel"), int)
    assert_type(pagemerge.is_enabled(), bool)
    assert_type(pagemerge.is_enabled(ksm="engine"), bool)
    pagemerge.enable(ksm="windows")  # type: ignore[arg-type]
    with pagemerge.sealed(buffer) as handle:
        assert_type(handle, pagemerge.Sealed)
        assert_type(handle.length, int)
