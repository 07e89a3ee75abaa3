"""One implementation of samepage merging, ready to be single-stepped.

Both obey the same rule of the kernel's: a batch never crosses the end of a pass, and a write of a
*different* sleep_millisecs ends the sleep at once. With an endless batch and a sleep of an hour
each such write is exactly one pass.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, NamedTuple, NoReturn

import pytest

from pagemerge.engine.client import EngineKsm
from pagemerge.errors import NotSupportedError, RejectedError
from pagemerge.kernel import KernelKsm
from pagemerge.ksm import Ksm, Process, find_knob
from pagemerge.memory import Smap, Vma, read_maps, read_smaps
from tests.support.conformance.client import Client
from tests.support.engine import EngineDaemon
from tests.support.environment import lacking
from tests.support.kernel_ksm import KernelKsmControl, hold_kernel_ksm
from tests.support.victims import agent_env
from tests.support.waiting import wait_until

__all__ = [
    "Counts",
    "DisturbedError",
    "EngineWorld",
    "KernelWorld",
    "World",
    "engine_world",
    "kernel_version",
    "kernel_world",
]

QUIET_SECONDS = 0.025  # longer than an agent's turn
HOUR_MILLISECS = 3_600_000
UINT_MAX = 2**32 - 1
SYS_KSM = Path("/sys/kernel/mm/ksm")


class Counts(NamedTuple):
    """The counters that the cases are stated in, pages; a file that is lacking counts as 0."""

    shared: int
    sharing: int
    unshared: int
    volatile: int
    zero: int = 0


class DisturbedError(Exception):
    """The machine was too busy for exact counts."""


class World(ABC):
    """An implementation, the processes that use it, and what a test found out about it.

    Attributes:
        ksm: The implementation.
        differences: What `differs` was told.
    """

    name: str
    ksm: Ksm

    def __init__(self) -> None:
        self.differences: list[str] = []
        self._clients = ExitStack()

    # processes

    def client(self, **env: str) -> Client:
        """Start a process whose memory this implementation can merge; `env` is added to its own."""
        client = Client({**self._client_env(), **env})
        self._clients.callback(client.kill)
        return client

    def marked(self, values: list[int]) -> tuple[Client, int]:
        """Start a process with pages of these contents, marked; it and their address."""
        client = self.client()
        address = client.map(values)
        client.mark(address, len(values))
        self.await_registered(1)
        return client, address

    def marked_beside(self, values: list[int]) -> tuple[Client, int]:
        """Like `marked`, when others are registered: one more, or in the place of one."""
        client = self.client()
        address = client.map(values)
        client.mark(address, len(values))
        self.await_known(client.pid)
        return client, address

    def maps(self, pid: int) -> list[Vma]:
        """The mappings of a process, by the kernel."""
        return read_maps(pid)

    def await_refusal(self, pid: int) -> str:
        """Wait until a process has been refused (the engine alone does); why."""
        return wait_until(
            lambda: next((str(p.own["refused"]) for p in self.ksm.processes() if p.pid == pid), ""),
            f"the refusal of process {pid}",
        )

    def smaps(self, pid: int) -> list[Smap]:
        """The mappings of a process with what is in them, by the kernel."""
        return list(read_smaps(pid))

    @property
    def tells_processes(self) -> bool:
        """Whether anything is told of single processes."""
        try:
            self.ksm.processes()
        except NotSupportedError:
            return False
        return True

    def process(self, pid: int) -> Process:
        """What the implementation tells of a process that has merging on."""
        return next(process for process in self.ksm.processes() if process.pid == pid)

    def merging_pages(self, pid: int) -> int:
        """ksm_merging_pages of a process, 0 when it is not listed."""
        found = [process for process in self.ksm.processes() if process.pid == pid]
        return (found[0].ksm_merging_pages or 0) if found else 0

    # knobs and counters

    @abstractmethod
    def write(self, name: str, text: str) -> int:
        """Write a knob as it is, past all checks that a client makes: errno, 0 when accepted."""

    def set(self, name: str, value: int | str) -> None:
        """Turn a knob; AssertionError when it is refused."""
        code = self.write(name, f"{value}")
        assert code == 0, f"{name}={value}: {os.strerror(code)}"

    def read(self, name: str) -> int:
        """A numeric knob or counter."""
        value = self.ksm.counters().get(name) if find_knob(name) is None else self.ksm.knobs[name]
        assert isinstance(value, int), f"{name} is {value!r}"
        return value

    def has(self, name: str) -> bool:
        """Whether there is such a knob or counter."""
        values = self.ksm.counters() if find_knob(name) is None else self.ksm.knobs
        return values.get(name) is not None

    def counts(self) -> Counts:
        """The counters that the cases are stated in."""
        found = self.ksm.counters()
        return Counts(
            found["pages_shared"] or 0,
            found["pages_sharing"] or 0,
            found["pages_unshared"] or 0,
            found["pages_volatile"] or 0,
            found["ksm_zero_pages"] or 0,
        )

    def chains(self) -> tuple[int, int]:
        """stable_node_chains and stable_node_dups."""
        return self.read("stable_node_chains"), self.read("stable_node_dups")

    # one pass at a time

    def step(self, passes: int = 1) -> Counts:
        """Run so many passes and no more; the counters after the last."""
        for _ in range(passes):
            self.await_idle()
            target = self.read("full_scans") + 1
            self.begin_batch()
            wait_until(lambda: self.read("full_scans") >= target, "the pass's end", every=0.001)  # noqa: B023
            assert self.read("full_scans") == target
            self.await_idle()
        return self.counts()

    def begin_batch(self) -> None:
        """Have ksmd begin its next batch now; it is asleep, or stopped and flushed."""
        if self.read("run") == 1:
            self._change_sleep()
        else:
            self.set("run", 1)

    def batch(self) -> int:
        """Run one batch, which may be less than a pass; pages_scanned after it."""
        self.await_idle()
        before = self.read("pages_scanned")
        self.begin_batch()
        wait_until(lambda: self.read("pages_scanned") > before, "the batch's end", every=0.001)
        self.await_idle()
        return self.read("pages_scanned")

    def stop(self, run: int = 0) -> None:
        """run=0 or run=2, with no sleep left over: the next `step` is one pass."""
        self.set("run", run)
        self._change_sleep()
        self.await_idle()

    def merge(self) -> Counts:
        """Two passes: everything equal that holds still is merged."""
        return self.step(2)

    def _change_sleep(self) -> None:
        now = self.read("sleep_millisecs")
        self.set("sleep_millisecs", HOUR_MILLISECS + (now == HOUR_MILLISECS))

    def _prepare(self) -> None:
        self.set("pages_to_scan", UINT_MAX)
        self.set("sleep_millisecs", HOUR_MILLISECS)
        self.stop()
        for name, value in (("smart_scan", 0), ("use_zero_pages", 0), ("merge_across_nodes", 1)):
            if self.has(name):
                self.set(name, value)
        if self.has("max_page_sharing"):
            self.set("max_page_sharing", 256)

    def end_clients(self) -> None:
        """End its processes."""
        self._clients.close()

    def close(self) -> None:
        """End its processes."""
        self.end_clients()
        self.ksm.close()

    # what differs from one to the other

    @abstractmethod
    def _client_env(self) -> dict[str, str]:
        """What a client needs in its environment."""

    @abstractmethod
    def await_registered(self, processes: int) -> None:
        """Wait until ksmd knows of so many processes."""

    def await_gone(self) -> None:
        """Wait until an exit of the only process that was registered is known."""
        self.await_registered(0)

    @abstractmethod
    def await_known(self, pid: int) -> None:
        """Wait until ksmd knows of this process."""

    @abstractmethod
    def await_idle(self) -> None:
        """Wait until ksmd sleeps, or is stopped."""

    def differs(self, how: str) -> None:
        """Note that what follows is on purpose not what the kernel does; the table says so."""
        self.differences.append(how)

    def needs(self, what: object, name: str, since: str = "") -> None:
        """End the test when this machine, or its kernel, lacks something."""
        if not what:
            self.lacks(name, since)

    def lacks(self, name: str, since: str = "") -> NoReturn:
        """End the test, since this machine or its kernel lacks something."""
        brought = f" (Linux {since} brought it)" if since else ""
        pytest.skip(f"lacking: {name}{brought}")

    def needs_prctl(self) -> None:
        """End the test where prctl(PR_SET_MEMORY_MERGE) is unknown."""
        client = self.client()
        known = client.errno_of("prctl", 68, 0, 0, 0, 0) == 0
        client.kill()
        self.needs(known, "prctl(PR_SET_MEMORY_MERGE)", "6.4")

    @property
    def is_kernel(self) -> bool:
        """Whether it is the kernel's."""
        return self.name == "kernel"


class KernelWorld(World):
    """The kernel's KSM."""

    name = "kernel"
    _patience_seconds: ClassVar[float] = 30.0

    def __init__(self, control: KernelKsmControl) -> None:
        super().__init__()
        self.control = control
        self.ksm: KernelKsm = KernelKsm()
        self._ksmd = self.ksm.facts().get("pid")
        self._await_alone()
        self._prepare()

    def _await_alone(self) -> None:
        """Wait until nobody else uses KSM, as far as this kernel tells (Linux 6.14)."""
        if not self.tells_processes:
            return

        def alone() -> bool:
            return not any(p.ksm_mergeable or p.ksm_merge_any for p in self.ksm.processes())

        try:
            wait_until(alone, "the end of others' use of KSM", KernelWorld._patience_seconds)
        except TimeoutError:
            KernelWorld._patience_seconds = 1.0  # not again so long for each test
            others = ", ".join(f"{p.pid} ({p.comm})" for p in self.ksm.processes())
            lacking(f"a KSM that nobody else uses: {others} have it on")

    def write(self, name: str, text: str) -> int:
        """Write a knob's file: errno, 0 when accepted."""
        fd = os.open(SYS_KSM / name, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        except OSError as error:
            return error.errno or -1
        finally:
            os.close(fd)
        return 0

    def await_registered(self, processes: int) -> None:
        """Nothing: madvise and prctl have registered the process when they return."""

    def await_known(self, pid: int) -> None:
        """Nothing, as for `await_registered`."""

    def await_idle(self) -> None:
        """Wait until ksmd is off the CPU in an interruptible sleep: it sleeps between batches."""
        stat = Path(f"/proc/{self._ksmd}/stat")
        wait_until(
            lambda: stat.read_text().rpartition(")")[2].split()[0] == "S",
            "ksmd's sleep",
            every=0.001,
        )

    def _client_env(self) -> dict[str, str]:
        return {}


class EngineWorld(World):
    """The engine: a daemon, and clients with its agent."""

    name = "engine"

    def __init__(self, daemon: EngineDaemon) -> None:
        super().__init__()
        self.daemon = daemon
        self._heard = -1
        self.ksm: EngineKsm = EngineKsm(daemon.runtime)
        self._prepare()

    def step(self, passes: int = 1) -> Counts:
        """Run so many passes and no more; the counters after the last.

        Raises:
            DisturbedError: An agent could not stop its program's threads in time, as happens on a
                busy machine. The pages get two looks again: the test is to be begun anew.
        """
        failures = self.read("merge_failures_barrier")
        counts = super().step(passes)
        if self.read("merge_failures_barrier") != failures:
            raise DisturbedError("the machine was too busy for a pass that nothing disturbs")
        return counts

    def begin_batch(self) -> None:
        """Let the agents send what they have to tell first: they do it by turns of 10 ms."""
        if self._heard != Client.commands:
            self._heard = Client.commands
            quiet: tuple[str, float] = ("", 0.0)

            def calm() -> bool:
                nonlocal quiet
                seen, now = _agent_turns([p.pid for p in self.ksm.processes()]), time.monotonic()
                if seen != quiet[0] or " R" in seen:
                    quiet = (seen, now)
                return now - quiet[1] > QUIET_SECONDS

            wait_until(calm, "the agents' rest", every=0.005)
        super().begin_batch()

    def reset(self) -> None:
        """Be as before the test, its knobs included, with a new daemon and an empty pool."""
        self.end_clients()
        self.ksm.close()
        self.daemon.stop()
        self.daemon.restart()
        self.set("run", 0)
        for name, value in self._knobs_at_first.items():
            if name != "run" and value is not None:
                self.set(name, value)
        self.stop()

    def keep_knobs(self) -> None:
        """Note the knobs that `reset` brings back: those a test's fixtures have set."""
        self._knobs_at_first = {"advisor_mode": "none", **self.ksm.knobs.read()}

    def write(self, name: str, text: str) -> int:
        """Have the daemon set a knob: errno, 0 when accepted."""
        try:
            self.ksm.call("set", values={name: text})
        except RejectedError as error:
            return error.errno or -1
        return 0

    def await_registered(self, processes: int) -> None:
        """Wait until the first message of so many agents has come; later ones come in order."""
        self.daemon.wait_registered(processes)

    def await_known(self, pid: int) -> None:
        """Wait until the agent's first message has come."""
        wait_until(
            lambda: any(p.pid == pid and p.ksm_mergeable for p in self.ksm.processes()),
            f"the registration of process {pid}",
        )

    def await_idle(self) -> None:
        """Nothing: the daemon ends a pass and begins its sleep before it answers again."""

    def _client_env(self) -> dict[str, str]:
        return agent_env(self.daemon.runtime)


def _agent_turns(pids: list[int]) -> str:
    """The states of the agents' threads, and how often each has gone to sleep."""
    found = []
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                if (task / "comm").read_text() == "pagemerge\n":
                    status = (task / "status").read_text()
                    state = re.search(r"State:\t(\w)", status)
                    turns = re.search(r"\nvoluntary_ctxt_switches:\t(\d+)", status)
                    found.append(f"{task.name} {state and state[1]} {turns and turns[1]}")
    return ", ".join(found)


@contextlib.contextmanager
def kernel_world() -> Iterator[KernelWorld]:
    """The kernel's KSM, to itself; every knob is restored."""
    with hold_kernel_ksm() as control, contextlib.closing(KernelWorld(control)) as world:
        yield world


@contextlib.contextmanager
def engine_world(daemon: EngineDaemon) -> Iterator[EngineWorld]:
    """A daemon that was used by nobody, or by tests that have ended."""
    daemon.set(run=2, advisor_mode="none")
    wait_until(lambda: daemon.call("status")["daemon"]["agents"] == 0, "the former clients' end")
    with contextlib.closing(EngineWorld(daemon)) as world:
        yield world


def kernel_version() -> tuple[int, int]:
    """The running kernel's, for what no file tells: an order of events, not a feature."""
    found = re.match(r"(\d+)\.(\d+)", platform.release())
    assert found
    return int(found[1]), int(found[2])
