"""What a check finds: the cause, what shows it, how grave it is, what cures it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Evidence", "Finding", "Severity", "by_gravity"]


class Severity(StrEnum):
    """The gravest first."""

    PROBLEM = "problem"  # this alone keeps memory from being shared, or endangers the machine
    WARNING = "warning"  # it costs sharing, time or memory
    NOTE = "note"  # worth knowing; nothing is wrong


@dataclass(frozen=True, slots=True)
class Evidence:
    """A value that was read, and the file that it stood in."""

    name: str
    value: int | float | str | None
    file: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A cause that was found.

    Attributes:
        name: of the cause; it stays the same in all versions.
        severity: how grave it is.
        cause: a sentence or two.
        evidence: the values that show it.
        cure: commands; none where there is nothing to be done.
        pid: the process that it is about; None: the machine.
    """

    name: str
    severity: Severity
    cause: str
    evidence: tuple[Evidence, ...] = ()
    cure: tuple[str, ...] = ()
    pid: int | None = None


def by_gravity(findings: Iterable[Finding]) -> list[Finding]:
    """Sort them, the gravest first; those of one gravity stay in their order."""
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))
