"""Completions are programs: the shells that are there run them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pagemerge.commands import COMMANDS, main

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture(params=SHELLS)
def script(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    assert main(["completion", request.param]) == 0
    path = tmp_path / str(request.param)
    path.write_text(capsys.readouterr().out)
    return path


def test_each_names_all_commands(script: Path) -> None:
    text = script.read_text()
    assert all(command.NAME in text for command in COMMANDS)


def test_each_is_right_for_its_shell(script: Path) -> None:
    shell = shutil.which(script.name)
    if shell is None:
        pytest.skip(f"{script.name} is not installed")
    subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.parametrize(
    ("words", "last", "expected"),
    [
        (["pagemerge", "sta"], "sta", ["status"]),
        (["pagemerge", "status", "--j"], "--j", ["--json"]),
        (["pagemerge", "status", "--ksm", ""], "", ["engine", "kernel"]),
        (["pagemerge", "set", "smart"], "smart", ["smart_scan="]),
        (["pagemerge", "completion", "f"], "f", ["fish"]),
    ],
)
def test_bash_completes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    last: str,
    expected: list[str],
) -> None:
    assert main(["completion", "bash"]) == 0
    (tmp_path / "bash").write_text(capsys.readouterr().out)
    assert words[-1] == last
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"source {tmp_path / 'bash'}; compopt() {{ :; }}; COMP_WORDS=({quoted}); "
        f"COMP_CWORD={len(words) - 1}; _pagemerge; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected
    assert done.stderr == ""
