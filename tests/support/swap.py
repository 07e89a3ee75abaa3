"""Swap space for tests of what lies in it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["swap_file"]


@contextlib.contextmanager
def swap_file(folder: Path) -> Iterator[None]:
    """128 MiB of swap in a file (root)."""
    path = folder / "swap"
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=128"], check=True, capture_output=True
    )
    path.chmod(0o600)
    subprocess.run(["mkswap", path], check=True, capture_output=True)
    subprocess.run(["swapon", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["swapoff", path], check=True)
        path.unlink()
