"""Tables on a terminal, plain text elsewhere; NO_COLOR and COLUMNS are honoured (by rich)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["make_console", "make_table", "print_table", "show"]

_UNLIMITED = 100_000  # columns: what is piped is not cut at a width that nobody sees


def make_console(file: TextIO | None = None) -> Console:
    """Make a console for a file (stdout): as wide as the terminal, else as wide as the text."""
    file = file or sys.stdout
    width = None if file.isatty() or os.environ.get("COLUMNS") else _UNLIMITED
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def make_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: Iterable[str] = ()
) -> Table:
    """Make a table; columns are right-aligned but those named in `left`."""
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
        show_header=any(columns),
    )
    lefts = frozenset(left)
    for column in columns:
        is_left = column in lefts
        table.add_column(
            column,
            justify="left" if is_left else "right",
            no_wrap=not is_left,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def show(console: Console, table: Table) -> None:
    """Print a table; where it is not a terminal, without the blanks that fill its last column."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        console.file.write(f"{line.rstrip()}\n")


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Iterable[str] = (),
    file: TextIO | None = None,
) -> None:
    """Print a table."""
    show(make_console(file), make_table(columns, rows, left=left))
