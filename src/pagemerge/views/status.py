"""`status` for people: knobs, counters, and in words what they come to; without rich."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence

from pagemerge.ksm import COUNTERS, KNOBS, KnobValue, Unit
from pagemerge.units import pages_to_bytes, render_bytes, render_count, render_duration
from pagemerge.views.terminal import render_list

__all__ = ["iter_worth", "print_status", "render_amount"]

_ROOM = 20  # columns: less than that for the last one says little
_STATES = {0: "stopped", 1: "running", 2: "stopped, unmerged"}

Worth = Mapping[str, int | float | None]


def print_status(
    implementation: str,
    knobs: Mapping[str, KnobValue | None],
    counters: Mapping[str, int | None],
    facts: Mapping[str, object],
    worth: Worth,
) -> None:
    """Print knobs, counters, what is known of ksmd, and whether it is worth it."""
    run = knobs.get("run")
    state = _STATES.get(run, "unknown") if isinstance(run, int) else "unknown"
    lines = [_bold(f"{implementation}: {state}")]
    lines += [line for text in iter_worth(implementation, worth) for line in _wrap(text, 0)]
    lines += [
        "",
        *_table(
            ("knob", "value", "unit", "meaning"),
            [(knob.name, _shown(knobs.get(knob.name)), knob.unit, knob.meaning) for knob in KNOBS],
        ),
    ]
    lines += [
        "",
        *_table(
            ("counter", "value", "", "meaning"),
            [
                (
                    counter.name,
                    _shown(counters.get(counter.name)),
                    render_amount(counters.get(counter.name), counter.unit),
                    counter.meaning,
                )
                for counter in COUNTERS
                # what only the engine counts says nothing of the kernel's KSM
                if (not counter.engine_only or counters.get(counter.name) is not None)
                and (not counter.is_detail or counters.get(counter.name))
            ],
        ),
    ]
    if facts:
        rows = [(name, _fact(name, value)) for name, value in facts.items()]
        lines += ["", *_table(("ksmd", "value"), rows)]
    sys.stdout.write("\n".join(lines) + "\n")


def iter_worth(implementation: str, worth: Worth) -> Iterator[str]:
    """Say in sentences whether merging is worth its price, as far as the figures tell."""
    saved, profit = worth["saved_bytes"], worth["profit_bytes"]
    if profit is not None:
        price = (
            "that is worth it"
            if profit > 0
            else "nothing is merged"
            if not saved and not profit
            else "its records cost more than it saves"
        )
        yield f"Saves {_bytes(saved)}; {_bytes(profit)} after its own records: {price}."
    if worth["sharing_ratio"] is not None:
        text = f"A kept page has {worth['sharing_ratio']:.1f} further users"
        scanned = worth["sharing_per_scanned_ratio"]
        yield text + (f"; one page is saved in {1 / scanned:,.0f} looks." if scanned else ".")
    if worth["volatile_ratio"] is not None and worth["unshared_ratio"] is not None:
        text = f"{worth['unshared_ratio']:.1%} of the pages have no twin, "
        text += f"{worth['volatile_ratio']:.1%} change, are new or were left out (volatile)"
        skipped = worth["skipped_ratio"]
        yield text + (f"; smart_scan left out {skipped:.1%} of all looks." if skipped else ".")
    if worth["pass_seconds"] is None:
        yield "A pass never ends at today's settings."
    else:
        most = "at most " if implementation == "engine" else ""  # what is unchanged is not read
        long = render_duration(worth["pass_seconds"])
        text = f"A pass over all pages takes {most}{long} at today's settings"
        cpu = worth["running_cpu_ratio"]
        yield text + (f", with {cpu:.1%} of a core." if cpu is not None else ".")
    if worth["cpu_ratio"] is not None:
        text = f"ksmd has used {worth['cpu_ratio']:.1%} of a core since it began"
        spent = worth["scan_ns"]
        yield text + (f", {render_duration(spent / 1e9)} a look." if spent else ".")
    if worth["cow_bytes"] or worth["swpin_bytes"]:
        yield (
            f"Copied again since boot: {_bytes(worth['cow_bytes'])} when written to or unmerged, "
            f"{_bytes(worth['swpin_bytes'])} when swapped in."
        )
    if worth["breakage_bytes"] and worth["spare_bytes"] is not None:
        enough = worth["breakage_bytes"] <= worth["spare_bytes"]
        yield (
            f"If all of it were written to, {_bytes(worth['breakage_bytes'])} would be needed "
            f"again, of {_bytes(worth['spare_bytes'])} available"
            f"{'.' if enough else ': that is not enough.'}"
        )


def render_amount(value: int | None, unit: Unit) -> str:
    """Write pages and bytes as an amount of memory; nothing for other units."""
    if value is None:
        return ""
    if unit is Unit.PAGES:
        return render_bytes(pages_to_bytes(value))
    return render_bytes(value) if unit is Unit.BYTES else ""


def _bytes(value: float | None) -> str:
    return "-" if value is None else render_bytes(round(value))


def _width() -> int:
    """The columns that there are; 0: any number, since nobody sees where a pipe is cut."""
    seen = sys.stdout.isatty() or os.environ.get("COLUMNS")
    return shutil.get_terminal_size().columns if seen else 0


def _bold(text: str) -> str:
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and not plain else text


def _wrap(text: str, taken: int) -> list[str]:
    """Break a text into lines for the columns that are left; nothing where they are too few."""
    width = _width()
    if not width:
        return [text]
    if width - taken < _ROOM:
        return []
    import textwrap

    return textwrap.wrap(text, width - taken)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a table, its last column wrapped; what is no number is left-aligned."""
    first = [name for name in columns[:-1] if name not in ("value", "")]
    head, *starts = render_list(columns[:-1], [row[:-1] for row in rows], left=first)
    taken = max(map(len, (head, *starts))) + 2
    lines = [_bold(f"{head:{taken}}{columns[-1]}")]
    for start, row in zip(starts, rows, strict=True):
        texts = _wrap(row[-1], taken) or [""]
        lines.append(f"{start:{taken}}{texts[0]}".rstrip())
        lines += [" " * taken + text for text in texts[1:]]
    return lines


def _shown(value: KnobValue | None) -> str:
    """Write a value; a dash where this kernel has none."""
    if value is None:
        return "-"
    return render_count(value) if isinstance(value, int) else value


def _fact(name: str, value: object) -> str:
    if isinstance(value, int | float) and name.endswith("_seconds"):
        return render_duration(float(value))
    if isinstance(value, int) and name.endswith("_bytes"):
        return render_bytes(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
