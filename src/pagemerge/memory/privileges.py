"""What this process may do: its capabilities (/proc/self/status), and words for what it lacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pagemerge.memory.files import PROC

__all__ = ["CAPABILITIES", "has_capability", "what_it_takes"]

# uapi/linux/capability.h: those that this package's work may take
CAPABILITIES: Final = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
}


def has_capability(name: str, proc: Path = PROC) -> bool:
    """Tell whether this process has a capability; root's are taken for granted where none shows."""
    try:
        text = (proc / "self/status").read_text()
    except OSError:
        return os.geteuid() == 0
    for line in text.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAPABILITIES[name] & 1)
    return os.geteuid() == 0


def what_it_takes(name: str, otherwise: str, *, uid: int | None = None, proc: Path = PROC) -> str:
    """Say what would permit it: a capability, to a root that lacks it, as in most containers.

    Args:
        name: the capability.
        otherwise: what to say to all others.
        uid: whose; None: this process's effective user.
        proc: /proc.
    """
    if (os.geteuid() if uid is None else uid) != 0 or has_capability(name, proc):
        return otherwise
    option = name.removeprefix("CAP_")
    return (
        f"this root lacks {name}, as in most containers (docker run --cap-add {option}) and in "
        "user namespaces"
    )
