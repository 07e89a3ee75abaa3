"""The two that are compared, behind one face: the kernel's ksmd and the engine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from benchmarks.workload import PAGE, process_cpu_seconds
from pagemerge.engine.launch import agent_environment
from tests.support.engine import EngineDaemon, run_engine_daemon
from tests.support.kernel_ksm import KernelKsmControl, hold_kernel_ksm
from tests.support.waiting import wait_until

__all__ = ["Implementation", "run_engine", "run_kernel"]

# Both at full speed: what is compared is the work, not the waiting.
FULL_SPEED: dict[str, int | str] = {"pages_to_scan": 100_000, "sleep_millisecs": 0}


class Implementation(Protocol):
    """Something that merges."""

    name: str
    env: Mapping[str, str]  # what a command needs so that it takes part
    poll_seconds: float  # how often its counters may be read without disturbing it

    def set_run(self, value: int) -> None:
        """Turn it on (1), off (0), or unmerge all (2)."""

    def counters(self) -> dict[str, int]:
        """Its counters, by the kernel's names."""

    def wait_registered(self, pids: list[int]) -> None:
        """Wait until it knows what these processes have marked."""

    def cpu_seconds(self) -> float:
        """CPU time of the process that scans."""

    def metadata_bytes(self) -> float:
        """What it keeps in memory for the pages that it has visited."""

    def notes(self) -> dict[str, Any]:
        """What else it says of itself."""


class _Kernel:
    name = "ksmd"
    env: Mapping[str, str] = {}
    poll_seconds = 0.001

    def __init__(self, control: KernelKsmControl) -> None:
        self._control = control
        self._ksmd = _find_ksmd()

    def set_run(self, value: int) -> None:
        self._control.write("run", value)

    def counters(self) -> dict[str, int]:
        wanted = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")
        found = {name: self._control.read(name) for name in wanted}
        found["full_scans"] = self._control.read("full_scans")
        return found

    def wait_registered(self, pids: list[int]) -> None:
        """Nothing to wait for: madvise has registered them."""

    def cpu_seconds(self) -> float:
        return process_cpu_seconds(self._ksmd)

    def metadata_bytes(self) -> float:
        # general_profit = saved bytes - metadata bytes; the kernel's own account of itself.
        saved = (self._control.read("pages_sharing") + self._control.read("ksm_zero_pages")) * PAGE
        return saved - self._control.read("general_profit")

    def notes(self) -> dict[str, Any]:
        return {"knobs": self._control.save()}


class _Engine:
    name = "engine"
    poll_seconds = 0.02

    def __init__(self, daemon: EngineDaemon) -> None:
        self._daemon = daemon
        # What `pagemerge run` sets; not `run` itself, since it looks at its command's memory now
        # and then, and that would be measured too.
        self.env: Mapping[str, str] = agent_environment(
            daemon.runtime, everything=False, domain="", base=os.environ
        )

    def set_run(self, value: int) -> None:
        self._daemon.set(run=value)

    def counters(self) -> dict[str, int]:
        return self._daemon.counters()

    def wait_registered(self, pids: list[int]) -> None:
        def known() -> bool:
            rows = self._daemon.call("processes")
            return {row["pid"] for row in rows if row["ksm_mergeable"]} >= set(pids)

        wait_until(known, "the engine's knowing of the workload")

    def cpu_seconds(self) -> float:
        return process_cpu_seconds(self._daemon.process.pid)

    def metadata_bytes(self) -> float:
        status = self._daemon.call("status")
        return float(status["daemon"].get("metadata_bytes") or status["counters"]["metadata_bytes"])

    def notes(self) -> dict[str, Any]:
        status: dict[str, Any] = self._daemon.call("status")
        return status


@contextlib.contextmanager
def run_kernel() -> Iterator[Implementation]:
    """Have the kernel's KSM to oneself, at full speed; see `why_no_kernel_ksm` first."""
    with hold_kernel_ksm(**FULL_SPEED) as control:
        yield _Kernel(control)


@contextlib.contextmanager
def run_engine() -> Iterator[Implementation]:
    """Run a daemon of the benchmark's own, at full speed."""
    with run_engine_daemon() as daemon:
        daemon.set(**FULL_SPEED, run=0)
        yield _Engine(daemon)


def _find_ksmd() -> int:
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text() == "ksmd\n":
                return int(comm.parent.name)
    raise RuntimeError(f"there is no ksmd among the processes that {os.getpid()} can see")
