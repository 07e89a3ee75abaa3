"""What is not merged, or not by every barrier, is named, and merged once it can be."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.control_server import short_folder
from tests.support.engine import EngineDaemon
from tests.support.environment import require
from tests.support.processes import Child
from tests.support.users import agent_for
from tests.support.victims import agent_env, compiled
from tests.support.waiting import wait_until

N = 256
NOBODY = 65534


@contextlib.contextmanager
def pair(daemon: EngineDaemon, what: str) -> Iterator[tuple[Child, Child]]:
    """Two with equal memory; the first is in a position to do `what`."""
    env, program = agent_env(daemon.runtime), str(compiled("refused"))
    with (
        Child([program, what, str(N)], env=env) as one,
        Child([program, "nothing", str(N)], env=env) as two,
    ):
        assert one.read_line() == two.read_line() == "ready"
        daemon.wait_registered(2)
        yield one, two


def row(daemon: EngineDaemon, child: Child) -> dict[str, Any]:
    found: dict[str, Any] = [r for r in daemon.call("processes") if r["pid"] == child.pid][-1]
    return found


@pytest.mark.parametrize(
    "what", ["io_uring", "aio", "userfaultfd", "mlockall", "clone-vm", "process_vm"]
)
def test_a_process_whose_pages_may_be_written_unseen_is_refused_by_name(
    engine_daemon: EngineDaemon, what: str
) -> None:
    with pair(engine_daemon, what) as (one, _):
        require(one.ask("begin") == "done", f"leave to use {what}")
        engine_daemon.set(run=1)
        wait_until(lambda: row(engine_daemon, one)["refused"] == what, "the refusal's name")
        engine_daemon.settle(3)
        assert engine_daemon.counters()["pages_sharing"] == 0
        assert f"refused: {what}" in engine_daemon.log_text()
        if what in ("clone-vm", "process_vm"):  # stay refused: who knows what goes on
            return
        assert one.ask("end") == "done"
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == N, "the merging after it")
        assert row(engine_daemon, one)["refused"] == ""


def test_a_process_that_is_merged_already_is_left_alone_once_it_pins_memory(
    engine_daemon: EngineDaemon,
) -> None:
    with pair(engine_daemon, "io_uring") as (one, two):
        engine_daemon.set(run=1)
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == N, "the merging")
        require(one.ask("begin") == "done", "leave to use io_uring")
        # The page that the ring holds is the process's own again; who would merge it finds out.
        wait_until(lambda: row(engine_daemon, one)["refused"] == "io_uring", "the refusal's name")
        assert one.ask("end") == two.ask("end") == "done"
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == N, "the merging after it")


def test_pages_are_compared_with_the_threads_stopped_while_a_file_is_open_for_direct_reads(
    engine_daemon: EngineDaemon,
) -> None:
    with pair(engine_daemon, "direct") as (one, two):
        require(one.ask("begin") == "done", "a file system with O_DIRECT")
        engine_daemon.set(run=1)
        wait_until(lambda: engine_daemon.counters()["pages_sharing"] == N, "the merging")
        require(row(engine_daemon, two)["barrier"] == "uffd", "userfaultfd")
        assert row(engine_daemon, one)["barrier"] == "freeze"
        assert row(engine_daemon, one)["refused"] == ""


def test_a_command_that_becomes_another_user_is_named_by_run(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root, to give a file away")
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    os.chown(program, 65534, 65534)
    program.chmod(0o4755)
    with short_folder() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "pagemerge", "run", "--ksm", "engine", "--", str(program)],
            env={**os.environ, "PAGEMERGE_RUNTIME_DIR": str(folder / "run")},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    assert f"the agent can't come into {program}: {program} is set-user-ID" in done.stderr


def test_a_process_with_more_privileges_than_its_user_gets_no_agent(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root, to make a set-user-ID program")
    agent = agent_for(NOBODY)
    source = tmp_path / "program.c"
    source.write_text(
        "#include <dlfcn.h>\n#include <stdio.h>\n"
        f'int main(void) {{ void *agent = dlopen("{agent}", RTLD_NOW);\n'
        'int (*start)(const char *) = dlsym(agent, "pm_agent_start");\n'
        'printf("%d\\n", start("/nowhere")); return 0; }\n'
    )
    program = tmp_path / "program"
    subprocess.run(["cc", "-o", program, source], check=True)
    tmp_path.parent.parent.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o755)
    program.chmod(0o4755)
    done = subprocess.run(
        [program], user=NOBODY, capture_output=True, text=True, check=True, timeout=30
    )
    assert int(done.stdout) == -errno.EPERM
