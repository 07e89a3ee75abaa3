"""Sphinx configuration; knobs, counters and commands are written from the code."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import pagemerge
from pagemerge.commands import make_parser
from pagemerge.commands.grammar import iter_commands
from pagemerge.ksm import COUNTERS, EVENTS, KNOBS, PROCESS_ITEMS

project = "pagemerge"
author = "the pagemerge authors"
release = version = pagemerge.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "progress.md"]
myst_enable_extensions = ["deflist", "fieldlist"]
myst_heading_anchors = 3
html_theme = "alabaster"
html_theme_options = {"description": pagemerge.__doc__.strip().splitlines()[0]}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
nitpicky = False

GENERATED = Path(__file__).parent / "reference" / "generated"


def write_knobs() -> str:
    """The page of knobs, counters, process fields and events, from `pagemerge.ksm`."""
    lines = [
        "# Knobs and counters",
        "",
        "The names are the kernel's: `/sys/kernel/mm/ksm/NAME`. *Since* is the Linux version that "
        "brought the item; the engine has it on every kernel.",
        "",
        "## Knobs",
        "",
        "| knob | default | accepted | since | meaning |",
        "| --- | --- | --- | --- | --- |",
    ]
    for knob in KNOBS:
        words = _cell(f"{knob.meaning}. {knob.note}")
        since = knob.since or "engine only"
        lines.append(
            f"| `{knob.name}` | {knob.default} {knob.unit} | {_cell(knob.accepted)} | {since} "
            f"| {words} |"
        )
    lines += [
        "",
        "## Counters",
        "",
        "| counter | unit | since | meaning |",
        "| --- |" * 1 + " --- |" * 3,
    ]
    for item in COUNTERS:
        words = _cell(f"{item.meaning}. {item.note}")
        lines.append(f"| `{item.name}` | {item.unit} | {item.since or 'engine only'} | {words} |")
    lines += [
        "",
        "## Of a process",
        "",
        "As in `/proc/PID/ksm_stat`.",
        "",
        "| field | unit | since | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for row in PROCESS_ITEMS:
        words = _cell(f"{row.meaning}. {row.note}")
        lines.append(f"| `{row.name}` | {row.unit} | {row.since or 'engine only'} | {words} |")
    lines += [
        "",
        "## Events",
        "",
        "| event | since | fields | meaning |",
        "| --- | --- | --- | --- |",
    ]
    for event in EVENTS:
        fields = ", ".join(f"`{field.name}`" for field in event.fields)
        words = _cell(f"{event.meaning}. {event.note}")
        lines.append(f"| `{event.name}` | {event.since} | {fields} | {words} |")
    return "\n".join(lines) + "\n"


def write_commands() -> str:
    """The page of commands, from the parser."""
    lines = [
        "# Commands",
        "",
        "Exit status: 0 success, 1 failure, 2 cannot be carried out as asked, ",
    ]
    lines += ["3 this kernel lacks it, 4 not permitted.", ""]
    for command in iter_commands(make_parser()):
        lines += [f"## pagemerge {command.name}", "", "```text", command.usage, "```", ""]
        for paragraph in command.description.strip().split("\n\n"):
            indented = paragraph.startswith("  ")
            lines += ["```text", paragraph, "```", ""] if indented else [_escape(paragraph), ""]
        for option in command.options:
            if option.help and option.help != argparse.SUPPRESS:
                name = ", ".join(option.flags) or option.metavar
                value = f" {option.metavar}" if option.flags and option.metavar else ""
                lines += [f"`{name}{value}`", f": {_escape(option.help)}", ""]
    return "\n".join(lines) + "\n"


OUTCOMES = {"holds": "✓", "differs": "differs", "lacking": "-", "failed": "**fails**"}


def write_conformance() -> str:
    """The page of what the conformance suite came to, from the results that were recorded."""
    recorded = json.loads((Path(__file__).parent / "reference" / "conformance.json").read_text())
    runs = recorded["runs"]
    heads = [_name_run(run) for run in runs]
    lines = [
        "# Conformance",
        "",
        "What `tests/conformance` came to: the same tests, with the same calls of real processes, "
        "against the engine and against the kernel's KSM, one pass at a time. ✓: as stated; "
        "*differs*: on purpose, see below and {doc}`/explanation/differences`; -: the machine or "
        "its kernel lacks it. Recorded with `PAGEMERGE_CONFORMANCE_RESULTS=docs/reference/"
        "conformance.json pytest tests/conformance`, and by `tools/old-kernel` for older kernels.",
        "",
        "C1 to C24 are stated as Linux 6.18 behaves. The names of the others are those of the "
        "kernel's selftests (`tools/testing/selftests/mm`) and of the Linux Test Project's tests "
        "(`testcases/kernel/mem/ksm`) that assert the same.",
        "",
        f"| case | statement | {' | '.join(heads)} |",
        f"| --- | --- |{' --- |' * len(heads)}",
    ]
    for name, statement in recorded["cases"].items():
        cells = [OUTCOMES[run["results"][name]["outcome"]] for run in runs]
        lines.append(f"| {name} | {_cell(statement)} | {' | '.join(cells)} |")
    for head, run in zip(heads, runs, strict=True):
        for outcome, title in (
            ("differs", "what differs"),
            ("lacking", "what is lacking"),
            ("failed", "what fails"),
        ):
            lines += _write_notes(f"{head}: {title}", run["results"], outcome)
    return "\n".join(lines) + "\n"


def _name_run(run: dict[str, Any]) -> str:
    """Name an implementation and its kernel: the nodes are told where there are several."""
    kernel = ".".join(run["kernel"].split(".")[:2])
    nodes = f", {run['nodes']} nodes" if run["nodes"] > 1 else ""
    on = "on " if run["implementation"] == "engine" else ""
    return f"{run['implementation']} {on}{kernel}{nodes}"


def _write_notes(title: str, results: dict[str, Any], outcome: str) -> list[str]:
    """List the notes of the cases, each note once with its cases."""
    by_note: dict[str, list[str]] = {}
    for name, result in results.items():
        if result["outcome"] == outcome:
            for note in result["notes"] or ["see the test"]:
                by_note.setdefault(note, []).append(name)
    if not by_note:
        return []
    rows = [f"- {_escape(note)} ({', '.join(names)})" for note, names in by_note.items()]
    return ["", f"## {title[0].upper()}{title[1:]}", "", *rows]


def _cell(text: str) -> str:
    text = _escape(" ".join(text.split())).replace("|", "\\|")
    return text.replace("..", ".").removesuffix(" .").strip()


def _escape(text: str) -> str:
    return text.replace("<", "\\<").replace("*", "\\*")


def write_generated(_app: Sphinx) -> None:
    """Write the pages; a page that has not changed is left alone, so that it isn't read anew."""
    GENERATED.mkdir(exist_ok=True)
    pages = {
        "knobs.md": write_knobs(),
        "commands.md": write_commands(),
        "conformance.md": write_conformance(),
    }
    for name, text in pages.items():
        path = GENERATED / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> None:
    """Hook the writing in."""
    app.connect("builder-inited", write_generated)
