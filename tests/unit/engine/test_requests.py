"""madvise, enable and sealed in a process that has no daemon: the agent is there all the same."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HEAD = """
import mmap, os, sys
import pagemerge
PAGE = mmap.PAGESIZE
def area(pages=4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS):
    found = mmap.mmap(-1, pages * PAGE, flags=flags)
    found[:] = b"x" * len(found)
    return found
def refused(action):
    try:
        action()
    except pagemerge.RejectedError as error:
        print(error, "|", error.hint)
    else:
        print("accepted")
"""


@pytest.fixture
def script(tmp_path: Path) -> ScriptRunner:
    return ScriptRunner(tmp_path)


class ScriptRunner:
    """Runs Python in a process of its own, since an agent does not leave once it is in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "r"

    def __call__(self, code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", HEAD + textwrap.dedent(code)],
            env={"PAGEMERGE_RUNTIME_DIR": str(self.folder), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )

    def lines(self, code: str) -> list[str]:
        done = self(code)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()


def test_whole_pages_of_any_buffer_are_taken(script: ScriptRunner) -> None:
    lines = script.lines(
        """
        for buffer in (area(), bytearray(10 * PAGE), bytes(10 * PAGE), memoryview(area())):
            length = pagemerge.madvise(buffer)
            print(length % PAGE, len(buffer) - length < 2 * PAGE)
        print(pagemerge.madvise(area(), pagemerge.MADV_UNMERGEABLE) // PAGE)
        """
    )
    assert lines == ["0 True"] * 4 + ["4"]


def test_numpy_arrays_are_taken_when_they_are_in_one_piece(script: ScriptRunner) -> None:
    pytest.importorskip("numpy")
    lines = script.lines(
        """
        import numpy as np
        print(pagemerge.madvise(np.ones((64, PAGE), order="F", dtype="u1")) >= 63 * PAGE)
        refused(lambda: pagemerge.madvise(np.ones((64, PAGE))[:, ::2]))
        """
    )
    assert lines[0] == "True"
    assert "not in one piece" in lines[1]
    assert "ascontiguousarray" in lines[1]


def test_what_cannot_work_is_refused_with_the_way_out(script: ScriptRunner) -> None:
    lines = script.lines(
        """
        refused(lambda: pagemerge.madvise(bytearray(100)))
        refused(lambda: pagemerge.madvise(area(flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)))
        with open(sys.executable, "rb") as file:
            program = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        refused(lambda: pagemerge.madvise(program))
        """
    )
    assert "no whole page" in lines[0]
    assert "pagemerge.enable()" in lines[0]
    assert "MAP_PRIVATE" in lines[1]
    assert "read-only mapping" in lines[2]


@pytest.mark.parametrize(
    ("call", "error"),
    [("pagemerge.madvise(7)", "TypeError"), ("pagemerge.madvise(area(), 99)", "CommandError")],
)
def test_what_makes_no_sense_is_an_error(script: ScriptRunner, call: str, error: str) -> None:
    done = script(call)
    assert done.returncode == 1
    assert error in done.stderr.splitlines()[-1]


def test_enabling_is_inherited_by_children(script: ScriptRunner) -> None:
    lines = script.lines(
        """
        def child():
            pid = os.fork()
            if pid == 0:
                os._exit(pagemerge.is_enabled())
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(pagemerge.is_enabled(), child())
        pagemerge.enable()
        print(pagemerge.is_enabled(), child())
        pagemerge.disable()
        print(pagemerge.is_enabled(), child())
        """
    )
    assert lines == ["False 0", "True 1", "False 0"]


def test_a_sealed_buffer_can_be_read_and_be_written_again_when_released(
    script: ScriptRunner,
) -> None:
    lines = script.lines(
        """
        buffer = area()
        with pagemerge.sealed(buffer) as seal:
            print(seal.is_sealed, seal.length // PAGE, buffer[0])
            try:
                buffer.close()
            except BufferError:
                print("held")
        print(seal.is_sealed)
        seal.release()
        buffer[0] = 7
        buffer.close()
        data = bytearray(10 * PAGE)
        pagemerge.sealed(data)  # nobody keeps the handle
        data[5 * PAGE] = 1
        print("written")
        """
    )
    assert lines == ["True 4 120", "held", "False", "written"]


def test_writing_to_a_sealed_buffer_ends_the_process(script: ScriptRunner) -> None:
    done = script("buffer = area(); seal = pagemerge.sealed(buffer); buffer[0] = 1")
    assert done.returncode == -11


def test_a_system_call_that_writes_to_a_sealed_buffer_fails(script: ScriptRunner) -> None:
    lines = script.lines(
        """
        buffer = area()
        seal = pagemerge.sealed(buffer)
        with open("/dev/zero", "rb", buffering=0) as zero:
            try:
                zero.readinto(buffer)
            except OSError as error:
                print(error.strerror)
        print(buffer[0])
        """
    )
    assert lines == ["Bad address", "120"]
