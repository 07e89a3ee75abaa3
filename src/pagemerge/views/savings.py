"""The report of `pagemerge run` for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

from pagemerge.units import (
    pages_to_bytes,
    render_bytes,
    render_count,
    render_duration,
    render_percent,
)
from pagemerge.views.terminal import make_console, make_table, show

__all__ = ["print_savings"]


def print_savings(report: Mapping[str, Any], file: TextIO) -> None:
    """Print what `Savings.report` has summed up."""
    console = make_console(file)
    saved = report["saved_bytes"]
    if saved is None:
        console.print("pagemerge: nothing was seen of the command", style="bold")
    else:
        who = "the kernel's KSM" if report["ksm"] == "kernel" else "the engine"
        console.print(f"pagemerge: saved {render_bytes(saved)}, by {who}", style="bold")
        rows = _kernel_rows(report) if report["ksm"] == "kernel" else _engine_rows(report)
        show(console, make_table(("", "", ""), rows, left=("",)))
    for note in report["notes"]:
        console.print(f"note: {note}")


def _engine_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [
        ("pages_shared", _pages(report["pages_shared"]), "pages kept"),
        ("pages_sharing", _pages(report["pages_sharing"]), "pages saved"),
        ("ksm_zero_pages", _pages(report["ksm_zero_pages"]), "zero pages saved"),
        ("pool", _bytes(report["pool_resident_bytes"]), "memory that holds the pages kept"),
        ("metadata", _bytes(report["metadata_bytes"]), "the daemon's records of pages"),
        ("Pss before", _bytes(report["pss_before_bytes"]), "if no page were shared by merging"),
        ("Pss after", _bytes(report["pss_after_bytes"]), _after(report)),
        (
            "CPU",
            render_duration(report["daemon_cpu_seconds"] + report["agents_cpu_seconds"]),
            f"daemon {render_duration(report['daemon_cpu_seconds'])}, agents "
            f"{render_duration(report['agents_cpu_seconds'])}; the command's own "
            f"{render_duration(report['command_cpu_seconds'])}",
        ),
        (
            "left for VMAs",
            _pages(report["merges_left_for_vmas"]),
            "not merged for want of mappings (vm.max_map_count)",
        ),
    ]


def _kernel_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    stat, after = report["ksm_stat"], report["pss_after_bytes"]
    return [
        (
            "ksm_merging_pages",
            _pages(stat["ksm_merging_pages"]),
            "pages of the command that are merged",
        ),
        ("ksm_zero_pages", _pages(stat["ksm_zero_pages"]), "zero pages saved, besides"),
        ("metadata", _bytes(report["metadata_bytes"]), "the kernel's records of its pages"),
        ("Pss before", _bytes(report["pss_before_bytes"]), "if no page were shared by merging"),
        (
            "Pss after",
            _bytes(after),
            f"{render_percent(after, report['pss_before_bytes'])} of it",
        ),
        (
            "CPU",
            render_duration(report["daemon_cpu_seconds"]),
            f"ksmd, for the whole machine, {report['passes']} passes; the command's own "
            f"{render_duration(report['command_cpu_seconds'])}",
        ),
    ]


def _after(report: Mapping[str, Any]) -> str:
    before, after = report["pss_before_bytes"], report["pss_after_bytes"]
    own = (
        "the daemon's own included"
        if report["daemon_pss_bytes"] is not None
        else "the daemon's own apart"
    )
    return f"{render_percent(after, before)} of it; {own}"


def _pages(value: int | None) -> str:
    return (
        "-" if value is None else f"{render_count(value)} ({render_bytes(pages_to_bytes(value))})"
    )


def _bytes(value: int | None) -> str:
    return "-" if value is None else render_bytes(value)
