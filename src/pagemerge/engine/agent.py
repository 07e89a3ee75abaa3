"""The agent in this process: libpagemerge-agent.so, loaded when it is first needed.

The agent is C and knows nothing of Python; it is the same library that `pagemerge run` preloads.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Final

from pagemerge.engine import paths
from pagemerge.errors import EngineError

__all__ = ["AGENT_SOCKET_VARIABLE", "Agent", "load_agent"]

AGENT_SOCKET_VARIABLE: Final = "PAGEMERGE_AGENT_SOCKET"


class Agent:
    """The library's functions; addresses and lengths are bytes, errors are `OSError`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Declare the functions of a loaded library."""
        address, length = ctypes.c_void_p, ctypes.c_size_t
        self._library = library
        for name, arguments in {
            "pm_agent_start": [ctypes.c_char_p],
            "pm_agent_madvise": [address, length, ctypes.c_int],
            "pm_agent_prctl_set": [ctypes.c_int],
            "pm_agent_prctl_get": [],
            "pm_agent_seal": [address, length],
            "pm_agent_unseal": [address, length],
        }.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int

    def start(self, socket_path: str) -> None:
        """Bring the agent up, and have it look for the daemon there; again does nothing."""
        self._check("pm_agent_start", self._library.pm_agent_start(os.fsencode(socket_path)))

    def madvise(self, address: int, length: int, advice: int) -> None:
        """Give MADV_MERGEABLE or MADV_UNMERGEABLE to the engine, as to the kernel."""
        self._check("madvise", self._library.pm_agent_madvise(address, length, advice))

    def set_memory_merge(self, on: bool) -> None:
        """Do what prctl(PR_SET_MEMORY_MERGE) does, for the engine."""
        self._check("prctl", self._library.pm_agent_prctl_set(int(on)))

    def memory_merge(self) -> bool:
        """Do what prctl(PR_GET_MEMORY_MERGE) does, for the engine."""
        return bool(self._check("prctl", self._library.pm_agent_prctl_get()))

    def seal(self, address: int, length: int) -> None:
        """Make pages read-only and have them merged without a barrier."""
        self._check("seal", self._library.pm_agent_seal(address, length))

    def unseal(self, address: int, length: int) -> None:
        """Make sealed pages writable again."""
        self._check("unseal", self._library.pm_agent_unseal(address, length))

    @staticmethod
    def _check(call: str, value: int) -> int:
        if value < 0:
            raise OSError(-value, f"{call}: {os.strerror(-value)}")
        return value


@cache
def load_agent() -> Agent:
    """Load the agent and start it, once a process.

    Raises:
        EngineError: it is missing, or cannot run here.
    """
    library = paths.agent_library()
    try:
        agent = Agent(ctypes.CDLL(str(library), use_errno=True))
        agent.start(
            os.environ.get(AGENT_SOCKET_VARIABLE) or str(paths.runtime_dir() / paths.AGENT_SOCKET)
        )
    except PermissionError as error:
        raise EngineError(
            "this process runs with more privileges than the user who started it "
            "(set-user-ID, set-group-ID or file capabilities)",
            hint="its memory is not merged: what is in its environment can't be trusted",
        ) from error
    except (OSError, AttributeError) as error:
        raise EngineError(f"the agent can't be started: {error}") from error
    return agent
