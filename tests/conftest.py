"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.engine import EngineDaemon, run_engine_daemon
from tests.support.environment import lacking
from tests.support.kernel_ksm import (
    KernelKsmControl,
    hold_kernel_ksm,
    hold_kernel_ksm_lock,
    why_no_kernel_ksm,
)


@pytest.fixture
def kernel_ksm() -> Iterator[KernelKsmControl]:
    """The kernel's KSM, to itself, stopped and empty, smart_scan off; every knob is restored."""
    why = why_no_kernel_ksm()
    if why:
        lacking(why)
    with hold_kernel_ksm() as control:
        if control.has("smart_scan"):
            control.write("smart_scan", 0)  # exact counts
        yield control


@pytest.fixture
def kernel_ksm_lock() -> Iterator[None]:
    """The kernel's KSM, to itself, as it is: for tests that only register processes with it."""
    with hold_kernel_ksm_lock():
        yield


@pytest.fixture
def engine_daemon() -> Iterator[EngineDaemon]:
    """A daemon of the test's own, stopped (run=0), at full speed once started, smart_scan off."""
    with run_engine_daemon(pages_to_scan=100_000, sleep_millisecs=0, smart_scan=0, run=0) as daemon:
        yield daemon
