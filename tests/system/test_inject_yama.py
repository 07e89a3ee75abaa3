"""Where the security module Yama restricts tracing: refusals say so, children and root are reached.

Debian's kernels have Yama: `tools/old-kernel trixie --tests tests/system/test_inject_yama.py`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pagemerge.kernel import set_memory_merge
from tests.support.processes import Child
from tests.support.victims import compiled

SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")

pytestmark = [
    pytest.mark.usefixtures("kernel_ksm_lock"),
    # no wish of CI's: a kernel has it built in or has not
    pytest.mark.skipif(not SCOPE.exists(), reason="this kernel has no Yama"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root sets kernel.yama.ptrace_scope"),
]

NOBODY = 65534

# The modules are imported before: nobody may not be able to read this interpreter's.
SOURCE = f"""
import os, subprocess, sys, pagemerge._core
from pagemerge.errors import PagemergeError
from pagemerge.kernel import set_memory_merge
os.setuid({NOBODY})
pid = int(sys.argv[1])
if not pid:
    child = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\\n"
    pid = child.pid
try:
    print("done" if set_memory_merge(pid, on=True) else "")
    print("marked" if " mg" in open(f"/proc/{{pid}}/smaps").read() else "not marked")
except PagemergeError as error:
    print(error)
    print(error.hint)
"""


@contextlib.contextmanager
def ptrace_scope(value: int) -> Iterator[None]:
    before = SCOPE.read_text()
    SCOPE.write_text(str(value))
    try:
        yield
    finally:
        SCOPE.write_text(before)


def as_nobody(pid: int) -> str:
    """What enabling a process, or a child of its own (0), says to a user who is not root."""
    command = [sys.executable, "-c", SOURCE, str(pid), str(compiled("odd")), "epoll"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("scope", [1, 2])
def test_a_users_own_process_is_refused_with_the_reason_and_root_reaches_it(scope: int) -> None:
    with Child([str(compiled("odd")), "epoll"], user=NOBODY) as child:
        assert child.read_line() == "ready"
        with ptrace_scope(scope):
            said = as_nobody(child.pid)
            assert "may not be traced by this one" in said
            assert f"kernel.yama.ptrace_scope={scope} leaves it to root" in said
            assert " mg" not in Path(f"/proc/{child.pid}/smaps").read_text()
            assert set_memory_merge(child.pid, on=True)
        assert " mg" in Path(f"/proc/{child.pid}/smaps").read_text()
        assert child.ask("well?") == "ok"


def test_a_child_of_ones_own_is_reached_where_only_parents_may_trace() -> None:
    with ptrace_scope(1):
        assert as_nobody(0) == "done\nmarked\n"


def test_not_even_a_child_is_where_only_root_may_trace() -> None:
    with ptrace_scope(2):
        assert "kernel.yama.ptrace_scope=2 leaves it to root" in as_nobody(0)
