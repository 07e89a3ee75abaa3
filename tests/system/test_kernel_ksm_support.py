"""The tests' own hold on the kernel's KSM, and their child processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.environment import lacking
from tests.support.kernel_ksm import (
    KernelKsmControl,
    hold_kernel_ksm,
    hold_kernel_ksm_lock,
    why_no_kernel_ksm,
)
from tests.support.processes import Child, read_smaps_rollup
from tests.support.waiting import wait_until

TWINS = """
import mmap, sys
areas = [mmap.mmap(-1, 64 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2)]
for area in areas:
    for page in range(64):
        area[page * 4096 : page * 4096 + 8] = (0x9E3779B97F4A7C15 * (page + 1) % 2**64).to_bytes(8)
    area.madvise(mmap.MADV_MERGEABLE)
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.ksm
def test_every_knob_is_restored_also_when_the_user_fails() -> None:
    why = why_no_kernel_ksm()
    if why:
        lacking(why)
    with hold_kernel_ksm() as control:
        before = control.save()

    def fail_while_holding() -> None:
        with hold_kernel_ksm(max_page_sharing=17) as control:
            control.write("pages_to_scan", 12345)
            control.write("run", 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_holding()
    with hold_kernel_ksm() as control:
        assert control.read("max_page_sharing") == int(before["max_page_sharing"])
        assert control.read("pages_to_scan") == int(before["pages_to_scan"])


HOLDER = """
import sys
from tests.support.kernel_ksm import hold_kernel_ksm
with hold_kernel_ksm(max_page_sharing=17) as control:
    control.write("pages_to_scan", 12345)
    print(control.read("max_page_sharing"), flush=True)
    sys.stdin.readline()
"""


@pytest.mark.ksm
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_every_knob_is_restored_also_when_the_holder_is_ended_by_a_signal(number: int) -> None:
    why = why_no_kernel_ksm()
    if why:
        lacking(why)
    with hold_kernel_ksm():
        pass  # puts back what one that was killed has left
    with hold_kernel_ksm_lock():
        before = KernelKsmControl().save()
    root = Path(__file__).parents[2]
    with Child(HOLDER, env={"PYTHONPATH": str(root)}) as child:
        assert child.read_line() == "17"
        os.kill(child.pid, number)
        child.process.wait(30)
    if number != signal.SIGKILL:  # which the next holder makes up for
        with hold_kernel_ksm_lock():
            assert KernelKsmControl().save() == before
    with hold_kernel_ksm() as control:
        assert control.read("max_page_sharing") == int(before["max_page_sharing"])
        assert control.read("pages_to_scan") == int(before["pages_to_scan"])


@pytest.mark.ksm
def test_the_kernel_merges_what_a_child_marks(kernel_ksm: KernelKsmControl) -> None:
    with Child(TWINS) as child:
        assert child.read_line() == "ready"
        kernel_ksm.write("sleep_millisecs", 0)
        kernel_ksm.write("run", 1)
        kernel_ksm.wait_passes(3)
        assert kernel_ksm.read("pages_sharing") == 64
        assert read_smaps_rollup(child.pid)["KSM"] == 128 * 4096
        assert child.finish() == 0


def test_a_child_that_ends_is_reported_with_its_status() -> None:
    with Child("raise SystemExit(7)") as child, pytest.raises(EOFError, match="status 7"):
        child.read_line()


def test_waiting_ends_at_its_deadline() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="the sun to rise"):
        wait_until(lambda: False, "the sun to rise", seconds=0.05)
    assert time.monotonic() - started >= 0.05
