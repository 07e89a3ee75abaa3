"""Merging switched on and off in running processes: they notice nothing, whatever they are at."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagemerge.commands import main
from pagemerge.errors import (
    NotPermittedError,
    ProcessGoneError,
    RejectedError,
)
from pagemerge.kernel import advise_region, set_memory_merge
from pagemerge.kernel.processes import read_process
from pagemerge.memory import read_comm
from tests.support.environment import lacking
from tests.support.processes import Child
from tests.support.victims import holder
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("kernel_ksm_lock")  # they register with it

ROUNDS = 200


@pytest.fixture(autouse=True)
def _needs() -> None:
    if not Path("/proc/self/ksm_stat").exists() or os.geteuid() != 0:
        lacking("the kernel's KSM with ksm_stat (Linux 6.14), and root")


@pytest.fixture
def sleeper() -> Iterator[Child]:
    with Child("import sys\nfor line in sys.stdin: print('ok', flush=True)") as child:
        assert child.ask("there?") == "ok"
        yield child


def merges(pid: int) -> bool | None:
    process = read_process(pid)
    assert process is not None
    return process.ksm_merge_any


def toggle(pid: int, rounds: int = ROUNDS) -> None:
    for _ in range(rounds):
        set_memory_merge(pid, on=True)
        set_memory_merge(pid, on=False)


def test_merging_is_switched_on_and_off_in_a_running_process(sleeper: Child) -> None:
    set_memory_merge(sleeper.pid, on=True)
    assert merges(sleeper.pid)
    assert sleeper.ask("well?") == "ok"
    set_memory_merge(sleeper.pid, on=False)
    assert not merges(sleeper.pid)
    assert sleeper.ask("well?") == "ok"


def test_a_region_alone_is_marked() -> None:
    with holder({}) as child:
        child.ask("fill seed 16")
        start = int(child.ask("address"))
        advise_region(child.pid, start, start + 16 * 4096, on=True)
        found = read_process(child.pid)
        assert found is not None
        assert (found.ksm_merge_any, found.ksm_mergeable) == (False, True)
        advise_region(child.pid, start, start + 16 * 4096, on=False)
        found = read_process(child.pid)
        assert found is not None
        assert found.ksm_mergeable is False


def test_an_unmapped_region_is_refused_and_the_process_lives(sleeper: Child) -> None:
    with pytest.raises(RejectedError, match="not mapped"):
        advise_region(sleeper.pid, 4096, 8192, on=True)
    with pytest.raises(RejectedError, match="is not whole pages"):
        advise_region(sleeper.pid, 4097, 8192, on=True)
    assert sleeper.ask("well?") == "ok"


# Calls that the kernel goes on with in different ways: restart_syscall, started anew, with a signal
# mask of their own.
_WAITS = {
    "clock_nanosleep": "time.sleep(2)",
    "poll": "select.poll().poll(2000)",
    "select": "select.select([], [], [], 2)",
    "epoll_wait": "select.epoll().poll(2)",
    "futex": "threading.Lock().acquire() and threading.Event().wait(2)",
    "sigtimedwait": "signal.sigtimedwait([signal.SIGUSR2], 2)",
    "read": "os.read(0, 1)",
    "wait4": "os.waitpid(-1, 0)",
}


@pytest.mark.parametrize("name", _WAITS)
def test_a_waiting_call_goes_on_and_lasts_as_long_as_asked(name: str) -> None:
    source = (
        "import os, select, signal, subprocess, sys, threading, time\n"
        "slow = subprocess.Popen(['sleep', '2'])\n"
        "print('begin', flush=True)\nbegin = time.monotonic()\n"
        f"{_WAITS[name]}\n"
        "print(time.monotonic() - begin >= 1.9, flush=True)\n"
        "slow.poll() is None and slow.wait()\n"
        "sys.stdin.read()\n"
    )
    if name == "read":
        source = source.replace(">= 1.9", ">= 0")
    with Child(source) as child:
        assert child.read_line() == "begin"
        toggle(child.pid)
        if name == "read":
            child.send("x")
        assert child.read_line() == "True"
        assert child.finish() == 0


def test_signals_all_arrive_and_handlers_see_their_own_registers() -> None:
    source = """
import signal, sys
seen = 0
def count(*_):
    global seen
    seen += 1
signal.signal(signal.SIGRTMIN, count)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
signal.signal(signal.SIGALRM, lambda *_: None)
print('ready', flush=True)
x = 0
for line in sys.stdin:
    print(seen, signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(), flush=True)
"""
    with Child(source) as child:
        assert child.read_line() == "ready"
        for sent in range(1, ROUNDS + 1):
            child.process.send_signal(signal.SIGRTMIN)
            set_memory_merge(child.pid, on=sent % 2 == 0)
            assert child.ask("seen?") == f"{sent} True"


def test_a_process_that_computes_computes_the_same() -> None:
    source = """
import hashlib, sys, threading
over = threading.Event()
def work(out):
    data, n = b'', 0
    while not over.is_set():
        for _ in range(1000):
            data = hashlib.sha256(data).digest()
        n += 1000
    out.append(f'{n} {data.hex()}')
found = []
threads = [threading.Thread(target=work, args=(found,)) for _ in range(3)]
[thread.start() for thread in threads]
print('ready', flush=True)
sys.stdin.readline()
over.set()
[thread.join() for thread in threads]
print(' '.join(found), flush=True)
"""
    with Child(source) as child:
        child.read_line()
        toggle(child.pid)
        words = child.ask("enough", 120).split()
        assert child.finish() == 0
    digests = {int(n): digest for n, digest in zip(words[::2], words[1::2], strict=True)}
    data = b""
    for n in range(1, max(digests) + 1):
        data = hashlib.sha256(data).digest()
        assert digests.get(n, data.hex()) == data.hex()


def test_a_stopped_process_stays_stopped(sleeper: Child) -> None:
    def state() -> str:
        return Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[0]

    sleeper.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: state() == "T", "the process is stopped")
    set_memory_merge(sleeper.pid, on=True)
    assert merges(sleeper.pid)
    wait_until(lambda: state() == "T", "the process is stopped again")
    sleeper.process.send_signal(signal.SIGCONT)
    assert sleeper.ask("well?") == "ok"


def test_what_cannot_be_asked_is_refused_by_name(sleeper: Child) -> None:
    with pytest.raises(RejectedError, match="kernel thread"):
        set_memory_merge(2, on=True)
    with pytest.raises(RejectedError, match="is this one"):
        set_memory_merge(os.getpid(), on=True)
    gone = subprocess.Popen(["true"])
    wait_until(lambda: b") Z" in Path(f"/proc/{gone.pid}/stat").read_bytes(), "it is a zombie")
    with pytest.raises(RejectedError, match="zombie"):
        set_memory_merge(gone.pid, on=True)
    gone.wait()
    with pytest.raises(ProcessGoneError):
        set_memory_merge(gone.pid, on=True)
    tracer = (
        "import ctypes, sys\n"
        f"print(ctypes.CDLL(None).ptrace(0x4206, {sleeper.pid}, 0, 0), flush=True)\n"
        "sys.stdin.read()"
    )
    with Child(tracer) as child:
        assert child.read_line() == "0"
        with pytest.raises(NotPermittedError, match=f"traced by process {child.pid}"):
            set_memory_merge(sleeper.pid, on=True)


def test_another_users_process_is_not_permitted(sleeper: Child) -> None:
    # imported before: nobody may not be able to read this interpreter's modules
    source = f"""
import os, pagemerge._core
from pagemerge.errors import NotPermittedError
from pagemerge.kernel import set_memory_merge
os.setuid(65534)
try:
    set_memory_merge({sleeper.pid}, on=True)
except NotPermittedError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )
    assert (
        done.stdout
        == f"process {sleeper.pid} ({read_comm(sleeper.pid)}) may not be traced by this one\n"
    )


def test_the_commands_do_it_for_a_tree(capsys: pytest.CaptureFixture[str]) -> None:
    with Child(
        "import os\nfork = os.fork()\nprint(fork, flush=True) if fork else None\ninput()"
    ) as c:
        inner = int(c.read_line())
        assert main(["enable", "--tree", str(c.pid), "--dry-run"]) == 0
        assert not merges(c.pid)
        assert main(["enable", "--tree", str(c.pid)]) == 0
        assert (merges(c.pid), merges(inner)) == (True, True)
        assert main(["disable", str(c.pid)]) == 0
        assert (merges(c.pid), merges(inner)) == (False, True)
        assert capsys.readouterr().out.count("merging on, a thread stopped for") == 2
        os.kill(inner, signal.SIGKILL)


def test_all_of_many_are_tried_and_each_that_failed_is_named(
    sleeper: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert main(["enable", "2", str(gone.pid), str(sleeper.pid)]) == 1
    assert merges(sleeper.pid)
    out, err = capsys.readouterr()
    assert f"python[{sleeper.pid}]: merging on" in out.replace("python3", "python")
    assert f"no process {gone.pid}" in err
    assert "kernel thread" in err
    assert "2 of 3 processes: merging not switched on" in err


def test_the_outcomes_are_told_as_json(sleeper: Child, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enable", "--json", str(sleeper.pid), "2"]) == 1
    refused, done = json.loads(capsys.readouterr().out)
    assert (refused["pid"], refused["merging"], refused["stopped_seconds"]) == (2, None, None)
    assert refused["error"]
    assert (done["pid"], done["merging"], done["error"]) == (sleeper.pid, True, None)
    assert done["stopped_seconds"] > 0
    assert main(["disable", "--json", "--dry-run", str(sleeper.pid)]) == 0
    (meant,) = json.loads(capsys.readouterr().out)
    assert (meant["pid"], meant["merging"]) == (sleeper.pid, None)
    assert merges(sleeper.pid)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("7f0000000000", "no region"),
        ("zz-10000", "no region"),
        ("1000-20000000000000000000", "no region"),
        ("3000-2000", "its end is not after its start"),
        ("1000-1000", "its end is not after its start"),
        ("1001-3000", "not whole pages"),
        ("1000-2fff", "not whole pages"),
    ],
)
def test_what_is_no_region_is_refused_before_anything_is_stopped(
    sleeper: Child, text: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["enable", f"--region={text}", str(sleeper.pid)]) == 2
    assert reason in capsys.readouterr().err


def test_processes_that_are_not_there_or_have_no_memory_are_no_misuse(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pids in (["2"], [str(gone.pid)], ["2", str(gone.pid)]):
        assert main(["enable", *pids]) == 1
        err = capsys.readouterr().err
        assert ("is a kernel thread: no memory" in err) is ("2" in pids)
        assert (f"no process {gone.pid}" in err) is (str(gone.pid) in pids)


def test_processes_may_be_named_on_both_sides_of_an_option(
    sleeper: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    with Child("input()") as other:
        assert main(["enable", str(sleeper.pid), "--dry-run", str(other.pid)]) == 0
    assert capsys.readouterr().out.count("merging on (not done)") == 2


def test_a_dry_run_finds_what_would_fail_and_changes_nothing(
    sleeper: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["enable", "--dry-run", str(os.getpid())]) == 1
    assert "is this one" in capsys.readouterr().err
    with Child("import os, time\nif os.fork(): input()\nelse: os._exit(0)") as parent:
        zombie = wait_until(lambda: children(parent.pid), "its child")[0]
        assert main(["enable", "--dry-run", str(zombie)]) == 1
        assert "zombie" in capsys.readouterr().err
    tracer = "import ctypes, sys\nctypes.CDLL(None).ptrace(16, int(sys.argv[1]), 0, 0)\n"
    with Child(f"{tracer}print('ok', flush=True)\ninput()", str(sleeper.pid)) as debugger:
        assert debugger.read_line() == "ok"
        assert main(["enable", "--dry-run", str(sleeper.pid)]) == 4
        assert f"is being traced by process {debugger.pid}" in capsys.readouterr().err
    assert not merges(sleeper.pid)


def test_a_dry_run_without_the_permission_says_so_and_what_a_root_lacks(sleeper: Child) -> None:
    argv = [sys.executable, "-m", "pagemerge", "enable", "--dry-run", str(sleeper.pid)]
    if shutil.which("setpriv") is None:
        lacking("setpriv (util-linux)")
    less = ["setpriv", "--bounding-set=-sys_ptrace,-sys_admin", "--inh-caps=-sys_ptrace,-sys_admin"]
    for command in (argv, [word for word in argv if word != "--dry-run"]):
        done = subprocess.run([*less, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 4
        assert "may not be traced by this one" in done.stderr
        assert "hint: this root lacks CAP_SYS_PTRACE" in done.stderr
    assert not merges(sleeper.pid)


@pytest.mark.parametrize(
    ("flags", "size", "reason"),
    [
        (mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, 1, "can be merged: it is shared"),
        (mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 4096, "a part of it is not mapped"),
    ],
)
def test_a_region_that_is_not_there_or_never_merges_is_refused(
    flags: int, size: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program = (
        "import ctypes, mmap\n"
        f"m = mmap.mmap(-1, 8192, {flags})\n"
        "print(ctypes.addressof(ctypes.c_char.from_buffer(m)), flush=True)\ninput()"
    )
    with Child(program) as child:
        start = int(child.read_line())
        region = f"{start:x}-{start + 4096 * size:x}"
        for options in (["--dry-run"], []):
            assert main(["enable", "--region", region, *options, str(child.pid)]) == 1
            assert reason in capsys.readouterr().err
        process = read_process(child.pid)
        assert process is not None
        assert process.ksm_mergeable is False


def test_a_dry_run_of_a_region_that_merges_does_not_mark_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with holder({}) as child:
        child.ask("unique 4")
        start = int(child.ask("address"))
        argv = ["enable", "--region", f"{start:x}-{start + 4 * 4096:x}", str(child.pid)]
        assert main([*argv, "--dry-run"]) == 0
        assert "(not done)" in capsys.readouterr().out
        for mergeable in (False, True):
            process = read_process(child.pid)
            assert process is not None
            assert process.ksm_mergeable is mergeable
            assert main(argv) == 0


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_way_out_of_naming_no_process_is_one_of_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["enable"]) == 2
    hint = capsys.readouterr().err.splitlines()[-1]
    assert hint == "hint: give process numbers, or --tree PID, --cgroup PATH, --unit NAME"


def test_a_processs_name_does_not_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    rename = r"""
import ctypes
ctypes.CDLL(None).prctl(15, b'\x1b[31m\n')
print(1, flush=True)
input()
"""
    with Child(rename) as child:
        child.read_line()
        assert main(["enable", "--dry-run", str(child.pid)]) == 0
        assert capsys.readouterr().out == f"?[31m?[{child.pid}]: merging on (not done)\n"


def test_an_empty_cgroup_is_not_the_whole_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enable", "--cgroup", "", "--dry-run"]) == 2
    assert "no path" in capsys.readouterr().err
