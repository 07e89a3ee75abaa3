"""Which implementation is meant where nobody names one: the rule, in one place.

1. `$PAGEMERGE_KSM` ("kernel" or "engine") names it.
2. `$PAGEMERGE_RUNTIME_DIR` or `$PAGEMERGE_AGENT_SOCKET` is set: the engine, whose folder it is
   (so it is in a command under `pagemerge run`).
3. The kernel's, where it can be used: it is at work (`run` is 1), or this user may switch it on
   (may write `/sys/kernel/mm/ksm/run`: root) and no daemon of this user's engine is running.
4. The engine.

Where something is only to be looked at, the kernel's comes before an engine that is not running.
Nothing that was not asked for switches the kernel's on, which is the whole machine's: who starts an
engine when none runs (`pagemerge run`) can use the kernel's only while it is at work.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Final, Literal

from pagemerge.errors import CommandError
from pagemerge.ksm import Ksm

__all__ = [
    "IMPLEMENTATIONS",
    "VARIABLE",
    "Implementation",
    "choose",
    "explain_run",
    "open_ksm",
]

Implementation = Literal["kernel", "engine"]

IMPLEMENTATIONS: Final[tuple[Implementation, ...]] = ("engine", "kernel")
VARIABLE: Final = "PAGEMERGE_KSM"
_ENGINE_VARIABLES: Final = ("PAGEMERGE_RUNTIME_DIR", "PAGEMERGE_AGENT_SOCKET")
_SYS_RUN: Final = Path("/sys/kernel/mm/ksm/run")


def choose(
    named: str | None = None,
    *,
    looks: bool = False,
    starts_engine: bool = False,
    sys_run: Path = _SYS_RUN,
) -> Implementation:
    """Find which implementation is meant.

    Args:
        named: by an option or argument; None: nobody has named one.
        looks: nothing will be asked of it but to show itself.
        starts_engine: an engine will be started where none is running, so that the kernel's is
            used only if it is at work.
        sys_run: the file that tells whether the kernel's is.

    Raises:
        CommandError: `named` or the variable names none.
        EngineError: the engine's runtime folder is not private to this user.
    """
    for name, where in ((named, ""), (os.environ.get(VARIABLE), f"{VARIABLE}: ")):
        if name:
            return _known(name, where)
    if any(os.environ.get(variable) for variable in _ENGINE_VARIABLES):
        return "engine"
    if _reads_1(sys_run):
        return "kernel"
    if starts_engine or _daemon_answers():
        return "engine"
    if os.access(sys_run, os.W_OK, effective_ids=True) or (looks and sys_run.exists()):
        return "kernel"
    return "engine"


def explain_run(
    named: str | None, chosen: Implementation, *, sys_run: Path = _SYS_RUN
) -> str | None:
    """Say why `run` has chosen an implementation; None where there was no other to be chosen.

    Args:
        named: by an option; None: nobody has named one.
        chosen: what `choose` gave.
        sys_run: the file that tells whether the kernel's is at work.
    """
    if named or any(os.environ.get(name) for name in (VARIABLE, *_ENGINE_VARIABLES)):
        return None
    if chosen == "kernel":
        return (
            "the kernel's KSM was used, as it is at work on this machine (run=1); "
            "'--ksm engine' has the engine do it"
        )
    if os.access(sys_run, os.W_OK, effective_ids=True):
        return (
            "the engine was used: the kernel's KSM is off, and is switched on, for the whole "
            "machine, only when asked to ('--start')"
        )
    return None


def open_ksm(
    named: str | None = None, *, looks: bool = False, runtime_dir: Path | None = None
) -> Ksm:
    """Open the implementation that is meant, see `choose`.

    Raises:
        CommandError: there is none of that name.
        EngineError: the engine's runtime folder is not private to this user.
        NotSupportedError: the kernel's was named, and this kernel has none.
    """
    ksm: Ksm
    # by name: each loads what the other does not need
    if choose(named, looks=looks) == "kernel":
        ksm = import_module("pagemerge.kernel.ksm").KernelKsm()
    else:
        ksm = import_module("pagemerge.engine.client").EngineKsm(runtime_dir)
    return ksm


def _known(name: str, where: str) -> Implementation:
    for implementation in IMPLEMENTATIONS:
        if implementation == name:
            return implementation
    raise CommandError(
        f"{where}there is no implementation {name!r}", hint=f"one of {', '.join(IMPLEMENTATIONS)}"
    )


def _reads_1(path: Path) -> bool:
    try:
        return path.read_text().strip() == "1"
    except OSError:
        return False


def _daemon_answers() -> bool:
    from pagemerge.engine import paths
    from pagemerge.engine.client import daemon_answers

    return daemon_answers(paths.runtime_dir(visiting=True))
