"""Why is nothing shared? Every known cause as one small check over facts that were read before."""

from pagemerge.kernel.doctor.machine import MACHINE_CHECKS
from pagemerge.kernel.doctor.process import PROCESS_CHECKS
from pagemerge.kernel.doctor.reading import read_facts
from pagemerge.ksm.doctor import (
    Contents,
    Evidence,
    Facts,
    Finding,
    Machine,
    ProcessFacts,
    Severity,
    breakage_bytes,
    by_gravity,
)

__all__ = [
    "MACHINE_CHECKS",
    "PROCESS_CHECKS",
    "Contents",
    "Evidence",
    "Facts",
    "Finding",
    "Machine",
    "ProcessFacts",
    "Severity",
    "breakage_bytes",
    "diagnose",
    "read_facts",
]


def diagnose(facts: Facts) -> list[Finding]:
    """Go through all checks; the gravest findings come first. Pure: it reads nothing."""
    found = [finding for check in MACHINE_CHECKS if (finding := check(facts))]
    found += [
        finding
        for process in facts.processes
        for check in PROCESS_CHECKS
        if (finding := check(facts, process))
    ]
    return by_gravity(found)
