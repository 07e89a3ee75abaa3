"""Ratios against the goals, as a table for people and as JSON."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from benchmarks.cases import LatencyResult, MergeResult, ScanResult

__all__ = ["Results", "Row", "build_rows", "describe_machine", "print_report", "to_json"]

T = TypeVar("T")

# case -> implementation -> result
Results = dict[str, dict[str, MergeResult | ScanResult | LatencyResult]]

MERGE_GOALS = {
    "same": ("same order", 1 / 4),
    "shuffled-16": ("shuffled in 16-page pieces", 1 / 3),
    "shuffled-1": ("shuffled page by page", 2 / 3),
}


@dataclasses.dataclass
class Row:
    """One line of the table; a number is None where it was not measured."""

    what: str
    engine: float | None
    ksmd: float | None
    unit: str
    goal: str
    met: bool | None  # None: nothing can be said

    @property
    def ratio(self) -> float | None:
        """The engine's by ksmd's."""
        if self.engine is None or not self.ksmd or self.ksmd < 0:
            return None
        return self.engine / self.ksmd


def build_rows(results: Results) -> list[Row]:
    """One row for each goal that was measured."""
    rows: list[Row] = []
    for case, (title, limit) in MERGE_GOALS.items():
        merge = _pair(results, case, MergeResult)
        rows += _share_row(f"{title}: wall until merged", merge, lambda m: m.wall_seconds, limit)
        rows += _share_row(f"{title}: CPU until merged", merge, lambda m: m.cpu_seconds, limit)
        rows += _fidelity_row(f"{title}: pages_sharing", merge)
    merge = _pair(results, "same", MergeResult)
    rows += _share_row(
        "settled: CPU of a pass", merge, lambda m: m.settled.cpu_seconds_per_pass * 1e3, 0.02, "ms"
    )
    rows += _row(
        "metadata for a scanned page",
        merge,
        lambda m: m.metadata_bytes_per_page,
        "B",
        "≤ 16 B",
        lambda ours, _: ours <= 16,
    )
    scan = _pair(results, "scan", ScanResult)
    plain = max((s.plain_read_gb_per_second for s in scan if s is not None), default=0.0)
    rows += _row(
        f"first scan, one core (plain read {plain:.1f} GB/s)",
        scan,
        lambda s: s.gb_per_cpu_second,
        "GB/s",
        f"≥ {plain / 5:.1f} GB/s",  # 4 GB/s where a plain loop gives 20
        lambda ours, _: ours >= plain / 5,
    )
    latency = _pair(results, "latency", LatencyResult)
    for name, title in (("late", "due until done"), ("took", "the store alone")):
        rows += _row(
            f"writer, {title}: added p99",
            latency,
            lambda late, name=name: late.added_p99(name) / 1e3,  # type: ignore[misc]
            "µs",
            "≤ ksmd's",
            lambda ours, theirs: None if theirs is None else ours <= max(0.0, theirs),
        )
    return rows


def _pair(results: Results, case: str, kind: type[T]) -> tuple[T | None, T | None]:
    found = results.get(case, {})
    engine, ksmd = found.get("engine"), found.get("ksmd")
    return (
        engine if isinstance(engine, kind) else None,
        ksmd if isinstance(ksmd, kind) else None,
    )


def _row(
    what: str,
    pair: tuple[T | None, T | None],
    number: Callable[[T], float],
    unit: str,
    goal: str,
    judge: Callable[[float, float | None], bool | None],
) -> list[Row]:
    """One row, or none when neither was measured."""
    engine, ksmd = (None if result is None else number(result) for result in pair)
    if engine is None and ksmd is None:
        return []
    return [Row(what, engine, ksmd, unit, goal, None if engine is None else judge(engine, ksmd))]


def _share_row(
    what: str,
    pair: tuple[T | None, T | None],
    number: Callable[[T], float],
    limit: float,
    unit: str = "s",
) -> list[Row]:
    """At most so much of what ksmd takes."""

    def judge(ours: float, theirs: float | None) -> bool | None:
        return None if not theirs else ours / theirs <= limit

    return _row(what, pair, number, unit, f"≤ {limit:.2f} of ksmd's", judge)


def _fidelity_row(what: str, pair: tuple[MergeResult | None, MergeResult | None]) -> list[Row]:
    engine, ksmd = pair
    if engine is None:
        return _row(what, pair, lambda m: m.pages_sharing, "", "", lambda *_: None)
    expected = (engine.expected_pages, engine.expected_pages)
    if ksmd is not None:
        expected = (ksmd.pages_shared, ksmd.pages_sharing)
    met = (engine.pages_shared, engine.pages_sharing) == expected
    goal = "= ksmd's" if ksmd else f"= {expected[1]}"
    return _row(what, pair, lambda m: m.pages_sharing, "", goal, lambda *_: met)


def describe_machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    thp = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "kernel": platform.release(),
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "uid": os.geteuid(),
        "transparent_hugepage": thp.read_text().strip() if thp.exists() else None,
        "load_average_before": os.getloadavg(),
    }


def to_json(results: Results) -> dict[str, Any]:
    """All numbers of all cases."""
    out: dict[str, Any] = {}
    for case, by_name in results.items():
        for name, result in by_name.items():
            out.setdefault(case, {})[name] = dataclasses.asdict(result)
    return out


def print_report(console: Console, rows: list[Row], results: Results) -> None:
    """The table, and what it leaves unsaid."""
    table = Table(title="the engine beside the kernel's ksmd, on the same memory, in one run")
    table.add_column("what")
    for heading in ("engine", "ksmd", "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("goal")
    table.add_column("")
    for row in rows:
        met = {True: "[green]met[/]", False: "[red]NOT met[/]", None: "-"}[row.met]
        table.add_row(
            row.what,
            _number(row.engine, row.unit),
            _number(row.ksmd, row.unit),
            "-" if row.ratio is None else f"{row.ratio:.3f}",
            row.goal,
            met,
        )
    console.print(table)
    for case, by_name in results.items():
        for name, result in by_name.items():
            if result.bad_pages:
                console.print(f"[red]{case}, {name}: {result.bad_pages} pages are WRONG[/]")
            if isinstance(result, LatencyResult):
                console.print(f"{case}, {name}: {_describe_rounds(result)}")
            if isinstance(result, MergeResult) and result.pages_sharing < result.expected_pages:
                left = result.expected_pages - result.pages_sharing
                console.print(
                    f"{case}, {name}: {left} of {result.expected_pages} pages were left "
                    f"(vm.max_map_count is {result.max_map_count})"
                )


def _describe_rounds(result: LatencyResult) -> str:
    parts = []
    for what, title in (("late", "due until done"), ("took", "the store alone")):
        least, most = (ns / 1e3 for ns in result.spread(what))
        parts.append(f"{title} {least:,.3g} to {most:,.3g} µs")
    return f"added p99 of {len(result.rounds)} rounds: {', '.join(parts)}"


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    text = f"{value:,.0f}" if unit == "" else f"{value:,.3g}"
    return f"{text} {unit}".rstrip()
