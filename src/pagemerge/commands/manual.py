"""Print the manual page: 'pagemerge manual | man -l -'."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from pagemerge import __version__
from pagemerge.commands.grammar import CommandGrammar, Option, iter_commands
from pagemerge.ksm import COUNTERS, KNOBS

NAME = "manual"
HELP = "print the manual page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare no arguments."""


def run(args: argparse.Namespace) -> None:  # noqa: ARG001
    """Print it."""
    from pagemerge.commands import make_parser

    sys.stdout.write(render_manual(iter_commands(make_parser())))


def render_manual(commands: Iterable[CommandGrammar]) -> str:
    """Write the page in the man macros."""
    lines = [
        f'.TH PAGEMERGE 1 "" "pagemerge {__version__}" "User Commands"',
        ".SH NAME",
        r"pagemerge \- samepage merging for Linux",
        ".SH SYNOPSIS",
        r".B pagemerge",
        r"\fICOMMAND\fR [\fIARGUMENT\fR ...]",
        ".SH DESCRIPTION",
        "Finds equal pages in the memory of running processes, keeps one copy of each, and gives "
        "a process its own copy again when it writes: by an engine of its own in user space, or "
        "by the kernel's KSM.",
        ".SH COMMANDS",
    ]
    for command in commands:
        lines += [f".SS {_escape(command.name)}", f".B {_escape(command.usage)}"]
        for paragraph in command.description.split("\n\n"):
            if paragraph.startswith("  "):
                lines += [".PP", ".nf", _escape(paragraph), ".fi"]
            else:
                lines += [".PP", _escape(paragraph)]
        lines += [line for option in command.options if option.help for line in _option(option)]
    lines.append(".SH KNOBS")
    for knob in KNOBS:
        words = f"{knob.meaning}. Accepted: {knob.accepted}. {knob.note}".strip()
        lines += [".TP", f".B {_escape(knob.name)}", _escape(words)]
    lines.append(".SH COUNTERS")
    for counter in COUNTERS:
        unit = f" ({counter.unit})" if counter.unit else ""
        lines += [".TP", f".B {_escape(counter.name)}", _escape(f"{counter.meaning}{unit}")]
    lines += [
        ".SH EXIT STATUS",
        "0 on success; 1 when it failed; 2 when the arguments are wrong; 3 when this kernel lacks "
        "what was asked for; 4 when it is not permitted; 130 when interrupted. "
        r"\fBpagemerge run\fR ends with the status of its command.",
        ".SH ENVIRONMENT",
        ".TP",
        ".B PAGEMERGE_RUNTIME_DIR",
        r"the folder of the engine's sockets (default: $XDG_RUNTIME_DIR/pagemerge, else "
        r"/tmp/pagemerge\-UID)",
        ".TP",
        ".B NO_COLOR, COLUMNS",
        "no colours; the width of tables",
    ]
    return "\n".join(lines) + "\n"


def _option(option: Option) -> list[str]:
    flags = ", ".join(rf"\fB{_escape(flag)}\fR" for flag in option.flags)
    metavar = rf"\fI{_escape(option.metavar)}\fR" if option.metavar else ""
    return [".TP", f"{flags} {metavar}".strip(), _escape(option.help)]


def _escape(text: str) -> str:
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(
        rf"\&{line}" if line.startswith((".", "'")) else line for line in text.split("\n")
    )
