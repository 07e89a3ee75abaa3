"""Whether the agent can come into a program by LD_PRELOAD: what the loader will do, said before."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

__all__ = ["why_not_preloaded"]

_ELF_HEAD: Final = struct.Struct("<4sBBBBB7xHHIQQQIHHHHHH")  # Elf64_Ehdr
_PROGRAM_HEADER_TYPE: Final = struct.Struct("<I")
_PT_INTERP: Final = 3
_ELFCLASS64: Final = 2
_FILE_CAPABILITIES: Final = "security.capability"


def why_not_preloaded(command: str, environment: Mapping[str, str]) -> str | None:
    """Say why a command will run without the agent; None when it will have it, or can't be read.

    A script is judged by its interpreter. The children that a command starts are not judged.

    Args:
        command: a program's name or path; a name is looked up in the environment's PATH.
        environment: what it will run in.
    """
    found = shutil.which(command, path=environment.get("PATH", os.defpath))
    if found is None:
        return None
    path = Path(found)
    try:
        interpreter = _read_interpreter(path)
        if interpreter is not None:
            path = interpreter
        return _gains_privilege(path) or _is_not_dynamic(path)
    except (OSError, struct.error):
        return None


def _read_interpreter(path: Path) -> Path | None:
    with path.open("rb") as file:
        line = file.readline(256)
    words = line[2:].split() if line.startswith(b"#!") else []
    return Path(os.fsdecode(words[0])) if words else None


def _gains_privilege(path: Path) -> str | None:
    """Find what makes the kernel set AT_SECURE, for which ld.so ignores LD_PRELOAD (ld.so(8))."""
    status = path.stat()
    if status.st_mode & stat.S_ISUID and status.st_uid != os.getuid():
        return f"{path} is set-user-ID"
    group_executes = status.st_mode & stat.S_IXGRP  # else the bit means mandatory locking
    if status.st_mode & stat.S_ISGID and group_executes and status.st_gid != os.getgid():
        return f"{path} is set-group-ID"
    if os.getuid() != 0 and _FILE_CAPABILITIES in os.listxattr(path):
        return f"{path} has capabilities of its own"
    return None


def _is_not_dynamic(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(_ELF_HEAD.size)
        if not head.startswith(b"\x7fELF"):
            return None
        fields = _ELF_HEAD.unpack(head)
        if fields[1] != _ELFCLASS64 or fields[7] != _own_machine():
            return f"{path} is for another kind of processor than the agent"
        offset, size, count = fields[10], fields[14], fields[15]
        for number in range(count):
            file.seek(offset + number * size)
            (kind,) = _PROGRAM_HEADER_TYPE.unpack(file.read(_PROGRAM_HEADER_TYPE.size))
            if kind == _PT_INTERP:
                return None
    return f"{path} is statically linked"


def _own_machine() -> int:
    """Read the e_machine of this interpreter, for which the agent was built, too."""
    with Path(sys.executable).open("rb") as file:
        machine: int = _ELF_HEAD.unpack(file.read(_ELF_HEAD.size))[7]
    return machine
