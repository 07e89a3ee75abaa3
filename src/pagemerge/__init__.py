"""Samepage merging for Linux: an engine in user space, and the kernel's KSM driven.

A program has its own memory merged by `madvise`, `enable` and `sealed`; `connect` gives the
implementation's knobs, counters, processes, regions and events. Importing this package is light:
what speaks to the daemon is loaded when it is first used, and the agent comes into the process
with the first request.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Literal, overload

if TYPE_CHECKING:
    from pathlib import Path

    from pagemerge.engine.client import EngineKsm
    from pagemerge.errors import (
        CommandError,
        EngineError,
        FormatError,
        KernelError,
        NotPermittedError,
        NotSupportedError,
        PagemergeError,
        ProcessGoneError,
        RejectedError,
    )
    from pagemerge.ksm import Event, Knobs, Ksm, LostEvents, Process, Region
    from pagemerge.requests import (
        MADV_MERGEABLE,
        MADV_UNMERGEABLE,
        Sealed,
        disable,
        enable,
        is_enabled,
        madvise,
        sealed,
    )

__version__ = "0.1.0"

_HOMES = {
    "EngineKsm": "pagemerge.engine.client",
    **dict.fromkeys(
        (
            "MADV_MERGEABLE",
            "MADV_UNMERGEABLE",
            "Sealed",
            "disable",
            "enable",
            "is_enabled",
            "madvise",
            "sealed",
        ),
        "pagemerge.requests",
    ),
    **dict.fromkeys(
        (
            "CommandError",
            "EngineError",
            "FormatError",
            "KernelError",
            "NotPermittedError",
            "NotSupportedError",
            "PagemergeError",
            "ProcessGoneError",
            "RejectedError",
        ),
        "pagemerge.errors",
    ),
    **dict.fromkeys(("Event", "Knobs", "Ksm", "LostEvents", "Process", "Region"), "pagemerge.ksm"),
}

__all__ = [
    "MADV_MERGEABLE",
    "MADV_UNMERGEABLE",
    "CommandError",
    "EngineError",
    "EngineKsm",
    "Event",
    "FormatError",
    "KernelError",
    "Knobs",
    "Ksm",
    "LostEvents",
    "NotPermittedError",
    "NotSupportedError",
    "PagemergeError",
    "Process",
    "ProcessGoneError",
    "Region",
    "RejectedError",
    "Sealed",
    "__version__",
    "connect",
    "disable",
    "enable",
    "is_enabled",
    "madvise",
    "sealed",
]


@overload
def connect(ksm: Literal["engine"], *, runtime_dir: Path | None = None) -> EngineKsm: ...


@overload
def connect(ksm: None = None, *, runtime_dir: Path) -> EngineKsm: ...


@overload
def connect(ksm: Literal["kernel"] | None = None) -> Ksm: ...


def connect(
    ksm: Literal["engine", "kernel"] | None = None, *, runtime_dir: Path | None = None
) -> Ksm:
    """Connect to an implementation of samepage merging.

    Args:
        ksm: "engine": this user's daemon, started by `pagemerge daemon`; "kernel": Linux's KSM
            (/sys/kernel/mm/ksm); None: the kernel's where it can be used, otherwise the engine
            (docs/reference/choice.md).
        runtime_dir: the folder of the engine's sockets, which means the engine; None: the user's
            own.

    Raises:
        CommandError: there is no such implementation.
        EngineError: no daemon is running there.
        NotSupportedError: this kernel has no KSM.
    """
    from pagemerge.choice import open_ksm

    named = ksm or ("engine" if runtime_dir else None)
    found = open_ksm(named, looks=True, runtime_dir=runtime_dir)
    found.knobs.read()  # a daemon that is not there is told now
    return found


def __getattr__(name: str) -> object:
    """Load a name's module when it is first asked for."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
