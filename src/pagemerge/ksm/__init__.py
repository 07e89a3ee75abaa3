"""The one interface to samepage merging, and the one table of its knobs, counters and events."""

from pagemerge.ksm.counters import COUNTERS, PROCESS_ITEMS
from pagemerge.ksm.events import EVENTS
from pagemerge.ksm.groups import RegionGroup, group_regions
from pagemerge.ksm.interface import (
    Event,
    Knobs,
    Ksm,
    LostEvents,
    Process,
    Region,
    Stop,
    known_events,
)
from pagemerge.ksm.items import Counter, EventField, EventKind, Knob, ProcessItem, Type, Unit
from pagemerge.ksm.knobs import KNOBS, find_knob
from pagemerge.ksm.values import (
    Change,
    KnobValue,
    known_knob,
    parse_assignment,
    parse_knob,
    parse_shown,
    plan_changes,
    render_knob,
)

__all__ = [
    "COUNTERS",
    "EVENTS",
    "KNOBS",
    "PROCESS_ITEMS",
    "Change",
    "Counter",
    "Event",
    "EventField",
    "EventKind",
    "Knob",
    "KnobValue",
    "Knobs",
    "Ksm",
    "LostEvents",
    "Process",
    "ProcessItem",
    "Region",
    "RegionGroup",
    "Stop",
    "Type",
    "Unit",
    "find_knob",
    "group_regions",
    "known_events",
    "known_knob",
    "parse_assignment",
    "parse_knob",
    "parse_shown",
    "plan_changes",
    "render_knob",
]
