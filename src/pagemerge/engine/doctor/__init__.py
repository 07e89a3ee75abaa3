"""Why does the engine share nothing? Every known cause as one small check over facts."""

from pagemerge.engine.doctor.client import CLIENT_CHECKS
from pagemerge.engine.doctor.daemon import DAEMON_CHECKS
from pagemerge.engine.doctor.facts import ClientFacts, DaemonFacts, EngineFacts
from pagemerge.engine.doctor.reading import read_facts
from pagemerge.ksm.doctor import (
    COMMON_CHECKS,
    Finding,
    by_gravity,
    in_huge_pages,
    little_marked,
    never_mergeable,
    not_touched,
    not_visited,
    process_costs_more,
    swapped,
)

__all__ = [
    "CLIENT_CHECKS",
    "DAEMON_CHECKS",
    "SHARED_CHECKS",
    "ClientFacts",
    "DaemonFacts",
    "EngineFacts",
    "diagnose",
    "read_facts",
]

SHARED_CHECKS = (
    little_marked,
    never_mergeable,
    not_touched,
    not_visited,
    in_huge_pages,
    swapped,
    process_costs_more,
)


def diagnose(facts: EngineFacts) -> list[Finding]:
    """Go through all checks; the gravest findings come first. Pure: it reads nothing."""
    found = [finding for check in DAEMON_CHECKS if (finding := check(facts))]
    found += [finding for common in COMMON_CHECKS if (finding := common(facts))]
    for process in facts.processes:
        found += [finding for own in CLIENT_CHECKS if (finding := own(facts, process))]
        if process.is_client and not process.refused:
            found += [finding for shared in SHARED_CHECKS if (finding := shared(facts, process))]
    return by_gravity(found)
