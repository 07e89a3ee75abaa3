# ruff: noqa: E501  # lines of style and SVG are read better whole
"""Plots as SVG text, for a page that works offline; colours are the page's CSS variables."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

from pagemerge.units import render_name

__all__ = ["bars", "columns", "heat_map", "text_of", "treemap"]

Tile = tuple[str, str, float, str]  # name, explanation, size, colour


def text_of(value: object) -> str:
    """Escape a text for HTML; of what can't be shown, as names may hold, only lines' ends stay."""
    return "\n".join(html.escape(render_name(line)) for line in str(value).split("\n"))


def _short(label: str, characters: int) -> str:
    """Cut a label in its middle, where the least is lost."""
    if len(label) <= characters:
        return label
    head = (characters - 1) // 2
    return f"{label[:head]}…{label[len(label) - (characters - 1 - head) :]}"


def _svg(width: float, height: float, body: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'style="--wide:{width:g}px" role="img" aria-label="{text_of(label)}">{body}</svg>'
    )


def _gutter(labels: Sequence[str], most: int) -> int:
    """Leave so much room for labels of at most so many characters: what they need, no more."""
    return 24 + 7 * min(most, max(map(len, labels), default=0))


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Draw a horizontal bar for each (label, value, text of the value)."""
    if not rows:
        return "<div class=note>nothing</div>"
    most = max(value for _, value, _ in rows) or 1.0
    left = _gutter([label for label, _, _ in rows], 46)
    parts = []
    for i, (label, value, shown) in enumerate(rows):
        y = i * 26
        parts.append(
            f'<text x="{left - 10}" y="{y + 17}" text-anchor="end"><title>{text_of(label)}</title>'
            f"{text_of(_short(label, 46))}</text>"
            f'<rect x="{left}" y="{y + 4}" width="{max(1.0, 640 * value / most):.1f}" height="18" rx="3" '
            f'fill="var(--hue)"/><text class="dim" x="{left + 6 + 640 * value / most:.1f}" y="{y + 17}">'
            f"{text_of(shown)}</text>"
        )
    return _svg(left + 740, len(rows) * 26 + 4, "".join(parts), "bars")


def columns(rows: Sequence[tuple[str, float]]) -> str:
    """Draw a column for each (label, value), with the value over it."""
    if not any(value for _, value in rows):
        return "<div class=note>nothing to merge</div>"
    most = max(value for _, value in rows)
    step, height = 68, 200
    parts = [
        f'<line class="grid" x1="0" x2="{step * len(rows)}" y1="{height + 20}" y2="{height + 20}"/>'
    ]
    for i, (label, value) in enumerate(rows):
        tall = height * value / most
        x = i * step + 8
        parts.append(
            f'<rect x="{x}" y="{height + 20 - tall:.1f}" width="{step - 16}" height="{tall:.1f}" rx="3" '
            f'fill="var(--hue)"/>'
            f'<text class="dim" x="{x + step / 2 - 8}" y="{height + 14 - tall:.1f}" text-anchor="middle">'
            f"{value:,.0f}</text>"
            f'<text x="{x + step / 2 - 8}" y="{height + 38}" text-anchor="middle">{text_of(label)}</text>'
        )
    return _svg(step * len(rows) + 8, height + 48, "".join(parts), "columns")


def heat_map(
    labels: Sequence[str], cells: Sequence[Sequence[float]], render: Callable[[float], str]
) -> str:
    """Draw a square matrix; the darker, the more. Values are written in where they fit."""
    size = len(labels)
    side = max(14, min(72, 760 // size))
    most = max((value for row in cells for value in row), default=0.0) or 1.0
    left, top = _gutter(labels, 36) + 30, 16
    parts = []
    for i, label in enumerate(labels):
        y = top + i * side
        parts.append(
            f'<text x="{left - 10}" y="{y + side / 2 + 4:g}" text-anchor="end">'
            f'<title>{text_of(label)}</title>{text_of(_short(label, 36))} <tspan class="dim">{i + 1}</tspan></text>'
            f'<text class="dim" x="{left + i * side + side / 2:g}" y="{top - 5}" text-anchor="middle">{i + 1}</text>'
        )
        for j, value in enumerate(cells[i]):
            share = value / most
            # a root, so that small shares are seen; opacity over the page keeps it right in the dark
            alpha = 0.06 + 0.94 * share**0.5 if value else 0.03
            x = left + j * side
            parts.append(
                f'<rect x="{x + 0.5}" y="{y + 0.5}" width="{side - 1}" height="{side - 1}" rx="2" '
                f'fill="rgba(var(--heat),{alpha:.3f})"><title>{text_of(label)} and {text_of(labels[j])}: '
                f"{text_of(render(value))}</title></rect>"
            )
            if side >= 56 and value:
                colour = ' class="on"' if alpha > 0.55 else ""
                parts.append(
                    f'<text{colour} x="{x + side / 2:g}" y="{y + side / 2 + 4:g}" text-anchor="middle" '
                    f'font-size="11">{text_of(render(value))}</text>'
                )
    return _svg(left + size * side + 8, top + size * side + 6, "".join(parts), "heat map")


def treemap(tiles: Sequence[Tile], width: float = 1100, height: float = 380) -> str:
    """Draw tiles whose areas are their sizes, nearly square (squarified treemap)."""
    tiles = sorted((tile for tile in tiles if tile[2] > 0), key=lambda tile: -tile[2])
    if not tiles:
        return "<div class=note>nothing to merge</div>"
    scale = width * height / sum(tile[2] for tile in tiles)
    parts: list[str] = []
    x, y, w, h = 0.0, 0.0, width, height
    rest = list(tiles)
    while rest:
        row = _row(rest, min(w, h), scale)
        rest = rest[len(row) :]
        area = sum(tile[2] for tile in row) * scale
        thick = area / min(w, h) if min(w, h) > 0 else 0.0
        at = 0.0
        for tile in row:
            length = tile[2] * scale / thick if thick else 0.0
            if w >= h:
                parts.append(_tile(tile, x, y + at, thick, length))
            else:
                parts.append(_tile(tile, x + at, y, length, thick))
            at += length
        if w >= h:
            x, w = x + thick, max(0.0, w - thick)
        else:
            y, h = y + thick, max(0.0, h - thick)
    return _svg(width, height, "".join(parts), "savings by region")


def _row(tiles: Sequence[Tile], side: float, scale: float) -> list[Tile]:
    """Take tiles into one row as long as that makes its worst tile squarer."""
    row: list[Tile] = []
    worst = float("inf")
    for tile in tiles:
        areas = [t[2] * scale for t in (*row, tile)]
        total = sum(areas)
        now = (
            max(side * side * max(areas) / total**2, total**2 / (side * side * min(areas)))
            if side
            else 0
        )
        if row and now > worst:
            break
        row.append(tile)
        worst = now
    return row


def _tile(tile: Tile, x: float, y: float, width: float, height: float) -> str:
    name, where, _, colour = tile
    box = (
        f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{max(0.0, width - 2):.1f}" '
        f'height="{max(0.0, height - 2):.1f}" rx="3" fill="{colour}"><title>{text_of(where)}</title></rect>'
    )
    if width < 70 or height < 22:
        return box
    label = text_of(_short(name, int(width / 7.6)))
    saves = where.rsplit("\n", 1)[-1]
    more = (
        f'<text class="on" x="8" y="34" opacity=".8">{text_of(saves)}</text>'
        if height > 44 and width > 110
        else ""
    )
    # a picture in the picture: what is wider than the tile after all is cut at its edge
    return (
        f'{box}<svg x="{x:.1f}" y="{y:.1f}" width="{width - 4:.1f}" height="{height:.1f}">'
        f'<text class="on" x="8" y="18">{label}</text>{more}</svg>'
    )
