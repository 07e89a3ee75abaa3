"""Every test of this folder runs against both implementations; results can be recorded.

With PAGEMERGE_CONFORMANCE_RESULTS=FILE the outcomes are written to that file as JSON, beside what
is there of other implementations and kernels: docs/reference/conformance.json holds those that the
documentation shows.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support.conformance.record import Recorder
from tests.support.conformance.worlds import (
    DisturbedError,
    EngineWorld,
    World,
    engine_world,
    kernel_world,
)
from tests.support.engine import run_engine_daemon
from tests.support.environment import lacking
from tests.support.kernel_ksm import why_no_kernel_ksm

BEGUN_ANEW_MOST = 20
_recorder = Recorder()


@pytest.fixture
def kernel() -> Iterator[World]:
    """The kernel's KSM, single-stepped."""
    why = why_no_kernel_ksm()
    if why:
        lacking(why)
    with kernel_world() as world:
        yield world


@pytest.fixture
def engine() -> Iterator[World]:
    """A daemon of the test's own, single-stepped."""
    with run_engine_daemon(run=0) as daemon, engine_world(daemon) as world:
        yield world


@pytest.fixture(params=[pytest.param("kernel", marks=pytest.mark.ksm), "engine"])
def world(request: pytest.FixtureRequest) -> World:
    """Each implementation in turn."""
    found: World = request.getfixturevalue(request.param)
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Begin a test of the engine anew when the machine was too busy for exact counts."""
    world = next((v for v in pyfuncitem.funcargs.values() if isinstance(v, EngineWorld)), None)
    if world is None:
        return None  # pytest's own way
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    world.keep_knobs()
    for _ in range(BEGUN_ANEW_MOST):
        try:
            pyfuncitem.obj(**arguments)
        except DisturbedError:
            world.reset()
        else:
            return True
    pyfuncitem.obj(**arguments)
    return True


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, None]:
    """Note each outcome."""
    report = (yield).get_result()
    marks = [name for mark in item.iter_markers("case") for name in mark.args]
    if marks and (call.when == "call" or report.outcome != "passed"):
        # a test that was skipped while its fixtures were made has none of them yet
        name = getattr(item, "callspec").params["world"]  # noqa: B009  # not in pytest.Item
        found = getattr(item, "funcargs", {}).values()
        world = next((value for value in found if isinstance(value, World)), None)
        _recorder.note(marks, name, world.differences if world else [], report)


def pytest_sessionfinish() -> None:
    """Write what was asked for."""
    target = os.environ.get("PAGEMERGE_CONFORMANCE_RESULTS")
    if target:
        _recorder.write(Path(target))
