"""tools/setup-system: looks for what the build needs, and names what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools" / "setup-system"
NOBODY = 65534


def run_as_ordinary_user(**env: str) -> subprocess.CompletedProcess[str]:
    """Run the script, given on stdin since another user may not be able to open it here."""
    with SCRIPT.open() as script:
        return subprocess.run(
            ["/bin/sh", "-s"],
            stdin=script,
            capture_output=True,
            text=True,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", **env},
            user=NOBODY if os.geteuid() == 0 else None,
            check=False,
        )


def test_a_machine_that_has_everything_is_left_alone() -> None:
    done = subprocess.run(
        [SCRIPT],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_ordinary_user_is_told_the_command_that_installs_what_is_missing() -> None:
    done = run_as_ordinary_user(CC="there-is-no-such-compiler")
    assert done.returncode == 1
    assert "missing: a C compiler (package gcc)" in done.stderr
    command = next(line for line in done.stderr.splitlines() if line.startswith("Install it with:"))
    assert command.startswith("Install it with:  sudo apt-get install -y")
    assert " gcc" in command


def test_without_any_python_its_parts_are_named() -> None:
    done = run_as_ordinary_user(PYTHON="there-is-no-such-python")
    assert done.returncode == 1
    for package in ("python3", "python3-venv", "python3-dev"):
        assert f"(package {package})" in done.stderr


def test_a_python_that_is_too_old_is_refused_by_version(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(
        [SCRIPT],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": str(old)},
        check=False,
    )
    assert done.returncode == 1
    assert "Python 3.9.2, but 3.11 or newer is needed" in done.stderr
