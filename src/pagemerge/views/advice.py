"""`advise` for people."""

from __future__ import annotations

import sys

from pagemerge.insight import Advice, Applied
from pagemerge.units import (
    pages_to_bytes,
    render_bytes,
    render_duration,
    render_name,
    render_percent,
)
from pagemerge.views.terminal import print_list

__all__ = ["print_advice", "print_applied"]


def print_advice(advice: Advice) -> None:
    """Print the set of regions, a row each."""
    if not advice.regions:
        sys.stdout.write("nothing to merge: no two pages are equal\n")
    else:
        title = (
            f"{len(advice.regions)} of {len(advice.estimate.regions)} regions give "
            f"{_bytes(advice.saved_pages)} of {_bytes(advice.all_pages)} "
            f"({render_percent(advice.saved_pages, advice.all_pages)}); ksmd would visit "
            f"{render_percent(advice.rmap_items, advice.all_rmap_items)} of the pages\n"
        )
        rows = [
            (
                str(item.region.pid or render_name(item.region.command)),
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
        print_list(title, columns, rows, left=("region", "mapping"), spare=("marked", "together"))
    for note in advice.estimate.notes:
        sys.stderr.write(f"note: {render_name(note)}\n")


def _bytes(pages: float) -> str:
    return render_bytes(pages_to_bytes(round(pages)))


def print_applied(applied: Applied, advice: Advice) -> None:
    """Print what was marked, and what came of it."""
    if not applied.regions:
        sys.stdout.write(f"{applied.ksm}: nothing to merge: no two pages are equal\n")
        return
    done = sum(region.error is None for region in applied.regions)
    rows = [
        (
            str(region.pid),
            f"{region.start:x}-{region.end:x}",
            _bytes(region.predicted_pages),
            "-" if region.merged_pages is None else _bytes(region.merged_pages),
            _off(region.merged_pages, region.predicted_pages),
            f"not marked: {region.error}" if region.error else region.name or "[anon]",
        )
        for region in applied.regions
    ]
    print_list(
        f"{applied.ksm}: {done} of {len(rows)} regions marked",
        ("pid", "region", "predicted", "merged", "off by", "mapping"),
        rows,
        left=("region", "mapping"),
        spare=("off by",),
    )
    write = sys.stdout.write
    if applied.saved_pages is not None:
        before = applied.saved_before_pages
        write(
            f"\nsaved: {_bytes(applied.saved_pages)}, predicted {_bytes(applied.predicted_pages)} "
            f"({_off(applied.saved_pages, applied.predicted_pages)})"
        )
        gained = _bytes(applied.saved_pages - before)
        write(f"; before {_bytes(before)}, gained {gained}\n" if before else "\n")
        write(
            f"{'settled' if applied.is_settled else 'not settled'} after {applied.passes} passes, "
            f"{render_duration(applied.seconds)}\n"
        )
    for note in (*advice.estimate.notes, *applied.notes):
        sys.stderr.write(f"note: {render_name(note)}\n")


def _off(pages: float | None, predicted: float) -> str:
    """Say how far off a prediction was."""
    if pages is None or not predicted:
        return "-"
    share = round(100 * (pages / predicted - 1), 2)
    return f"{share:+.2f} %" if share else "0 %"
