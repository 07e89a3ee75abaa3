"""Calls injected into programs for which that is hard: none notices, none is killed."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagemerge.errors import (
    KernelError,
    NotPermittedError,
    NotSupportedError,
    ProcessGoneError,
    RejectedError,
)
from pagemerge.kernel import set_memory_merge
from pagemerge.kernel.processes import read_process
from tests.support.environment import lacking
from tests.support.processes import Child
from tests.support.victims import compiled
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("kernel_ksm_lock")  # they register with it

NOBODY = 65534


@pytest.fixture(autouse=True)
def _needs() -> None:
    if not Path("/proc/self/ksm_stat").exists() or os.geteuid() != 0:
        lacking("the kernel's KSM with ksm_stat (Linux 6.14), and root")


@contextlib.contextmanager
def odd(kind: str, user: int | None = None) -> Iterator[Child]:
    """A program of odd.c that is ready."""
    with Child([str(compiled("odd")), kind], user=user) as child:
        assert child.read_line() == "ready"
        yield child


def toggle(pid: int, rounds: int = 50) -> None:
    for _ in range(rounds):
        set_memory_merge(pid, on=True)
        set_memory_merge(pid, on=False)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def tracer_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("TracerPid:"))


@pytest.mark.parametrize("kind", ["epoll", "semop"])
def test_a_wait_without_a_limit_does_not_end_with_eintr(kind: str) -> None:
    with odd(kind) as child:
        for _ in range(20):
            toggle(child.pid, 5)
            assert child.ask("well?") == "ok"


def test_a_wait_for_a_signal_ends_for_that_signal_only() -> None:
    with odd("sigwait") as child:
        for _ in range(20):
            toggle(child.pid, 5)
            child.process.send_signal(signal.SIGUSR1)
            assert child.read_line() == "ok"


def test_a_signal_that_comes_in_the_middle_ends_the_call_that_waits_for_it() -> None:
    with odd("suspend") as child:
        over = threading.Event()

        def disturb() -> None:
            while not over.is_set():
                toggle(child.pid, 1)

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            for _ in range(200):
                child.process.send_signal(signal.SIGUSR1)
                assert child.read_line() == "ok"
        finally:
            over.set()
            thread.join()


def test_none_of_the_waiting_threads_sees_a_stop() -> None:
    with Child([str(compiled("waits")), "3"]) as child:
        while child.process.poll() is None:
            with contextlib.suppress(ProcessGoneError, RejectedError):  # it has ended
                set_memory_merge(child.pid, on=True)
        assert child.process.returncode == 0


@pytest.mark.parametrize("kind", ["strict", "filter"])
def test_a_program_under_seccomp_is_not_killed_for_our_calls(kind: str) -> None:
    with odd(kind) as child:
        for _ in range(3):
            for _ in range(10):
                set_memory_merge(child.pid, on=True)
                found = read_process(child.pid)
                assert found is not None
                assert found.ksm_merge_any
                set_memory_merge(child.pid, on=False)
            assert child.ask("well?") == "ok"
        assert child.finish() == 0


def as_nobody(pid: int) -> str:
    """What enabling a process says to a user who is not root."""
    # imported before: nobody may not be able to read this interpreter's modules
    source = f"""
import os, pagemerge._core
from pagemerge.errors import PagemergeError
from pagemerge.kernel import set_memory_merge
os.setuid({NOBODY})
try:
    print('done' if set_memory_merge({pid}, on=True) else '')
except PagemergeError as error:
    print(error)
"""
    command = [sys.executable, "-c", source]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_without_root_a_program_under_seccomp_is_refused_by_name() -> None:
    with odd("filter", user=NOBODY) as child:
        assert "is confined by seccomp" in as_nobody(child.pid)
        assert child.ask("well?") == "ok"


def test_without_root_a_users_own_process_is_reached() -> None:
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    if yama.exists() and yama.read_text().strip() != "0":
        pytest.skip("kernel.yama.ptrace_scope leaves it to root here")
    with odd("epoll", user=NOBODY) as child:
        assert as_nobody(child.pid) == "done\n"
        found = read_process(child.pid)
        assert found is not None
        assert found.ksm_merge_any
        assert child.ask("well?") == "ok"


@pytest.mark.parametrize("kind", ["leader", "threads"])
def test_a_process_whose_first_thread_has_exited_is_reached_by_another(kind: str) -> None:
    with odd(kind) as child:
        wait_until(lambda: state_of(child.pid) == "Z", "the first thread has exited")
        toggle(child.pid, 100)
        assert child.ask("well?") == "ok"


def test_a_process_that_becomes_another_program_all_the_time_lives_on() -> None:
    with odd("exec") as child:
        for _ in range(100):
            with contextlib.suppress(KernelError):  # never the same threads for long
                set_memory_merge(child.pid, on=True)
        assert child.process.poll() is None
        assert child.finish() == 0


def test_a_process_that_cannot_be_stopped_is_refused_in_time() -> None:
    with odd("vfork") as child:
        wait_until(lambda: state_of(child.pid) == "D", "it waits for its child")
        with pytest.raises(KernelError, match="can't be interrupted"):
            set_memory_merge(child.pid, on=True)
        assert tracer_of(child.pid) == 0
        inner = int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text())
        set_memory_merge(inner, on=True)  # has the same memory
        found = read_process(child.pid)
        assert found is not None
        assert found.ksm_merge_any
        assert child.ask("end") == "ok"
        assert child.finish() == 0


def test_a_process_in_a_frozen_cgroup_is_refused_and_goes_on_when_thawed() -> None:
    with odd("strict") as child, frozen(child.pid):
        with pytest.raises(KernelError):
            set_memory_merge(child.pid, on=True)
        with thawed(child.pid):
            assert child.ask("well?") == "ok"


def test_a_program_that_catches_system_calls_sees_none_of_ours() -> None:
    with odd("dispatch") as child:
        toggle(child.pid)
        assert child.ask("well?") == "ok"


def test_a_signal_handler_on_a_stack_of_its_own_goes_on() -> None:
    with odd("altstack") as child:
        toggle(child.pid, 100)
        assert child.ask("well?") == "ok"
        assert child.finish() == 0  # no other signal came in the middle


@pytest.mark.parametrize(
    ("policy", "niceness"),
    [(os.SCHED_OTHER, 3), (os.SCHED_BATCH, 5), (os.SCHED_IDLE, 0), (os.SCHED_RR, 0)],
)
def test_a_thread_is_scheduled_as_before(policy: int, niceness: int) -> None:
    with odd("epoll") as child:
        os.setpriority(os.PRIO_PROCESS, child.pid, niceness)
        param = os.sched_param(2 if policy == os.SCHED_RR else 0)
        try:
            os.sched_setscheduler(child.pid, policy | os.SCHED_RESET_ON_FORK, param)
        except PermissionError:
            pytest.skip("this machine gives nobody this scheduling policy")
        toggle(child.pid)
        assert os.sched_getscheduler(child.pid) == policy | os.SCHED_RESET_ON_FORK
        assert os.sched_getparam(child.pid) == param
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == niceness
        assert child.ask("well?") == "ok"


def test_stopping_and_continuing_it_meanwhile_ends_as_it_would_have() -> None:
    over = threading.Event()

    def stop_and_go(pid: int) -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            os.kill(pid, signal.SIGCONT)

    with odd("strict") as child:
        thread = threading.Thread(target=stop_and_go, args=(child.pid,))
        thread.start()
        try:
            for _ in range(200):
                with contextlib.suppress(KernelError):  # never still for long enough
                    set_memory_merge(child.pid, on=True)
        finally:
            over.set()
            thread.join()
        # whatever came in which order, the last one was SIGCONT, or is SIGSTOP
        assert child.ask("well?") == "ok"
        os.kill(child.pid, signal.SIGSTOP)
        wait_until(lambda: state_of(child.pid) == "T", "it is stopped")
        set_memory_merge(child.pid, on=True)
        wait_until(lambda: state_of(child.pid) == "T", "it is stopped again")
        os.kill(child.pid, signal.SIGCONT)
        assert child.ask("well?") == "ok"


def test_a_32_bit_program_is_refused_by_name() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("32-bit programs of x86 only")
    program = compiled("small32", "-m32", "-nostdlib", "-static")
    with Child([str(program)]) as child:
        try:
            assert child.read_line() == "ready"
        except EOFError:
            pytest.skip("this kernel runs no 32-bit programs")
        with pytest.raises(NotSupportedError, match="is a 32-bit program"):
            set_memory_merge(child.pid, on=True)
        assert child.ask("well?") == "ok"


def test_a_process_in_a_user_namespace_of_its_own_is_reached() -> None:
    source = "import sys\nfor line in sys.stdin: print('ok', flush=True)"
    with Child(["unshare", "-Urpf", sys.executable, "-c", source]) as child:
        try:
            assert child.ask("there?") == "ok"
        except (EOFError, BrokenPipeError):
            pytest.skip("this machine lets nobody make a user namespace")
        inner = int(Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text())
        toggle(inner)
        assert child.ask("well?") == "ok"


def test_a_stopped_processs_parent_hears_nothing_of_it() -> None:
    with Child("import sys\nfor line in sys.stdin: print('ok', flush=True)") as child:
        assert child.ask("there?") == "ok"
        child.process.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
        toggle(child.pid)
        wait_until(lambda: state_of(child.pid) == "T", "it is stopped again")
        assert os.waitpid(child.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED) == (0, 0)
        child.process.send_signal(signal.SIGCONT)
        assert os.WIFCONTINUED(os.waitpid(child.pid, os.WCONTINUED)[1])
        assert child.ask("well?") == "ok"


_COMPUTES = """
import hashlib, select, sys
data, n = b'', 0
print('ready', flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(1000):
        data = hashlib.sha256(data).digest()
    n += 1000
print(n, data.hex(), flush=True)
"""

_TOGGLES = """
import sys
from pagemerge.kernel import set_memory_merge
print('ready', flush=True)
while True:
    set_memory_merge(int(sys.argv[1]), on=True)
    set_memory_merge(int(sys.argv[1]), on=False)
"""


def test_the_process_survives_that_we_are_killed_in_the_middle() -> None:
    import hashlib

    with Child(_COMPUTES) as child:
        child.read_line()
        for turn in range(25):
            with Child(_TOGGLES, str(child.pid)) as toggler:
                toggler.read_line()
                time.sleep(turn * 0.0007)  # a different moment each time
                toggler.kill()
            wait_until(lambda: tracer_of(child.pid) == 0, "it is let go")
        n, found = child.ask("enough").split()
        data = b""
        for _ in range(int(n)):
            data = hashlib.sha256(data).digest()
        assert found == data.hex()
        assert child.finish() == 0


def test_what_traces_one_of_its_threads_is_named() -> None:
    with odd("leader") as child:
        threads = [int(entry.name) for entry in Path(f"/proc/{child.pid}/task").iterdir()]
        other = max(threads)
        tracer = (
            "import ctypes, sys\n"
            f"print(ctypes.CDLL(None).ptrace(0x4206, {other}, 0, 0), flush=True)\n"
            "sys.stdin.read()"
        )
        with Child(tracer) as strace:
            assert strace.read_line() == "0"
            with pytest.raises(NotPermittedError, match=f"traced by process {strace.pid}"):
                set_memory_merge(child.pid, on=True)
        assert child.ask("well?") == "ok"


def freezer(pid: int) -> Path:
    return (
        Path("/sys/fs/cgroup")
        / ("freezer" if Path("/sys/fs/cgroup/freezer").is_dir() else "")
        / (f"pagemerge-test-{pid}")
    )


def freeze(pid: int, on: bool) -> None:
    folder = freezer(pid)
    if (folder / "freezer.state").exists():
        (folder / "freezer.state").write_text("FROZEN" if on else "THAWED")
        wait_until(
            lambda: (folder / "freezer.state").read_text() == ("FROZEN\n" if on else "THAWED\n"),
            "the cgroup is frozen or thawed",
        )
    else:
        (folder / "cgroup.freeze").write_text(str(int(on)))
        wait_until(
            lambda: f"frozen {int(on)}" in (folder / "cgroup.events").read_text(),
            "the cgroup is frozen or thawed",
        )


@contextlib.contextmanager
def thawed(pid: int) -> Iterator[None]:
    freeze(pid, on=False)
    yield


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process in a frozen cgroup of its own; skips where there can be none."""
    folder = freezer(pid)
    try:
        folder.mkdir()
        (folder / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        freeze(pid, on=True)
        yield
    finally:
        freeze(pid, on=False)
        (folder.parent / "cgroup.procs").write_text(str(pid))
        folder.rmdir()
