"""`status` and `set` for people."""

from __future__ import annotations

from collections.abc import Mapping

from pagemerge.ksm import COUNTERS, KNOBS, KnobValue, Unit
from pagemerge.units import pages_to_bytes, render_bytes, render_count, render_duration
from pagemerge.views.terminal import make_console, make_table, show

__all__ = ["print_status", "render_amount"]


def print_status(
    implementation: str,
    knobs: Mapping[str, KnobValue | None],
    counters: Mapping[str, int | None],
    facts: Mapping[str, object],
) -> None:
    """Print knobs, counters, and what is known of ksmd."""
    console = make_console()
    word = dict(enumerate(("stopped", "running", "stopped, unmerged"))).get(
        _as_int(knobs.get("run")), "unknown"
    )
    console.print(f"{implementation}: {word}", style="bold")
    console.print()
    show(
        console,
        make_table(
            ("knob", "value", "unit", "meaning"),
            [(knob.name, _shown(knobs.get(knob.name)), knob.unit, knob.meaning) for knob in KNOBS],
            left=("knob", "unit", "meaning"),
        ),
    )
    console.print()
    show(
        console,
        make_table(
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
            left=("counter", "meaning"),
        ),
    )
    if facts:
        console.print()
        rows = [(name, _fact(name, value)) for name, value in facts.items()]
        show(console, make_table(("ksmd", "value"), rows, left=("ksmd", "value")))


def render_amount(value: int | None, unit: Unit) -> str:
    """Write pages and bytes as an amount of memory; nothing for other units."""
    if value is None:
        return ""
    if unit is Unit.PAGES:
        return render_bytes(pages_to_bytes(value))
    return render_bytes(value) if unit is Unit.BYTES else ""


def _as_int(value: KnobValue | None) -> int:
    return value if isinstance(value, int) else -1


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
