"""`pagemerge set` and `run-state` on the running kernel: what it refuses is said in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pagemerge.commands import main
from pagemerge.errors import NotPermittedError
from tests.support.environment import require
from tests.support.kernel_ksm import KernelKsmControl
from tests.support.processes import Child
from tests.support.victims import holder

pytestmark = pytest.mark.ksm
PAGES = 64
NOBODY = 65534


@pytest.fixture
def merged(kernel_ksm: KernelKsmControl) -> Iterator[Child]:
    """A process with equal pages, which are merged."""
    with holder({}) as child:
        child.ask(f"same x {PAGES}")
        assert child.ask("mark") == "0"
        for name, value in {"pages_to_scan": 100_000, "sleep_millisecs": 1, "run": 1}.items():
            kernel_ksm.write(name, value)
        kernel_ksm.wait_passes(4)
        assert kernel_ksm.read("pages_sharing") >= PAGES - 1
        yield child


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run it; what it complained of, in one line with the hint."""
    capsys.readouterr()
    assert main([*arguments, "--ksm", "kernel"]) != 0
    out, err = capsys.readouterr()
    assert out == ""
    return err.replace("\n", " ")


@pytest.mark.usefixtures("merged")
@pytest.mark.parametrize("name", ["max_page_sharing", "merge_across_nodes"])
def test_what_pages_being_shared_forbids_is_said_and_can_be_done_as_the_hint_says(
    kernel_ksm: KernelKsmControl, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    if not kernel_ksm.has(name):
        pytest.skip(f"this kernel has no {name}")
    value = 100 if name == "max_page_sharing" else 0
    with pytest.raises(OSError, match="busy"):
        kernel_ksm.write(name, value)  # the kernel's own word
    text = refused(capsys, "set", f"{name}={value}")
    assert "while pages are shared" in text
    assert "EBUSY" in text
    assert f"run=2 {name}={value}" in text
    assert main(["set", "--ksm", "kernel", "run=2", f"{name}={value}"]) == 0
    assert kernel_ksm.read(name) == value


def test_the_advisor_having_pages_to_scan_is_said(
    kernel_ksm: KernelKsmControl, capsys: pytest.CaptureFixture[str]
) -> None:
    if not kernel_ksm.has("advisor_mode"):
        pytest.skip("this kernel has no advisor (Linux 6.8)")
    kernel_ksm.write("advisor_mode", "scan-time")
    with pytest.raises(OSError, match="Invalid"):
        kernel_ksm.write("pages_to_scan", 5)
    text = refused(capsys, "set", "pages_to_scan=5")
    assert "while advisor_mode is scan-time (EINVAL)" in text
    assert "advisor_mode=none before it" in text
    assert main(["set", "--ksm", "kernel", "advisor_mode=none", "pages_to_scan=5"]) == 0
    assert kernel_ksm.read("pages_to_scan") == 5


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("max_page_sharing=99999999999", "too large (ERANGE)"),
        ("max_page_sharing=1", "too small (EINVAL)"),
        ("pages_to_scan=4294967296", "too large (EINVAL)"),
        ("pages_to_scan=-1", "below 0 (EINVAL)"),
        ("run=3", "too large (EINVAL)"),
    ],
)
def test_a_value_that_the_kernel_refuses_is_refused_before_in_words(
    kernel_ksm: KernelKsmControl,
    capsys: pytest.CaptureFixture[str],
    assignment: str,
    words: str,
) -> None:
    name, _, value = assignment.partition("=")
    with pytest.raises(OSError, match=r"Invalid|range") as error:
        kernel_ksm.write(name, value)
    text = refused(capsys, "set", assignment)
    assert words in text
    number = {"EINVAL": 22, "ERANGE": 34}[words.split("(")[1].rstrip(")")]
    assert error.value.errno == number


@pytest.mark.usefixtures("kernel_ksm")
def test_who_may_not_write_is_told_before_anything_is_written() -> None:
    require(os.geteuid() == 0, "root, to become somebody else")
    # loaded first: another user can't read this interpreter's modules everywhere
    program = (
        "import os, sys\n"
        "from pagemerge.commands import main, make_parser\n"
        "import pagemerge.kernel.ksm, pagemerge.views.changes\n"
        "make_parser()\n"
        f"os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for command in (
        ["set", "pages_to_scan=123"],
        ["set", "--dry-run", "pages_to_scan=123"],
        ["run-state", "off"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *command, "--ksm", "kernel"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == NotPermittedError.exit_status, done.stderr
        assert "writing it is not permitted" in done.stderr
        assert "it takes root" in done.stderr


def test_run_state_switches_and_says_what_it_changed(
    kernel_ksm: KernelKsmControl, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run-state", "on", "--ksm", "kernel", "--dry-run"]) == 0
    assert kernel_ksm.read("run") == 2
    assert main(["run-state", "on", "--ksm", "kernel"]) == 0
    assert kernel_ksm.read("run") == 1
    assert main(["run-state", "off", "--ksm", "kernel"]) == 0
    assert kernel_ksm.read("run") == 0
    assert capsys.readouterr().out.splitlines() == [
        "run: 2 -> 1 (not written)",
        "run: 2 -> 1",
        "run: 1 -> 0",
    ]


@pytest.mark.usefixtures("merged")
def test_unmerging_says_what_it_takes_and_wants_to_be_agreed_to(
    kernel_ksm: KernelKsmControl, capsys: pytest.CaptureFixture[str]
) -> None:
    # a program asks, with no terminal
    command = [sys.executable, "-m", "pagemerge", "run-state", "unmerge", "--ksm", "kernel"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "it takes" in done.stderr
    assert "--yes agrees" in done.stderr
    assert kernel_ksm.read("run") == 1
    assert main(["run-state", "unmerge", "--ksm", "kernel", "--yes", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["run"] == {"old": 1, "new": 2}
    assert said["needed_bytes"] >= (PAGES - 1) * 4096
    assert kernel_ksm.read("pages_shared") == 0
