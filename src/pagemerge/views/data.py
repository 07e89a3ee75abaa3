"""JSON: stable keys, the kernel's names where the kernel has one; numbers in pages and bytes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from pagemerge.ksm import KnobValue, Process, Region, RegionGroup

__all__ = [
    "group_data",
    "print_json",
    "print_json_rows",
    "process_data",
    "region_data",
    "status_data",
]

_PROCESS = tuple(field.name for field in fields(Process) if field.name != "own")
_REGION = tuple(field.name for field in fields(Region))
_GROUP = tuple(field.name for field in fields(RegionGroup))


def print_json(value: Any) -> None:
    """Print a value, indented, with a newline at its end."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_json_rows(rows: Iterable[Any]) -> None:
    """Print a list, a line an item: for lists of any length (json indents in Python, not in C)."""
    text = ",\n  ".join(map(json.dumps, rows))
    sys.stdout.write(f"[\n  {text}\n]\n" if text else "[]\n")


def status_data(
    implementation: str,
    knobs: Mapping[str, KnobValue | None],
    counters: Mapping[str, int | None],
    facts: Mapping[str, object],
    worth: Mapping[str, int | float | None],
) -> dict[str, Any]:
    """Put knobs and counters side by side under their names, the rest under `ksmd` and `worth`."""
    return {
        "ksm": implementation,
        **knobs,
        **counters,
        "ksmd": dict(facts),
        "worth": dict(worth),
    }


def process_data(implementation: str, process: Process) -> dict[str, Any]:
    """Give a process's fields; what only its implementation knows lies beside them."""
    data = {name: getattr(process, name) for name in _PROCESS}
    return {"ksm": implementation, **process.own, **data}


def region_data(implementation: str, region: Region) -> dict[str, Any]:
    """Give a region's fields; addresses are numbers."""
    return {"ksm": implementation, **{name: getattr(region, name) for name in _REGION}}


def group_data(implementation: str, group: RegionGroup) -> dict[str, Any]:
    """Give the fields of regions summed by name."""
    return {"ksm": implementation, **{name: getattr(group, name) for name in _GROUP}}
