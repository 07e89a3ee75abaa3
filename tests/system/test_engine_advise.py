"""What others ask of the engine for a client: enable, disable, advise; the agent does it."""

from __future__ import annotations

import pytest

from pagemerge.commands import main
from pagemerge.engine.client import EngineKsm
from pagemerge.errors import EngineError, RejectedError
from tests.support.engine import EngineDaemon
from tests.support.processes import Child
from tests.support.victims import agent_env, holder
from tests.support.waiting import wait_until

PAGES = 128


def known(daemon: EngineDaemon, child: Child) -> None:
    """Bring its agent to the daemon by a page that has no twin, and give it pages that do."""
    child.ask("unique 1")
    child.ask("mark")
    wait_until(
        lambda: child.pid in [row["pid"] for row in daemon.call("processes")], "the agent's hello"
    )
    child.ask(f"fill seed {PAGES}")


def merged(ksm: EngineKsm, child: Child) -> int:
    """Pages merged where it holds its data."""
    start = int(child.ask("address"))
    return (
        sum(
            region.merged_bytes or 0
            for region in ksm.regions(child.pid)
            if region.start < start + PAGES * 4096 and start < region.end
        )
        // 4096
    )


def test_a_range_is_marked_and_unmarked_for_a_client(engine_daemon: EngineDaemon) -> None:
    env = agent_env(engine_daemon.runtime)
    with holder(env) as one, holder(env) as two, EngineKsm(engine_daemon.runtime) as ksm:
        for child in (one, two):
            known(engine_daemon, child)
        sums = [child.ask("sum") for child in (one, two)]
        ranges = [
            (child.pid, start, start + PAGES * 4096)
            for child in (one, two)
            if (start := int(child.ask("address")))
        ]
        engine_daemon.set(run=1)
        for one_range in ranges:
            ksm.advise(*one_range)
        wait_until(lambda: merged(ksm, one) == merged(ksm, two) == PAGES, "both merged", 120)
        assert [child.ask("sum") for child in (one, two)] == sums
        ksm.advise(*ranges[0], on=False)
        assert merged(ksm, one) == 0
        assert [child.ask("sum") for child in (one, two)] == sums


def test_all_of_a_client_is_switched_on_and_off(engine_daemon: EngineDaemon) -> None:
    env = agent_env(engine_daemon.runtime)
    with holder(env) as one, holder(env) as two, EngineKsm(engine_daemon.runtime) as ksm:
        for child in (one, two):
            known(engine_daemon, child)
        sums = [child.ask("sum") for child in (one, two)]
        engine_daemon.set(run=1)
        for child in (one, two):
            ksm.enable(child.pid)
        assert {process.ksm_merge_any for process in ksm.processes()} == {True}
        wait_until(lambda: merged(ksm, one) == merged(ksm, two) == PAGES, "both merged")
        for child in (one, two):
            ksm.disable(child.pid)
        assert {process.ksm_merge_any for process in ksm.processes()} == {False}
        wait_until(lambda: merged(ksm, one) == merged(ksm, two) == 0, "both unmerged")
        assert [child.ask("sum") for child in (one, two)] == sums


def test_what_can_not_be_marked_is_refused(engine_daemon: EngineDaemon) -> None:
    with (
        holder(agent_env(engine_daemon.runtime)) as child,
        EngineKsm(engine_daemon.runtime) as ksm,
    ):
        known(engine_daemon, child)
        start = int(child.ask("address"))
        with pytest.raises(RejectedError, match="is not whole pages"):
            ksm.advise(child.pid, start + 1, start + 4096)
        with pytest.raises(RejectedError, match="is not whole pages"):
            ksm.advise(child.pid, start, start)
        child.ask("drop")
        with pytest.raises(RejectedError, match="could be marked: it is not mapped"):
            ksm.advise(child.pid, start, start + PAGES * 4096)
        with pytest.raises(EngineError, match="is not a client of the engine"):
            ksm.advise(1, start, start + 4096)


def test_the_commands_switch_it_on_and_off_for_a_client(
    engine_daemon: EngineDaemon,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", str(engine_daemon.runtime))
    with (
        holder(agent_env(engine_daemon.runtime)) as child,
        EngineKsm(engine_daemon.runtime) as ksm,
    ):
        known(engine_daemon, child)
        for command, on in (("enable", True), ("disable", False)):
            assert main([command, "--ksm", "engine", str(child.pid)]) == 0
            assert f"merging {'on' if on else 'off'}\n" in capsys.readouterr().out
            assert [process.ksm_merge_any for process in ksm.processes()] == [on]
        start = int(child.ask("address"))
        dry = ["enable", "--ksm", "engine", "--dry-run"]
        assert main([*dry, "--region", f"{start:x}-{start + 4096:x}", str(child.pid)]) == 0
        assert main([*dry, "--region", "1000-2000", str(child.pid)]) == 1
        assert "nothing is mapped there" in capsys.readouterr().err
        assert [process.ksm_merge_any for process in ksm.processes()] == [False]
        for option in ([], ["--dry-run"]):
            assert main(["enable", "--ksm", "engine", *option, "1"]) == 1
            assert "is not a client of the engine" in capsys.readouterr().err
