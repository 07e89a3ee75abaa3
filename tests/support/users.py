"""Running the installed package as another user, who may be kept out of this one's folders."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pagemerge
from tests.support.environment import lacking

__all__ = ["agent_for", "package_for", "python_for"]

PACKAGE = Path(pagemerge.__file__).parent
AGENT = "libpagemerge-agent.so"


@cache
def python_for(user: int | None) -> str:
    """An interpreter that this user can run; this one for the user who runs the tests."""
    if user is None:
        return sys.executable
    candidates = (sys.executable, "/usr/bin/python3")
    found = next((candidate for candidate in candidates if _runs(candidate, user)), None)
    return found or lacking(f"a Python 3.11 that user {user} can run")


def _runs(python: str, user: int) -> bool:
    command = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    try:
        return subprocess.run(command, user=user, check=False).returncode == 0
    except OSError:
        return False


@cache
def _copy() -> Path:
    """The installed package, and NumPy beside it, where everybody can read them."""
    folder = Path(tempfile.mkdtemp(prefix="pagemerge-package-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    for name in ("pagemerge", "numpy", "numpy.libs"):
        if (PACKAGE.parent / name).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "tests", "include")
            shutil.copytree(PACKAGE.parent / name, folder / name, ignore=unwanted)
    return folder


def package_for(user: int | None) -> dict[str, str]:
    """The environment in which this user's Python finds the package."""
    return {} if user is None else {"PYTHONPATH": str(_copy())}


def agent_for(user: int | None) -> Path:
    """The agent's library, for this user."""
    if user is None:
        return Path(os.environ.get("PAGEMERGE_TEST_AGENT", str(PACKAGE / AGENT)))
    return _copy() / "pagemerge" / AGENT
