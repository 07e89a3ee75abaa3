# ruff: noqa: E501  # lines of style and SVG are read better whole
"""An estimate as one page of HTML with plots: no script from elsewhere, no network, prints well."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from pagemerge.insight.plots import bars, columns, heat_map, text_of, treemap
from pagemerge.insight.results import Estimate, Matrix, ProcessEstimate, RegionEstimate
from pagemerge.units import (
    pages_to_bytes,
    render_bytes,
    render_count,
    render_duration,
    render_percent,
)

__all__ = ["render_report", "write_report"]

_ROWS: Final = 200  # of a table: more are in the JSON
_TILES: Final = 120  # smaller ones together are one more

_STYLE: Final = """
:root { --ink:#1c2430; --dim:#5d6b7d; --line:#dde3ea; --paper:#fff; --back:#f4f6f9; --hue:#2463c4; --zero:#c98a1b;
  --huge:#8a4fbf; --heat:36,99,196; --on:#fff; }
@media (prefers-color-scheme: dark) { :root { --ink:#e4e9f0; --dim:#98a5b6; --line:#333d4a; --paper:#1b222c;
  --back:#12171e; --hue:#6da2f0; --zero:#e0ae55; --huge:#bd92e6; --heat:109,162,240; --on:#0d1420; } }
* { box-sizing:border-box }
body { margin:0; background:var(--back); color:var(--ink); font:15px/1.5 system-ui,sans-serif }
main { max-width:1180px; margin:0 auto; padding:28px 20px 60px }
h1 { font-size:25px; line-height:1.25; margin:0 0 4px } h2 { font-size:17px; margin:0 0 2px }
p { margin:0 0 12px; color:var(--dim) }
section { background:var(--paper); border:1px solid var(--line); border-radius:10px; padding:18px 20px; margin-top:18px;
  overflow-x:auto; break-inside:avoid }
.cards { display:grid; grid-template-columns:repeat(auto-fill,minmax(200px,1fr)); gap:12px; margin-top:18px }
.card { background:var(--paper); border:1px solid var(--line); border-radius:10px; padding:12px 16px }
.card b { display:block; font-size:22px; font-variant-numeric:tabular-nums } .card span { color:var(--dim); font-size:13px }
table { border-collapse:collapse; width:100%; font-size:13.5px; font-variant-numeric:tabular-nums }
th { text-align:right; color:var(--dim); font-weight:600; border-bottom:1px solid var(--line); padding:5px 10px 5px 0 }
td { text-align:right; padding:4px 10px 4px 0; border-bottom:1px solid var(--line); white-space:nowrap }
th.l, td.l { text-align:left } td.w { white-space:normal; overflow-wrap:anywhere }
section > svg { display:block; max-width:100%; height:auto; font:12px system-ui,sans-serif } svg text { fill:var(--ink) }
svg text.dim { fill:var(--dim) } svg text.on { fill:var(--on) } svg .grid { stroke:var(--line) }
.note { color:var(--dim); margin:4px 0 } code { font:13px ui-monospace,monospace }
.swatch { display:inline-block; width:11px; height:11px; border-radius:2px; margin:0 5px 0 14px; vertical-align:-1px }
@media (max-width:700px) { section > svg { max-width:none; min-width:min(640px,var(--wide)) } section { padding:14px } main { padding:20px 10px 40px }
  .cards { grid-template-columns:repeat(2,1fr); gap:8px } .card { padding:10px 12px } .card b { font-size:18px } td.l { min-width:8em } }
@media print { body { background:none } section { border-color:#bbb } }
"""


def write_report(estimate: Estimate, path: Path) -> None:
    """Write the page.

    Raises:
        OSError: it can't be written.
    """
    path.write_text(render_report(estimate), encoding="utf-8")


def render_report(estimate: Estimate) -> str:
    """Write an estimate as a page that needs nothing beside itself."""
    e = estimate
    share = render_percent(e.frames_saved, e.present_pages)
    title = f"Merging would save {_bytes(e.frames_saved)} of {_bytes(e.present_pages)} ({share})"
    parts = [
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width,initial-scale=1">',
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src "
        "'unsafe-inline'\">",
        f"<title>{text_of(title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{text_of(title)}</h1><p>{text_of(_about(e))}</p>",
        _cards(e),
        _section("Where the saving is", _region_legend(), treemap(_tiles(e))),
        *(_matrix_section(matrix) for matrix in e.matrices if len(matrix.labels) > 1),
        _processes_section(e),
        _runs_section(e),
        _regions_section(e),
        _contents_section(e),
        _totals_section(e),
        _notes_section(e.notes),
        "</main></body></html>\n",
    ]
    return "".join(parts)


def _bytes(pages: float) -> str:
    return render_bytes(pages_to_bytes(round(pages)))


def _target(row: ProcessEstimate | RegionEstimate) -> str:
    return f"{row.command}[{row.pid}]" if row.pid else row.command


def _section(title: str, intro: str, body: str) -> str:
    return f"<section><h2>{text_of(title)}</h2><p>{intro}</p>{body}</section>"


def _about(e: Estimate) -> str:
    read = f"{render_bytes(e.read_bytes)} read in {render_duration(e.read_seconds)}"
    looks = (
        "one look: pages that change are not told apart"
        if e.settle_seconds is None
        else f"two looks, {render_duration(e.settle_seconds)} apart"
    )
    sampled = f", one content in {e.sample} sampled" if e.sample > 1 else ""
    return (
        f"{len(e.processes)} targets, {read}, {looks}{sampled}; "
        f"max_page_sharing={e.max_page_sharing}, use_zero_pages={e.use_zero_pages}"
    )


def _cards(e: Estimate) -> str:
    cards = [
        (render_bytes(e.general_profit), "general_profit: saved, less ksmd's metadata"),
        (render_count(e.pages_sharing), f"pages_sharing ({_bytes(e.pages_sharing)})"),
        (render_count(e.pages_shared), f"pages_shared ({_bytes(e.pages_shared)} kept)"),
        (render_count(e.zero_pages), f"pages all zero ({_bytes(e.zero_pages)})"),
        (
            "unknown" if e.volatile_share is None else f"{100 * e.volatile_share:.1f} %",
            "volatile: changed between the looks",
        ),
        (render_count(e.split_huge_pages), "huge pages that merging would split"),
        (
            "never" if e.ksmd.settle_seconds is None else render_duration(e.ksmd.settle_seconds),
            f"for ksmd to settle at {e.ksmd.pages_to_scan} pages / {e.ksmd.sleep_millisecs} ms",
        ),
        ("unknown", "VMAs for the engine: sampled")
        if e.engine is None
        else (
            render_count(e.engine.vmas),
            f"VMAs for the engine, {render_count(e.engine.runs)} runs",
        ),
    ]
    inner = "".join(
        f"<div class=card><b>{text_of(value)}</b><span>{text_of(what)}</span></div>"
        for value, what in cards
    )
    return f"<div class=cards>{inner}</div>"


def _region_legend() -> str:
    return (
        "Each tile is a mapping, its area the pages that it would save."
        '<i class=swatch style="background:var(--hue)"></i>equal to others'
        '<i class=swatch style="background:var(--zero)"></i>mostly zero pages'
    )


def _tiles(e: Estimate) -> list[tuple[str, str, float, str]]:
    rows = sorted(e.regions, key=lambda r: -(r.saved_pages + r.zero_pages))
    tiles = []
    for region in rows[:_TILES]:
        size = region.saved_pages + region.zero_pages
        if size < 1:
            break
        name = f"{_target(region)} {region.name or '[anon]'}"
        where = f"{name}\n{region.start:x}-{region.end:x} {region.perms}\nsaves {_bytes(size)}"
        colour = "var(--zero)" if region.zero_pages > region.saved_pages else "var(--hue)"
        tiles.append((name, where, size, colour))
    rest = rows[len(tiles) :]
    size = sum(region.saved_pages + region.zero_pages for region in rest)
    if size >= 1:
        zero = sum(region.zero_pages for region in rest)
        name = f"{render_count(len(rest))} further mappings"
        colour = "var(--zero)" if zero > size / 2 else "var(--hue)"
        tiles.append((name, f"{name}\nsave {_bytes(size)}", size, colour))
    return tiles


def _matrix_section(matrix: Matrix) -> str:
    titles = {
        "process": "Who shares with whom",
        "command": "... by command",
        "user": "... by user",
        "cgroup": "... by cgroup",
        "mapping": "Which mappings have pages in common",
    }
    intro = (
        "Pages that two have in common; on the diagonal, duplicates within one. Zero pages apart."
    )
    numbers: Sequence[int] = range(len(matrix.labels))
    if matrix.by == "mapping":  # of which most have nothing in common with any
        numbers = [i for i in numbers if any(matrix.pages[i])]
    if not numbers:
        return ""
    labels = [matrix.labels[i] for i in numbers]
    cells = [[matrix.pages[i][j] for j in numbers] for i in numbers]
    return _section(titles.get(matrix.by, matrix.by), intro, heat_map(labels, cells, _bytes))


def _processes_section(e: Estimate) -> str:
    rows = sorted(e.processes, key=lambda p: -(p.saved_pages + p.zero_pages))[:_ROWS]
    body = _table(
        (
            "-target",
            "-user",
            "present",
            "saves",
            "zero",
            "volatile",
            "in huge pages",
            "VMAs",
            "with engine",
            "-note",
        ),
        (
            (
                _target(p),
                p.user,
                _bytes(p.present_pages),
                _bytes(p.saved_pages),
                _bytes(p.zero_pages),
                _bytes(p.volatile_pages),
                _bytes(p.huge_pages),
                render_count(p.vmas),
                "-" if e.engine is None else render_count(p.vmas_after),
                p.note,
            )
            for p in rows
        ),
    )
    return _section("Targets", _more(len(rows), len(e.processes)), body)


def _runs_section(e: Estimate) -> str:
    if e.engine is None:
        return ""
    lengths = [f"{1 << i}" if i < 1 else f"{1 << i}-{(2 << i) - 1}" for i in range(16)]
    lengths[-1] = f"{1 << 15}-"
    last = max((i for i, count in enumerate(e.engine.run_lengths) if count), default=0)
    intro = (
        "Adjacent pages that the engine would merge by one mapping; long runs cost few VMAs. "
        "Across: pages in a run; upward: runs."
    )
    body = columns(list(zip(lengths, e.engine.run_lengths, strict=True))[: last + 1])
    return _section("Run lengths", intro, body)


def _regions_section(e: Estimate) -> str:
    rows = sorted(e.regions, key=lambda r: -(r.saved_pages + r.zero_pages))
    names = bars(
        [(name, pages, _bytes(pages)) for name, pages in list(e.names.items())[:15] if pages >= 1]
    )
    shown = [r for r in rows if r.saved_pages or r.zero_pages][:_ROWS]
    body = _table(
        ("-target", "+region", "+perms", "present", "saves", "zero", "runs", "+marked", "-mapping"),
        (
            (
                _target(r),
                f"{r.start:x}-{r.end:x}",
                r.perms,
                _bytes(r.present_pages),
                _bytes(r.saved_pages),
                _bytes(r.zero_pages),
                "-" if e.engine is None else render_count(r.runs),
                "yes" if r.mergeable else "no",
                r.name or "[anon]",
            )
            for r in shown
        ),
    )
    return _section("By mapping name", "Pages saved, zero pages apart.", names) + _section(
        "Regions", _more(len(shown), len(rows)), body
    )


def _contents_section(e: Estimate) -> str:
    rows = [c for c in e.top if c.pages > 1]
    if not rows:
        return ""
    body = _table(
        ("pages", "physical pages", "targets", "regions", "-found in", "-content"),
        (
            (
                render_count(c.pages),
                render_count(c.frames),
                render_count(c.processes),
                render_count(c.regions),
                c.name,
                c.description,
            )
            for c in rows
        ),
    )
    return _section("Most frequent contents", "Apart from zero.", body)


def _totals_section(e: Estimate) -> str:
    def row(name: str, value: int) -> tuple[str, ...]:
        interval = e.intervals.get(name)
        width = (
            ""
            if not interval or interval.low == interval.high
            else f"{interval.low:,}-{interval.high:,}"
        )
        return name, render_count(value), _bytes(value), width

    names = (
        "pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "ksm_zero_pages",
        "stable_node_chains", "stable_node_dups", "present_pages", "distinct_contents",
        "within_pages", "between_pages", "already_pages", "huge_pages", "frames_saved",
    )  # fmt: skip
    rows = [row(name, getattr(e, name)) for name in names]
    for use, variant in ((0, e.without_zero_pages), (1, e.with_zero_pages)):
        rows.append(
            (f"general_profit, use_zero_pages={use}", "", render_bytes(variant.general_profit), "")
        )
    return _section(
        "All totals",
        "Named as the kernel names them, as ksmd would count once settled.",
        _table(("-name", "pages", "bytes", "95 % interval"), rows),
    )


def _notes_section(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return _section(
        "Notes", "", "".join(f"<div class=note>{text_of(note)}</div>" for note in notes)
    )


def _more(shown: int, there: int) -> str:
    return f"The {shown} that save most, of {there}." if shown < there else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a table; a head that begins with `-` or `+` is left-aligned, `-` may be folded."""
    kinds = {"-": ' class="l w"', "+": " class=l"}
    marks = [kinds.get(name[:1], "") for name in head]
    top = "".join(
        f"<th{' class=l' if mark else ''}>{text_of(name.lstrip('-+'))}</th>"
        for name, mark in zip(head, marks, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{mark}>{text_of(cell)}</td>" for mark, cell in zip(marks, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
