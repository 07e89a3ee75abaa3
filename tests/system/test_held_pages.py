"""What is written to pages that were taken hold of earlier, past their page tables, arrives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import EngineDaemon
from tests.support.processes import Child
from tests.support.victims import agent_env, compiled
from tests.support.waiting import wait_until

N = 256
HOLDERS = ["io_uring", "ring", "fuse", "fuse-direct"]


@contextlib.contextmanager
def pair(daemon: EngineDaemon, what: str, folder: Path) -> Iterator[Child]:
    """A program whose page can be taken hold of, and beside it one with equal memory."""
    env, program = agent_env(daemon.runtime), str(compiled("pins"))
    with (
        Child([program, what, str(N), str(folder)], env=env) as one,
        Child([program, "nothing", str(N)], env=env) as two,
    ):
        assert one.read_line() == two.read_line() == "ready"
        daemon.wait_registered(2)
        yield one


def take_hold(child: Child, what: str) -> None:
    if child.ask("begin") != "done":
        pytest.skip(f"this machine does not let a test use {what}")


def refusal(daemon: EngineDaemon, child: Child) -> str:
    return str([row for row in daemon.call("processes") if row["pid"] == child.pid][-1]["refused"])


@pytest.mark.parametrize("what", HOLDERS)
def test_what_is_written_later_to_a_page_that_was_held_before_the_merging_arrives(
    engine_daemon: EngineDaemon, tmp_path: Path, what: str
) -> None:
    with pair(engine_daemon, what, tmp_path) as child:
        take_hold(child, what)
        engine_daemon.set(run=1)
        engine_daemon.settle(4)
        assert child.ask("finish") == "arrived"


@pytest.mark.parametrize("what", HOLDERS)
def test_what_is_written_later_to_a_page_that_was_held_before_the_unmerging_arrives(
    engine_daemon: EngineDaemon, tmp_path: Path, what: str
) -> None:
    with pair(engine_daemon, what, tmp_path) as child:
        engine_daemon.set(run=1)
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == N, "the merging")
        take_hold(child, what)
        engine_daemon.set(run=2)
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == 0, "the unmerging")
        assert child.ask("finish") == "arrived"


@pytest.mark.parametrize("what", ["io_uring", "ring"])
def test_a_page_that_is_held_goes_along_when_its_memory_grows(
    engine_daemon: EngineDaemon, tmp_path: Path, what: str
) -> None:
    with pair(engine_daemon, what, tmp_path) as child:
        engine_daemon.set(run=1)
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == N, "the merging")
        take_hold(child, what)
        assert child.ask("grow") == "done"
        assert child.ask("finish") == "arrived"


@pytest.mark.parametrize(("what", "name"), [("ring", "pinned"), ("xdp", "xdp")])
def test_memory_that_is_registered_with_the_kernel_unseen_is_refused_by_name(
    engine_daemon: EngineDaemon, tmp_path: Path, what: str, name: str
) -> None:
    with pair(engine_daemon, what, tmp_path) as child:
        take_hold(child, what)
        engine_daemon.set(run=1)
        wait_until(lambda: refusal(engine_daemon, child) == name, "the refusal's name")
        engine_daemon.settle(3)
        assert engine_daemon.counters()["pages_sharing"] == 0


def test_a_pipe_keeps_what_was_in_a_page_that_is_merged_meanwhile(
    engine_daemon: EngineDaemon, tmp_path: Path
) -> None:
    with pair(engine_daemon, "vmsplice", tmp_path) as child:
        take_hold(child, "vmsplice")
        engine_daemon.set(run=1)
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == N, "the merging")
        assert child.ask("finish") == "arrived"
