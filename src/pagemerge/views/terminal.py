"""Tables on a terminal, plain text elsewhere; NO_COLOR and COLUMNS are honoured.

Short tables that explain are rich's. Lists that may have many thousands of rows are laid out here:
rich takes a second for 1,000 rows, and is not even loaded for them.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from pagemerge.units import render_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["make_console", "make_table", "print_list", "render_list", "show"]

_READABLE = 24  # a last column shortened to less says little: others are spared before
_UNLIMITED = 100_000  # columns: what is piped is not cut at a width that nobody sees


def make_console(file: TextIO | None = None) -> Console:
    """Make a console for a file (stdout): as wide as the terminal, else as wide as the text."""
    from rich.console import Console

    file = file or sys.stdout
    width = None if file.isatty() or os.environ.get("COLUMNS") else _UNLIMITED
    return Console(file=file, width=width, highlight=False, markup=False, emoji=False)


def make_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: Iterable[str] = ()
) -> Table:
    """Make a table; columns are right-aligned but those named in `left`, which may hold names."""
    from rich.table import Table
    from rich.text import Text

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
        table.add_row(
            *(
                Text(render_name(cell) if column in lefts else cell)
                for column, cell in zip(columns, row, strict=True)
            )
        )
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


def print_list(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Iterable[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Print a list of any length to stdout under a title; see `render_list`."""
    terminal = sys.stdout.isatty()
    bold = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size().columns if terminal or os.environ.get("COLUMNS") else 0
    head, *lines = render_list(columns, rows, left=left, spare=spare, width=width)
    if bold:
        title, head = f"\x1b[1m{title}\x1b[0m", f"\x1b[1m{head}\x1b[0m"
    sys.stdout.write("\n".join((title, head, *lines)) + "\n")


def render_list(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Iterable[str] = (),
    spare: Sequence[str] = (),
    width: int = 0,
) -> list[str]:
    """Lay out a list: the line of its columns' names, then a line a row.

    Columns that say nothing in any row (`-` or blank) are left out. Where a line would be wider
    than the screen, columns that can be spared go first, then the last column is shortened.

    Args:
        columns: names; right-aligned but those in `left`.
        rows: cells.
        left: columns that are left-aligned.
        spare: columns that can be spared, the first first.
        width: columns of the screen; 0: as wide as it gets.
    """
    lefts = frozenset(left)
    table: dict[str, list[str]] = {
        name: [render_name(cell) for cell in cells] if name in lefts else [*cells]
        for name, cells in zip(columns, zip(*rows, strict=True) if rows else (), strict=bool(rows))
        if not {*cells} <= {"-", ""}
    } or {name: [] for name in columns}
    wide = {name: max(len(name), *map(len, cells), 0) for name, cells in table.items()}
    last = next(reversed(wide))
    room = width - sum(wide.values()) - 2 * (len(wide) - 1) if width else 0
    for name in spare:
        if room < 0 and wide[last] + room < _READABLE and name in wide:
            room += wide.pop(name) + 2
    if room < 0:
        wide[last] = max(wide[last] + room, len(last))
        table[last] = [_shorten(cell, wide[last]) for cell in table[last]]
    form = "  ".join(f"{{:{'<' if name in lefts else '>'}{size}}}" for name, size in wide.items())
    lines = zip(*(table[name] for name in wide), strict=True)
    return [form.format(*wide).rstrip(), *(form.format(*line).rstrip() for line in lines)]


def _shorten(text: str, width: int) -> str:
    """Cut to a width: a path at its beginning, other text at its end."""
    if len(text) <= width:
        return text
    return "…" + text[1 - width :] if text.startswith("/") else text[: width - 1] + "…"
