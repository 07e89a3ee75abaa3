"""`estimate` for people."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pagemerge.insight import EngineCost, Estimate, Matrix
from pagemerge.units import (
    pages_to_bytes,
    render_bytes,
    render_count,
    render_duration,
    render_name,
    render_percent,
)
from pagemerge.views.terminal import make_console, make_table, show

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["print_estimate"]

_MATRIX_MAX = 8  # rows that fit beside each other


def print_estimate(estimate: Estimate, top: int) -> None:
    """Print the totals, processes, regions, pairs and contents."""
    console = make_console()
    console.print(
        f"merging would save {_pages(estimate.frames_saved)} of {_pages(estimate.present_pages)} "
        f"({render_percent(estimate.frames_saved, estimate.present_pages)}); "
        f"profit {render_bytes(estimate.general_profit)} after ksmd's metadata",
        style="bold",
    )
    console.print()
    totals = make_table(("", "pages", "", "meaning"), _totals(estimate), left=("", "meaning"))
    show(console, totals)
    console.print()
    show(console, make_table(("price", "", ""), _price(estimate), left=("price", "")))
    sections = (
        ("process", _processes(estimate, top), ("present", "merging", "zero", "saved", "volatile")),
        ("region", _regions(estimate, top), ("present", "merging", "zero", "saved", "runs")),
        ("content", _contents(estimate, top), ("pages", "frames", "processes", "mapping")),
    )
    for name, rows, columns in sections:
        if rows:
            console.print()
            show(console, make_table((*columns, name), rows, left=(name, "mapping")))
    for matrix in estimate.matrices:
        if 2 <= len(matrix.labels) <= _MATRIX_MAX:
            console.print()
            show(console, _matrix(matrix))
    for note in estimate.notes:
        sys.stderr.write(f"note: {render_name(note)}\n")


def _pages(pages: float) -> str:
    return render_bytes(pages_to_bytes(round(pages)))


def _totals(e: Estimate) -> list[tuple[str, str, str, str]]:
    other = e.without_zero_pages if e.use_zero_pages else e.with_zero_pages
    rows = [
        ("pages_shared", e.pages_shared, "pages kept"),
        ("pages_sharing", e.pages_sharing, "further mappings of them"),
        ("ksm_zero_pages", e.ksm_zero_pages, f"use_zero_pages={e.use_zero_pages}"),
        ("pages_unshared", e.pages_unshared, "without a twin"),
        (
            "pages_volatile",
            e.pages_volatile,
            "two looks, or shared by fork"
            if e.settle_seconds is not None
            else "shared by fork; --settle finds those that change",
        ),
        ("within a process", e.within_pages, "duplicates of its own pages"),
        ("between processes", e.between_pages, "duplicates of another's"),
        ("in huge pages", e.huge_pages, f"{e.split_huge_pages} huge pages would be split"),
        ("all zero", e.zero_pages, "whatever use_zero_pages is"),
    ]
    if e.split_zero_pages:
        meaning = "freed by splitting huge pages, in no counter of ksmd"
        rows.append(("... in huge pages", e.split_zero_pages, meaning))
    if e.already_pages:
        rows.append(("merged already", e.already_pages, "by the kernel's KSM"))
    shown = [
        (name, render_count(pages) + _range(e, name), _pages(pages), meaning)
        for name, pages, meaning in rows
    ]
    shown.append(
        (
            f"use_zero_pages={1 - e.use_zero_pages}",
            render_count(other.pages_sharing + other.ksm_zero_pages),
            render_bytes(other.general_profit),
            "sharing and zero pages, profit, with the other setting",
        )
    )
    return shown


def _range(estimate: Estimate, name: str) -> str:
    key = {"within a process": "within_pages", "between processes": "between_pages"}.get(name, name)
    interval = estimate.intervals.get(key)
    if interval is None or interval.low == interval.high:
        return ""
    return f" ({render_count(interval.low)}-{render_count(interval.high)})"


def _price(e: Estimate) -> list[tuple[str, str, str]]:
    rate = e.read_bytes / e.read_seconds if e.read_seconds else 0.0
    return [
        (
            "ksmd, time",
            "never" if e.ksmd.settle_seconds is None else render_duration(e.ksmd.settle_seconds),
            f"two passes at pages_to_scan={e.ksmd.pages_to_scan}, "
            f"sleep_millisecs={e.ksmd.sleep_millisecs}",
        ),
        (
            "ksmd, CPU",
            render_duration(e.ksmd.cpu_seconds),
            f"{e.ksmd.cpu_percent:.1f} % of a core meanwhile",
        ),
        ("ksmd, metadata", render_bytes(64 * e.rmap_items), f"{render_count(e.rmap_items)} pages"),
        *_engine_price(e.engine),
        (
            "this estimate",
            render_duration(e.read_seconds),
            f"{render_bytes(round(rate))}/s, {render_bytes(e.held_bytes)} held"
            + (f", one content in {e.sample}" if e.sample > 1 else ""),
        ),
    ]


def _engine_price(cost: EngineCost | None) -> list[tuple[str, str, str]]:
    if cost is None:
        return [("engine", "unknown", "a sample does not show what lies side by side")]
    return [
        (
            "engine, VMAs",
            render_count(cost.vmas),
            f"{render_count(cost.runs)} runs; one process has {render_count(cost.vmas_most)} then",
        ),
        ("engine, CPU", render_duration(cost.cpu_seconds), "to settle"),
    ]


def _processes(estimate: Estimate, top: int) -> list[tuple[str, ...]]:
    rows = sorted(estimate.processes, key=lambda p: -p.saved_pages - p.zero_pages)
    return [
        (
            _pages(p.present_pages),
            _pages(p.merging_pages),
            _pages(p.zero_pages),
            _pages(p.saved_pages),
            _pages(p.volatile_pages),
            (f"{p.command}[{p.pid}]" if p.pid else p.command) + (f" ({p.note})" if p.note else ""),
        )
        for p in rows[:top]
    ]


def _regions(estimate: Estimate, top: int) -> list[tuple[str, ...]]:
    rows = sorted(estimate.regions, key=lambda r: -r.saved_pages - r.zero_pages)
    return [
        (
            _pages(r.present_pages),
            _pages(r.merging_pages),
            _pages(r.zero_pages),
            _pages(r.saved_pages),
            "-" if estimate.engine is None else render_count(r.runs),
            f"{r.pid or r.command} {r.start:x}-{r.end:x} {r.perms} {r.name or '[anon]'}",
        )
        for r in rows[:top]
        if r.saved_pages or r.zero_pages
    ]


def _contents(estimate: Estimate, top: int) -> list[tuple[str, ...]]:
    return [
        (
            render_count(c.pages),
            render_count(c.frames),
            render_count(c.processes),
            c.name,
            c.description,
        )
        for c in estimate.top[:top]
        if c.pages > 2
    ]


def _matrix(matrix: Matrix) -> Table:
    columns = (f"shared by {matrix.by}", *(f"{i + 1}" for i in range(len(matrix.labels))))
    rows = [
        (f"{i + 1} {label}", *(_pages(cell) if cell else "-" for cell in row))
        for i, (label, row) in enumerate(zip(matrix.labels, matrix.pages, strict=True))
    ]
    return make_table(columns, rows, left=(columns[0],))
