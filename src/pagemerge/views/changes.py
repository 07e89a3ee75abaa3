"""What `set` and `run-state` have changed, for people; it needs no tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from pagemerge.ksm import Change, KnobValue
from pagemerge.units import render_count

__all__ = ["print_changes"]


def print_changes(changes: Iterable[Change], *, dry_run: bool) -> None:
    """Print old and new values, a line each."""
    would = " (not written)" if dry_run else ""
    for change in changes:
        old, new = _shown(change.old), _shown(change.new)
        text = f"{change.name}: {old} -> {new}" if old != new else f"{change.name}: {new} already"
        sys.stdout.write(f"{text}{would}\n")


def _shown(value: KnobValue | None) -> str:
    """Write a value; a dash where there is none."""
    if value is None:
        return "-"
    return render_count(value) if isinstance(value, int) else value
