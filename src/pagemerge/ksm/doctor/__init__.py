"""Why is nothing shared? The causes that both implementations have, as checks over facts. Pure."""

from pagemerge.ksm.doctor.common import COMMON_CHECKS, Check, breakage_bytes, evidence_of
from pagemerge.ksm.doctor.facts import Contents, Facts, Machine, ProcessFacts
from pagemerge.ksm.doctor.finding import Evidence, Finding, Severity, by_gravity
from pagemerge.ksm.doctor.processes import (
    LITTLE_BYTES,
    ProcessCheck,
    finding_of,
    in_huge_pages,
    little_marked,
    never_mergeable,
    not_touched,
    not_visited,
    process_costs_more,
    swapped,
)

__all__ = [
    "COMMON_CHECKS",
    "LITTLE_BYTES",
    "Check",
    "Contents",
    "Evidence",
    "Facts",
    "Finding",
    "Machine",
    "ProcessCheck",
    "ProcessFacts",
    "Severity",
    "breakage_bytes",
    "by_gravity",
    "evidence_of",
    "finding_of",
    "in_huge_pages",
    "little_marked",
    "never_mergeable",
    "not_touched",
    "not_visited",
    "process_costs_more",
    "swapped",
]
