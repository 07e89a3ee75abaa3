"""The knobs and counters of the kernel's KSM: /sys/kernel/mm/ksm."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from pagemerge.errors import FormatError, NotPermittedError, NotSupportedError, RejectedError
from pagemerge.ksm import (
    COUNTERS,
    Change,
    Knobs,
    KnobValue,
    known_knob,
    parse_knob,
    parse_shown,
    plan_changes,
    render_knob,
)
from pagemerge.ksm.knobs import KNOBS

__all__ = ["SYS_KSM", "KernelKnobs", "read_counters"]

SYS_KSM: Final = Path("/sys/kernel/mm/ksm")


class KernelKnobs(Knobs):
    """The files of /sys/kernel/mm/ksm that can be written."""

    def __init__(self, folder: Path = SYS_KSM) -> None:
        """Read and write below `folder`."""
        self._folder = folder

    def read(self) -> dict[str, KnobValue | None]:
        """Read all knobs; None where this kernel has no such file.

        Raises:
            NotPermittedError, FormatError: one can't be read.
        """
        found: dict[str, KnobValue | None] = {}
        for knob in KNOBS:
            path = self._folder / knob.name
            text = _read(path)
            found[knob.name] = None if text is None else parse_shown(knob, text, str(path))
        return found

    def plan(self, **values: KnobValue | bool) -> list[Change]:
        """Check values as `set` would; nothing is written (see `Knobs.plan`).

        Raises:
            CommandError, RejectedError, NotSupportedError, NotPermittedError: as `Knobs.plan`.
        """
        current = self.read()
        for name in values:
            if current[known_knob(name).name] is None:
                raise _lacking(self._folder, name)
        shared = read_counters(self._folder).get("pages_shared") or 0
        changes = plan_changes(values, current, shared)
        for name in values:
            path = self._folder / known_knob(name).name
            if not os.access(path, os.W_OK, effective_ids=True):
                raise _not_permitted(path)
        return changes

    def set(self, **values: KnobValue | bool) -> list[Change]:
        """Write knobs in the order given; all are checked before the first is written.

        `run=2` returns when everything is unmerged.

        Raises:
            CommandError, RejectedError, NotSupportedError, NotPermittedError: see `Knobs.set`.
                Where only the kernel itself refuses, what was written before stays.
        """
        changes = self.plan(**values)
        for name, value in values.items():
            self._write(name, render_knob(parse_knob(known_knob(name), render_knob(value))))
        return changes

    def _write(self, name: str, text: str) -> None:
        path = self._folder / name
        try:
            path.write_text(f"{text}\n")
        except PermissionError as error:
            raise _not_permitted(path) from error
        except FileNotFoundError as error:
            raise _lacking(self._folder, name) from error
        except OSError as error:
            code = error.errno or 0
            if code == errno.EROFS:
                raise _not_permitted(path) from error
            raise RejectedError(
                f"{name} can't be {text!r}: {_REASONS.get(code, error.strerror)} "
                f"({errno.errorcode.get(code, code)})",
                where=str(path),
                hint=f"accepted: {known_knob(name).accepted}" if code == errno.EINVAL else None,
                errno=code,
            ) from error


def read_counters(folder: Path = SYS_KSM) -> dict[str, int | None]:
    """Read all counters; None where this kernel has no such file.

    Raises:
        NotPermittedError, FormatError: one can't be read.
    """
    found: dict[str, int | None] = {}
    for counter in COUNTERS:
        path = folder / counter.name
        text = None if counter.engine_only else _read(path)
        try:
            found[counter.name] = None if text is None else int(text)
        except ValueError as error:
            raise FormatError(f"{path}: {text!r} is not a number") from error
    return found


_REASONS: Final = {
    errno.EBUSY: "pages are shared, or a KSM page is still mapped; run=2 unmerges them first",
    errno.ENOMEM: "not enough memory for it (run=2: for a copy of every merged page)",
    errno.EINTR: "interrupted half-way",
    errno.EINVAL: "the kernel takes no such value, or not now",
    errno.ERANGE: "too large, or too small, for the kernel's number",
}


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise NotPermittedError(
            f"{path}: reading it is not permitted", where=str(path), hint="it takes root"
        ) from error


def _not_permitted(path: Path) -> NotPermittedError:
    """Say what it takes; root lacks it where /sys is read-only, or in a user namespace."""
    hint = (
        "/sys is read-only or another machine's here, as in most containers; set it on the host"
        if os.geteuid() == 0
        else "it takes root: 'sudo pagemerge ...'; or the engine, which takes none: --ksm engine"
    )
    return NotPermittedError(f"{path}: writing it is not permitted", where=str(path), hint=hint)


def _lacking(folder: Path, name: str) -> NotSupportedError:
    return NotSupportedError(
        f"this kernel has no {folder / name}",
        where=str(folder / name),
        hint=f"Linux {known_knob(name).since} brought it",
    )
