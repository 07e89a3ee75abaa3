"""`advise --apply`: regions marked in running processes, and what was really gained."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pagemerge.commands import main
from pagemerge.engine.client import EngineKsm
from pagemerge.insight import Applied, advise, apply_advice, find_targets
from pagemerge.kernel import KernelKsm
from tests.support.engine import EngineDaemon
from tests.support.environment import require
from tests.support.kernel_ksm import KernelKsmControl
from tests.support.processes import Child
from tests.support.victims import agent_env, holder
from tests.support.waiting import wait_until

PAGES = 512


@pytest.fixture(autouse=True)
def _needs() -> None:
    require(os.geteuid() == 0, "root, to make other processes call madvise")
    require(Path("/proc/self/ksm_stat").exists(), "the kernel's KSM with ksm_stat")


def fill(*children: Child) -> list[str]:
    """Give each the same pages; their sums."""
    for child in children:
        child.ask(f"fill seed {PAGES}")
    return [child.ask("sum") for child in children]


def applied_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["advise", "--apply", "--timeout", "5min", "--json", *arguments]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def region_at(applied: dict[str, Any], pid: int, address: int) -> dict[str, Any]:
    return next(
        region
        for region in applied["regions"]
        if region["pid"] == pid and region["start"] <= address < region["end"]
    )


@pytest.mark.ksm
def test_by_the_kernel_what_was_predicted_is_gained(
    kernel_ksm: KernelKsmControl, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel_ksm.write("pages_to_scan", 100_000)
    kernel_ksm.write("sleep_millisecs", 1)
    kernel_ksm.write("run", 1)
    knobs = kernel_ksm.save()
    with holder({}) as one, holder({}) as two:
        sums = fill(one, two)
        pids = [str(one.pid), str(two.pid)]
        done = applied_json(capsys, "--ksm", "kernel", "--share", "80%", *pids)
        assert [child.ask("sum") for child in (one, two)] == sums
        applied = done["applied"]
        for child in (one, two):
            region = region_at(applied, child.pid, int(child.ask("address")))
            assert region["error"] is None
            # a mapping of the interpreter's own may lie beside it, and be part of the region
            assert PAGES <= region["merged_pages"] <= region["predicted_pages"] + 64
    assert applied["ksm"] == "kernel"
    assert applied["is_settled"], applied
    assert applied["passes"] >= 3
    assert applied["saved_pages"] > 0
    assert applied["gained_pages"] == applied["saved_pages"] - applied["saved_before_pages"]
    # each has twins in the other alone: half of what is merged is saved, whoever else merges
    merged = sum(region["merged_pages"] for region in applied["regions"])
    assert applied["saved_pages"] >= PAGES
    assert applied["saved_pages"] <= merged
    assert abs(applied["error_share"]) < 0.25
    assert kernel_ksm.save() == knobs


@pytest.mark.ksm
def test_with_the_kernels_off_it_is_marked_and_said(
    kernel_ksm: KernelKsmControl, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel_ksm.write("run", 0)
    with holder({}) as one, holder({}) as two:
        fill(one, two)
        pids = [str(one.pid), str(two.pid)]
        done = applied_json(capsys, "--ksm", "kernel", "--share", "80%", *pids)
        start = int(one.ask("address"))
        marked = [r for r in KernelKsm().regions(one.pid) if r.start <= start < r.end]
        assert main(["disable", str(one.pid)]) == 0
        said = capsys.readouterr().err
        at = f"{marked[0].start:x}-{marked[0].end:x}"
        assert main(["disable", str(one.pid), "--region", at]) == 0
        assert "by madvise" not in capsys.readouterr().err
        unmarked = [r for r in KernelKsm().regions(one.pid) if r.start <= start < r.end]
    assert marked[0].mergeable
    assert "regions that were marked by madvise" in said
    assert not unmarked[0].mergeable
    applied = done["applied"]
    assert (applied["saved_pages"], applied["error_share"], applied["passes"]) == (None, None, 0)
    assert (
        "run is 0: nothing is merged until 'pagemerge set --ksm kernel run=1'"
        in (applied["notes"][0])
    )
    assert kernel_ksm.read("run") == 0


@pytest.mark.parametrize("connect", [False, True])
def test_by_the_engine_for_its_own_clients(
    connect: bool,
    engine_daemon: EngineDaemon,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", str(engine_daemon.runtime))
    engine_daemon.set(run=1)
    more = {"PAGEMERGE_CONNECT": "1"} if connect else {}
    env = {**agent_env(engine_daemon.runtime), **more}
    with holder(env) as one, holder(env) as two:
        for child in () if connect else (one, two):
            # what brings the agent to the daemon: a page that is marked, and has no twin
            child.ask("unique 1")
            child.ask("mark")
        wait_until(lambda: len(engine_daemon.call("processes")) == 2, "both clients")
        sums = fill(one, two)
        pids = [str(one.pid), str(two.pid)]
        done = applied_json(capsys, "--share", "80%", *pids)
        assert [child.ask("sum") for child in (one, two)] == sums
        applied = done["applied"]
        for child in (one, two):
            region = region_at(applied, child.pid, int(child.ask("address")))
            assert region["error"] is None
            assert region["merged_pages"] >= PAGES
    assert applied["ksm"] == "engine"
    assert applied["is_settled"], applied
    assert applied["saved_pages"] >= PAGES
    assert abs(applied["error_share"]) < 0.1


def test_who_is_no_client_of_the_engine_is_named_and_the_others_are_marked(
    engine_daemon: EngineDaemon,
) -> None:
    engine_daemon.set(run=1)
    with holder(agent_env(engine_daemon.runtime)) as client, holder({}) as stranger:
        client.ask("unique 1")
        client.ask("mark")
        engine_daemon.wait_registered(1)
        fill(client, stranger)
        targets = find_targets(pids=[client.pid, stranger.pid])
        with EngineKsm(engine_daemon.runtime) as ksm:
            applied = apply_advice(ksm, advise(targets, 0.8), targets)
        errors = {region.pid: region.error for region in applied.regions}
    assert errors[client.pid] is None
    assert f"process {stranger.pid} is not a client of the engine" in str(errors[stranger.pid])
    assert any("pagemerge run --connect" in note for note in applied.notes)


@pytest.mark.ksm
def test_a_region_and_a_process_that_have_vanished_are_named(
    kernel_ksm: KernelKsmControl,
) -> None:
    kernel_ksm.write("run", 0)
    with holder({}) as one, holder({}) as two, holder({}) as three:
        fill(one, two, three)
        start = int(two.ask("address"))
        targets = find_targets(pids=[one.pid, two.pid, three.pid])
        advice = advise(targets, 1.0)
        two.ask("drop")
        three.kill()
        applied = apply_advice(KernelKsm(), advice, targets)
    gone = next(r for r in applied.regions if r.pid == two.pid and r.start <= start < r.end)
    assert gone.is_gone
    assert gone.error == "it has vanished, or is something else by now"
    for region in applied.regions:
        if region.pid == three.pid:
            assert (region.is_gone, region.error) == (True, f"process {three.pid} has ended")
    assert [r for r in applied.regions if r.pid == one.pid and r.error is None]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--apply", "--code", "c", str(os.getpid())], "exclude each other"),
        (["--apply", "--timeout", "soon", str(os.getpid())], "no duration"),
        (["--apply", __file__], "--apply is for processes"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", "--ksm", "kernel", *arguments]) != 0
    assert words in capsys.readouterr().err


def test_the_error_is_what_was_saved_beyond_what_was_predicted() -> None:
    applied = Applied("kernel", (), 200.0, 0, 210, 3, 1.0, True, ())
    assert applied.error_share == pytest.approx(0.05)
    assert applied.to_dict()["gained_pages"] == 210
