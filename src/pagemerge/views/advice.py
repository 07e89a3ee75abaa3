"""`advise` for people."""

from __future__ import annotations

import sys

from pagemerge.insight import Advice
from pagemerge.units import pages_to_bytes, render_bytes, render_percent
from pagemerge.views.terminal import make_console, make_table

__all__ = ["print_advice"]


def print_advice(advice: Advice) -> None:
    """Print the set of regions, a row each."""
    console = make_console()
    if not advice.regions:
        console.print("nothing to merge: no two pages are equal", style="bold")
    else:
        console.print(
            f"{len(advice.regions)} of {len(advice.estimate.regions)} regions give "
            f"{_bytes(advice.saved_pages)} of {_bytes(advice.all_pages)} "
            f"({render_percent(advice.saved_pages, advice.all_pages)}); ksmd would visit "
            f"{render_percent(advice.rmap_items, advice.all_rmap_items)} of the pages",
            style="bold",
        )
        console.print()
        rows = [
            (
                str(item.region.pid),
                f"{item.region.start:x}-{item.region.end:x}",
                _bytes(item.region.present_pages),
                _bytes(item.region.saved_pages + item.region.zero_pages),
                render_percent(item.cumulative_share, 1),
                "yes" if item.region.mergeable else "no",
                f"{item.region.perms} {item.region.name or '[anon]'}",
            )
            for item in advice.regions
        ]
        columns = ("pid", "region", "present", "saves", "together", "marked", "mapping")
        console.print(make_table(columns, rows, left=("region", "mapping")))
    for note in advice.estimate.notes:
        sys.stderr.write(f"note: {note}\n")


def _bytes(pages: float) -> str:
    return render_bytes(pages_to_bytes(round(pages)))
