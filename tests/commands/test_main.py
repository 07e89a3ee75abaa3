"""The command line as such: errors, statuses, help."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pagemerge
from pagemerge.commands import COMMANDS, main, make_parser
from pagemerge.commands.grammar import iter_commands
from pagemerge.ksm import COUNTERS, KNOBS
from tests.support.control_server import short_folder

PAGEMERGE = [sys.executable, "-m", "pagemerge"]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder in which no daemon runs."""
    with short_folder() as folder:
        monkeypatch.setenv("PAGEMERGE_RUNTIME_DIR", str(folder))
        yield folder


def test_an_error_is_a_line_and_a_hint_on_stderr(
    nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--ksm", "engine"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        f"pagemerge: error: no daemon is running in {nowhere}",
        "hint: start one with 'pagemerge daemon --detach', or use 'pagemerge run -- CMD'",
    ]


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["status", "--no-such-option"],
        ["status", "--js"],
        ["regions", "not-a-pid"],
        ["regions", "0"],
        ["status", "--watch=soon"],
        ["doctor", "--look", "soon"],
        ["doctor", "0"],
        ["doctor", "-1"],
        ["enable", "0"],
        ["enable", "--tree", "99999999999"],
        ["trace", "--pid", "0"],
        ["estimate", "1", "--settle", "soon"],
        ["set"],
        ["set", "pages_to_scan"],
        ["set", "page_to_scan=1"],
        ["set", "run=1", "run=0"],
        ["run"],
        ["run", "--"],
    ],
)
def test_wrong_arguments_end_with_status_2_and_a_hint(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pagemerge: error: ")
    assert "Traceback" not in err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pagemerge {pagemerge.__version__}\n"


@pytest.mark.parametrize("name", [command.NAME for command in COMMANDS])
def test_each_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    out = capsys.readouterr().out
    assert out.startswith(f"usage: pagemerge {name}")
    grammar = next(found for found in iter_commands(make_parser()) if found.name == name)
    assert all(option.help or not option.flags for option in grammar.options)


def test_a_reader_that_goes_away_is_no_error() -> None:
    """As in `pagemerge manual | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*PAGEMERGE, "manual"], stdout=writing, stderr=subprocess.PIPE, check=False
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_output_that_cannot_be_written_is_an_error_in_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*PAGEMERGE, "manual"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr == "pagemerge: error: the output can't be written: No space left on device\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8:strict"])
def test_what_an_encoding_lacks_is_no_error(encoding: str) -> None:
    source = "from pagemerge.commands import main; main(['manual']); print('x\\udcff\\xb5\\u2026')"
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[-1].startswith(b"x\\udcff")


def test_a_closed_stdout_is_no_error() -> None:
    """As in `pagemerge manual >&-`."""
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&-', "sh", *PAGEMERGE, "manual"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupt_ends_with_status_130(nowhere: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(nowhere / "control.sock"))
        silent.listen()
        with subprocess.Popen(
            [*PAGEMERGE, "status", "--ksm", "engine"], stderr=subprocess.PIPE
        ) as process:
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(100)
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, pagemerge.commands; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"rich", "numpy", "socket", "subprocess", "ctypes", "pagemerge._core"}
    assert not heavy & {*loaded}


def test_importing_the_package_loads_no_agent_and_little_else() -> None:
    code = "import sys, pagemerge; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in loaded if name.startswith("pagemerge")] == ["pagemerge"]
    assert "ctypes" not in loaded


def test_public_names_are_there_and_no_others() -> None:
    for name in pagemerge.__all__:
        assert getattr(pagemerge, name) is not None
    assert dir(pagemerge) == sorted(pagemerge.__all__)
    with pytest.raises(AttributeError):
        getattr(pagemerge, "no_such_name")  # noqa: B009


def test_the_manual_names_every_knob_and_counter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manual"]) == 0
    page = capsys.readouterr().out
    for item in (*KNOBS, *COUNTERS):
        assert f".B {item.name}" in page
    assert not any(line.startswith("'") for line in page.splitlines())
