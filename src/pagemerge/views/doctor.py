"""`doctor` for people and for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pagemerge.ksm.doctor import Facts, Finding, breakage_bytes
from pagemerge.ksm.worth import estimate_spare_bytes
from pagemerge.units import render_bytes
from pagemerge.views.terminal import make_console

__all__ = ["doctor_data", "print_doctor"]

_STYLES = {"problem": "bold red", "warning": "bold yellow", "note": "bold"}


def doctor_data(
    facts: Facts, findings: Sequence[Finding], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Give what was found; the keys stay the same whatever it is."""
    return {
        "ksm": facts.machine.implementation,
        "findings": [asdict(finding) for finding in findings],
        "processes": [process.pid for process in facts.processes],
        "breakage": {
            "needed_bytes": breakage_bytes(facts.machine),
            "available_bytes": estimate_spare_bytes(facts.machine.meminfo),
        },
        "unread": [*facts.unread, *notes],
    }


def print_doctor(facts: Facts, findings: Sequence[Finding], notes: Sequence[str] = ()) -> None:
    """Print a paragraph a finding, the gravest first."""
    console = make_console()
    for finding in findings:
        console.print(f"{finding.severity}: {finding.name}", style=_STYLES[finding.severity])
        console.print(f"  {finding.cause}", soft_wrap=not console.is_terminal)
        for evidence in finding.evidence:
            console.print(f"    {evidence.name} = {evidence.value}    {evidence.file}")
        for number, cure in enumerate(finding.cure):
            console.print(f"  {'cure:' if not number else '     '} {cure}")
        console.print()
    if facts.machine.has_ksm:
        who = "the kernel's KSM" if facts.machine.implementation == "kernel" else "the engine"
        needed = breakage_bytes(facts.machine)
        spare = estimate_spare_bytes(facts.machine.meminfo)
        console.print(
            f"Merging by {who} spares {render_bytes(needed)} now. If all of it were written to, "
            "that much would be needed again; "
            + ("how much there is, is unknown." if spare is None else f"{render_bytes(spare)} are")
            + ("" if spare is None else " available, free swap included.")
        )
    if not findings:
        missed = facts.unread or notes
        console.print(
            "Nothing wrong was found in what could be read." if missed else "Nothing is wrong."
        )
    for text in [*facts.unread, *notes]:
        sys.stderr.write(f"note: not read: {text}\n")
