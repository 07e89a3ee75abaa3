"""No write is lost, whatever is killed, and whoever lies."""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import struct
import time
from pathlib import Path

import pytest

from tests.support.engine import EngineDaemon
from tests.support.processes import Child
from tests.support.victims import agent_env, holder, read_stress, run_stress
from tests.support.waiting import wait_until

STRESS_SECONDS = float(os.environ.get("PAGEMERGE_STRESS_SECONDS", "6"))
KILLS = int(os.environ.get("PAGEMERGE_KILLS", "25"))


@pytest.mark.parametrize("barrier", ["uffd", "freeze"])
def test_no_write_is_lost_while_pages_are_merged_at_full_speed(
    engine_daemon: EngineDaemon, barrier: str
) -> None:
    engine_daemon.set(run=1)
    env = agent_env(engine_daemon.runtime, PAGEMERGE_BARRIER=barrier)
    most = 0
    with run_stress(env, seconds=STRESS_SECONDS) as running:
        while any(process.poll() is None for process in running):
            most = max(most, engine_daemon.counters()["pages_sharing"])
            time.sleep(0.05)
        for process in running:
            read_stress(process)
    assert most > 0, "nothing was merged: the test has tested nothing"


def test_no_write_is_lost_when_everything_is_merged_and_unmerged_by_turns(
    engine_daemon: EngineDaemon,
) -> None:
    engine_daemon.set(run=1, use_zero_pages=1)
    with run_stress(agent_env(engine_daemon.runtime), seconds=STRESS_SECONDS) as running:
        while any(process.poll() is None for process in running):
            time.sleep(0.3)
            engine_daemon.set(run=2)
            engine_daemon.set(run=1)
        for process in running:
            read_stress(process)


def test_a_daemon_killed_at_any_instant_costs_no_memory_and_a_new_one_takes_over(
    engine_daemon: EngineDaemon,
) -> None:
    engine_daemon.set(run=1)
    chance = random.Random(1)
    env = agent_env(engine_daemon.runtime)
    with holder(env) as one, holder(env) as two:
        for child in (one, two):
            child.ask("fill seed 2048")
            child.ask("mark")
        sums = one.ask("sum")
        with run_stress(env, seconds=600) as running:
            for _ in range(KILLS):
                time.sleep(chance.uniform(0.0, 0.3))
                engine_daemon.kill()
                assert one.ask("sum") == two.ask("sum") == sums
                engine_daemon.restart()
                engine_daemon.set(run=1, pages_to_scan=100_000, sleep_millisecs=0)
                assert all(process.poll() is None for process in running)
            wait_until(lambda: engine_daemon.counters()["pages_sharing"] >= 2048, "the savings", 60)
            assert all(process.poll() is None for process in running), "a check failed"
        assert one.ask("sum") == two.ask("sum") == sums


def test_clients_killed_at_random_leave_the_others_right(engine_daemon: EngineDaemon) -> None:
    engine_daemon.set(run=1)
    chance = random.Random(2)
    env = agent_env(engine_daemon.runtime)
    with run_stress(env, seconds=STRESS_SECONDS) as lasting:
        while lasting[0].poll() is None:
            with run_stress(env, count=1, seconds=60, pages=1024):
                time.sleep(chance.uniform(0.0, 0.5))
        for process in lasting:
            read_stress(process)
    wait_until(lambda: engine_daemon.call("status")["daemon"]["agents"] == 0, "the dead forgotten")


def test_a_daemon_without_descriptors_turns_processes_away_and_goes_on(
    engine_daemon: EngineDaemon,
) -> None:
    engine_daemon.set(run=1)
    env, pid = agent_env(engine_daemon.runtime), engine_daemon.process.pid
    with holder(env) as one, holder(env) as two:
        one.ask("fill seed 64")
        one.ask("mark")
        engine_daemon.wait_registered(1)
        taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        # enough for a connection and what comes with it, not for the daemon's own copies
        limit = [fd for fd in range(len(taken) + 8) if fd not in taken][6]
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
        two.ask("fill seed 64")
        two.ask("mark")
        wait_until(lambda: "was turned away" in engine_daemon.log_text(), "a refusal")
        engine_daemon.settle(20)
        assert 1 <= engine_daemon.log_text().count("was turned away") <= 3
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        engine_daemon.wait_registered(2)
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == 64, "both merged")


def connect(daemon: EngineDaemon) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(10)
    sock.connect(str(daemon.runtime / "agent.sock"))
    return sock


def hello(**changes: int) -> bytes:
    fields = {
        "version": 1,
        "flags": 2,
        "fds": 0,
        "barriers": 2,
        "parent": 0,
        "page_size": 4096,
        "own_start": 0,
        "own_end": 0,
    } | changes
    return struct.pack("=IIQ", 1, 1, 0) + struct.pack("=IIIIiIQQ64s64s", *fields.values(), b"", b"")


def test_garbage_is_answered_by_disconnection_and_the_log_says_who(
    engine_daemon: EngineDaemon,
) -> None:
    chance = random.Random(3)
    engine_daemon.set(run=1)
    for turn in range(200):
        with connect(engine_daemon) as sock:
            if turn % 2:
                sock.send(hello())
                sock.recv(65536)
            for _ in range(4):
                good = bytearray(hello())
                for _ in range(chance.randrange(1, 30)):
                    good[chance.randrange(len(good))] = chance.randrange(256)
                datagram = bytes(good) if turn % 3 else chance.randbytes(chance.randrange(300))
                try:
                    sock.send(datagram or b"x")
                except OSError:
                    break
    assert engine_daemon.process.poll() is None
    assert engine_daemon.call("status")["knobs"]["run"] == 1
    log = engine_daemon.log_text()
    assert f"process {os.getpid()}" in log
    assert "turned away" in log or "garbage" in log


def test_a_client_that_lies_about_its_addresses_hurts_nobody(engine_daemon: EngineDaemon) -> None:
    engine_daemon.set(run=1)
    env = agent_env(engine_daemon.runtime)
    with holder(env) as one, holder(env) as two, connect(engine_daemon) as liar:
        for child in (one, two):
            child.ask("fill seed 512")
            child.ask("mark")
        sums = one.ask("sum")
        liar.send(hello())
        liar.recv(65536)
        top = 1 << 47
        for start, end in ((0, top), (4096, 8192), (top - 8192, top - 4096), (1 << 30, 1 << 40)):
            liar.send(struct.pack("=IIQ", 2, 1, 0) + struct.pack("=QQII", start, end, 1, 0))
        wait_until(
            lambda: engine_daemon.counters()["pages_sharing"] >= 512, "merging beside a liar"
        )
        assert one.ask("sum") == two.ask("sum") == sums


_MARKER = """
import ctypes, mmap, random, sys
libc = ctypes.CDLL(None)
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
region = mmap.mmap(-1, 64 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
region[:] = random.Random(1).randbytes(64 * 4096)
at = ctypes.addressof(ctypes.c_char.from_buffer(region))
libc.madvise(at, 64 * 4096, 12)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(20000):
    libc.madvise(at + turn % 32 * 4096, 4096, 12 + turn % 2)
print("done", flush=True)
sys.stdin.readline()
libc.madvise(at, 64 * 4096, 12)
print("done", flush=True)
sys.stdin.readline()
"""


def test_a_daemon_that_does_not_listen_holds_nobody_up_and_hears_of_everything_later(
    engine_daemon: EngineDaemon,
) -> None:
    engine_daemon.set(run=1)
    env = agent_env(engine_daemon.runtime)
    with Child(_MARKER, env=env) as one, Child(_MARKER, env=env) as two:
        assert one.read_line() == two.read_line() == "ready"
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == 64, "the merging")
        engine_daemon.process.send_signal(signal.SIGSTOP)
        try:
            assert one.ask("") == "done"  # more than the agent can keep for it
        finally:
            engine_daemon.process.send_signal(signal.SIGCONT)
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == 48, "what is marked")
        assert one.ask("") == "done"
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == 64, "the merging again")


def test_another_user_is_turned_away(engine_daemon: EngineDaemon) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    engine_daemon.runtime.parent.chmod(0o755)
    engine_daemon.runtime.chmod(0o777)
    (engine_daemon.runtime / "agent.sock").chmod(0o777)
    engine_daemon.set(run=1)
    with holder(agent_env(engine_daemon.runtime, 65534), user=65534) as child:
        child.ask("fill seed 64")
        child.ask("mark")
        wait_until(lambda: "is not this daemon's" in engine_daemon.log_text(), "the refusal")
    assert engine_daemon.counters()["pages_sharing"] == 0
