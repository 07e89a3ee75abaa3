"""What the cases came to, as JSON: one object for each implementation and kernel."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.conformance.cases import CASES

__all__ = ["Recorder", "kernel_name", "memory_nodes", "node_count"]

# The worst that any of a case's tests came to is the case's outcome.
_ORDER = ("lacking", "holds", "differs", "failed")


def kernel_name() -> str:
    """The running kernel's version, without a builder's additions; Debian's in Debian's words."""
    debian = re.search(r"Debian (\d+(?:\.\d+)+)", platform.version())
    plain = re.match(r"\d+(?:\.\d+)+", platform.release())
    assert plain
    return debian[1] if debian else plain[0]


def node_count() -> int:
    """NUMA nodes that have memory; 1 where the kernel knows no nodes."""
    return max(1, len(memory_nodes()))


def memory_nodes() -> list[int]:
    """The numbers of the NUMA nodes that have memory."""
    try:
        text = Path("/sys/devices/system/node/has_memory").read_text().strip()
    except FileNotFoundError:
        return [0]
    nodes: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        nodes += range(int(first), int(last or first) + 1)
    return nodes


class Recorder:
    """Collects outcomes; `write` adds them to a file."""

    def __init__(self) -> None:
        self._runs: dict[str, dict[str, dict[str, Any]]] = {}

    def note(
        self,
        cases: list[str],
        implementation: str,
        differences: list[str],
        report: pytest.TestReport,
    ) -> None:
        """Take the outcome of a test, and what it said of differences."""
        outcome, notes = "failed", []
        if report.outcome == "passed":
            outcome = "differs" if differences else "holds"
            notes = differences
        elif report.outcome == "skipped":
            outcome = "lacking"
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            notes = [reason.removeprefix("Skipped: ").removeprefix("lacking: ")]
        for name in cases:
            entry = self._runs.setdefault(implementation, {}).setdefault(
                name, {"outcome": outcome, "tests": 0, "notes": []}
            )
            entry["tests"] += outcome != "lacking"
            entry["outcome"] = max(entry["outcome"], outcome, key=_ORDER.index)
            entry["notes"] += [note for note in dict.fromkeys(notes) if note not in entry["notes"]]

    def write(self, path: Path) -> None:
        """Add this run to the file; its cases take the place of what was there for this kernel."""
        runs = json.loads(path.read_text())["runs"] if path.exists() else []
        for implementation, results in self._runs.items():
            head = {
                "implementation": implementation,
                "kernel": kernel_name(),
                "nodes": node_count(),
                "cpus": os.cpu_count(),
            }
            found: dict[str, Any] = {}
            for run in runs:
                found |= run["results"] if _key(run) == _key(head) else {}
            found |= results
            runs = [run for run in runs if _key(run) != _key(head)]
            runs.append(head | {"results": {name: found[name] for name in CASES if name in found}})
        runs.sort(key=_key)
        path.write_text(json.dumps({"cases": CASES, "runs": runs}, indent=1) + "\n")


def _key(run: dict[str, Any]) -> tuple[bool, list[int], str]:
    """The engine first, then kernels by version."""
    numbers = [int(part) for part in re.findall(r"\d+", run["kernel"])]
    return run["implementation"] != "engine", numbers, run["kernel"]
