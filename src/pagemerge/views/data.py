"""JSON: stable keys, the kernel's names where the kernel has one; numbers in pages and bytes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pagemerge.ksm import KnobValue, Process, Region

__all__ = ["print_json", "process_data", "region_data", "status_data"]


def print_json(value: Any) -> None:
    """Print a value, indented, with a newline at its end."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def status_data(
    implementation: str,
    knobs: Mapping[str, KnobValue | None],
    counters: Mapping[str, int | None],
    facts: Mapping[str, object],
) -> dict[str, Any]:
    """Put knobs and counters side by side under their names, the rest under `ksmd`."""
    return {"ksm": implementation, **knobs, **counters, "ksmd": dict(facts)}


def process_data(process: Process) -> dict[str, Any]:
    """Give a process's fields; what only its implementation knows lies beside them."""
    data = asdict(process)
    return {**data.pop("own"), **data}


def region_data(region: Region) -> dict[str, Any]:
    """Give a region's fields; addresses are numbers."""
    return asdict(region)
