"""Estimate what merging would give, by reading memory as ksmd would; nothing is switched on.

Only present anonymous pages of eligible regions are read (mm/ksm.c: vma_ksm_compatible); nothing is
faulted in, swap is not touched. A content counts as merging when it lies on two physical pages or
more: what fork left shared equals only itself, as for ksmd.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pagemerge import _core
from pagemerge.errors import CommandError, NotPermittedError
from pagemerge.insight.census import Progress, Space, SpaceRegion, load_spaces, run_census
from pagemerge.insight.contents import describe_contents
from pagemerge.insight.model import RMAP_ITEM_BYTES, engine_cost, ksm_counts, ksmd_cost
from pagemerge.insight.results import (
    Estimate,
    Interval,
    Matrix,
    ProcessEstimate,
    RegionEstimate,
    TopContent,
    ZeroVariant,
)
from pagemerge.insight.targets import Targets
from pagemerge.memory import read_max_map_count, splitting_frees_zero_pages
from pagemerge.units import PAGE_SIZE, pages_to_bytes, render_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["EstimateOptions", "Reading", "estimate", "reading_targets", "summarize"]

_PARTIES: Final = 32  # rows of a matrix: what is left goes into one more, "others"
_MAPPINGS: Final = 16  # rows of the matrix by mapping name, of which there are many with little
_Z95: Final = 1.959964
_VANISHED: Final = 0.05  # of a process's memory, from which on it is said

_REGION_FIELDS: Final = (
    *((name, "u8") for name in ("present", "zero", "zero_huge", "huge", "lost", "held")),
    ("volatile", "u8"),
    ("merging", "u8"),
    ("saved", "f8"),
    *((name, "u8") for name in ("runs", "vmas", "split_huge")),
)


@dataclass(frozen=True, slots=True)
class EstimateOptions:
    """How to look, and under which knobs.

    Attributes:
        mergeable: only regions that are marked already.
        sample: keep one content in this many.
        salt: which ones; any number.
        settle_seconds: look a second time after so long, to find volatile pages.
        max_page_sharing, use_zero_pages, pages_to_scan, sleep_millisecs: as the knobs of ksmd.
        gap_pages: pages that differ, at most, within one mapping of the engine.
        threads: that read; 0 is one a core.
        top: how many contents to list.
    """

    mergeable: bool = False
    sample: int = 1
    salt: int = 0
    settle_seconds: float | None = None
    max_page_sharing: int = 256
    use_zero_pages: int = 0
    pages_to_scan: int = 100
    sleep_millisecs: int = 20
    gap_pages: int = 0
    threads: int = 0
    top: int = 20


@dataclass(slots=True)
class Reading:
    """What was read, before it is summed up; the census in it serves `advise`, too."""

    spaces: list[Space]
    regions: list[tuple[Space, SpaceRegion]]
    census: _core.Census
    seconds: float
    options: EstimateOptions
    notes: tuple[str, ...]


def estimate(
    targets: Targets, options: EstimateOptions | None = None, progress: Progress | None = None
) -> Estimate:
    """Read the targets and say what merging would give.

    Args:
        targets: see `find_targets`.
        options: how to look.
        progress: called now and then with what is done, how many of these (pages, targets,
            milliseconds) are done, and how many there are in all.

    Raises:
        NotPermittedError: none of the targets may be read.
        CommandError: none of them has memory that could be merged.
        FormatError: a file is no dump of memory.
    """
    with reading_targets(targets, options, progress) as reading:
        return summarize(reading)


@contextmanager
def reading_targets(
    targets: Targets, options: EstimateOptions | None = None, progress: Progress | None = None
) -> Iterator[Reading]:
    """Read the targets; what they were read through stays open inside the block.

    Raises:
        NotPermittedError, CommandError, FormatError: as `estimate`.
    """
    options = options or EstimateOptions()
    _check_options(options)
    with load_spaces(targets.items, mergeable=options.mergeable, progress=progress) as spaces:
        _check_readable(spaces)
        census, seconds = run_census(
            spaces,
            sample=options.sample,
            salt=options.salt,
            threads=options.threads,
            settle_seconds=options.settle_seconds,
            progress=progress,
        )
        _check_readable(spaces)
        regions = [(space, region) for space in spaces for region in space.regions]
        yield Reading(spaces, regions, census, seconds, options, targets.notes)


def _check_options(options: EstimateOptions) -> None:
    least = {
        "sample": 1,
        "max_page_sharing": 2,
        "pages_to_scan": 0,
        "sleep_millisecs": 0,
        "gap_pages": 0,
        "threads": 0,
        "top": 0,
        "settle_seconds": 0,
    }
    for name, limit in least.items():
        value = getattr(options, name)
        if value is not None and value < limit:
            raise CommandError(f"{name.replace('_', '-')} is {value:g}: it is at least {limit}")


def _check_readable(spaces: Sequence[Space]) -> None:
    notes = [space.note for space in spaces]
    if not all(notes):
        return
    if all("not permitted" in note for note in notes):
        raise NotPermittedError(
            "reading the memory of the targets is not permitted",
            where="/proc/PID/pagemap",
            hint="run as their user (with kernel.yama.ptrace_scope=0), or as root"
            if os.geteuid()
            else notes[0],
        )
    what = "; ".join(f"{space.target.label} {space.note}" for space in spaces[:5])
    raise CommandError(f"nothing to read: {what}")


def summarize(reading: Reading) -> Estimate:
    """Group what was read, and sum it up. Once a reading: the census forgets the hashes."""
    import numpy as np

    options = reading.options
    plans = _plan_matrices(reading)
    totals, raw, tops = reading.census.group(
        options.max_page_sharing,
        [(np.array(party, np.uint32).tobytes(), len(labels)) for _, labels, party in plans],
        options.top,
    )
    split = _take_split_zero(totals, options)
    runs, run_pages, _, bins = reading.census.runs(options.gap_pages)
    table = np.frombuffer(reading.census.regions(), np.dtype(list(_REGION_FIELDS)))
    n = options.sample
    regions = _regions(reading, table)
    processes = _processes(reading, table)
    present = sum(process.present_pages for process in processes)
    with_zero, without_zero = (_variant(totals, present - split, options, use) for use in (1, 0))
    chosen = with_zero if options.use_zero_pages else without_zero
    zero_left = 0 if options.use_zero_pages else totals["zero"] - sum(_zero_sums(totals, options))
    zero_chain = chosen.pages_shared - totals["shared"]
    shown = {
        "pages_shared": ("shared", chosen.pages_shared),
        "pages_sharing": ("sharing", chosen.pages_sharing),
        "pages_unshared": ("unshared", totals["unshared"] + zero_left),
        "pages_volatile": ("volatile", totals["volatile"] + totals["aliases"]),
        "frames_saved": (
            "frames_saved",
            totals["frames_saved"] + _zero_saved(totals, options) + split,
        ),
        "within_pages": (
            "within",
            totals["within"] + totals["zero"] + split - totals["zero_spaces"],
        ),
        "between_pages": ("between", totals["between"] + max(0, totals["zero_spaces"] - 1)),
        "distinct_contents": ("distinct", totals["distinct"]),
    }
    vmas = [process.vmas_after - process.vmas for process in processes]
    return Estimate(
        **{name: value for name, (_, value) in shown.items()},
        ksm_zero_pages=chosen.ksm_zero_pages,
        stable_node_chains=totals["chains"] + (zero_chain > 1),
        stable_node_dups=totals["dups"] + (zero_chain if zero_chain > 1 else 0),
        general_profit=chosen.general_profit,
        use_zero_pages=options.use_zero_pages,
        max_page_sharing=options.max_page_sharing,
        rmap_items=present - split - (totals["zero"] if options.use_zero_pages else 0),
        present_pages=present,
        zero_pages=totals["zero"] + split,
        split_zero_pages=split,
        already_pages=totals["already"],
        huge_pages=sum(process.huge_pages for process in processes),
        split_huge_pages=sum(process.split_huge_pages for process in processes),
        volatile_share=None
        if options.settle_seconds is None
        else totals["volatile"] / present
        if present
        else 0.0,
        without_zero_pages=without_zero,
        with_zero_pages=with_zero,
        intervals={
            name: _interval(value, totals[f"{key}2"], n, _unseen_square(totals, key))
            for name, (key, value) in shown.items()
            if f"{key}2" in totals
        },
        sample=n,
        settle_seconds=options.settle_seconds,
        frames_known=reading.census.frames_known(),
        read_bytes=int(table["present"].sum()) * PAGE_SIZE,
        read_seconds=reading.seconds,
        held_bytes=reading.census.held_bytes(),
        held_pages=totals["held"],
        ksmd=ksmd_cost(
            present,
            totals["merging"] + (0 if options.use_zero_pages else totals["zero"]),
            totals["zero"] if options.use_zero_pages else 0,
            pages_to_scan=options.pages_to_scan,
            sleep_millisecs=options.sleep_millisecs,
        ),
        engine=None
        if n > 1
        else engine_cost(
            present,
            runs,
            run_pages,
            tuple(bins),
            vmas=sum(vmas),
            vmas_most=max((process.vmas_after for process in processes), default=0),
            max_map_count=read_max_map_count(),
        ),
        processes=tuple(processes),
        regions=tuple(regions),
        matrices=tuple(
            Matrix(by, tuple(labels), _scaled(np.frombuffer(cells), len(labels), n))
            for (by, labels, _), cells in zip(plans, raw, strict=True)
        ),
        top=tuple(_top(reading, row) for row in tops),
        names=_names(regions),
        notes=(*reading.notes, *_notes(reading, processes)),
    )


def _take_split_zero(totals: dict[str, Any], options: EstimateOptions) -> int:
    """Take the zero pages of huge pages out of the totals, where splitting frees them uncounted.

    mm/huge_memory.c, Linux 6.12: what splitting finds all zero is mapped to the shared zero page,
    before ksmd comes to it; no counter of KSM shows these.
    """
    if not splitting_frees_zero_pages() or (
        totals["zero_frames"] < 2 and not options.use_zero_pages
    ):
        return 0
    split: int = totals["zero_huge"]
    totals["zero"] -= split
    totals["zero_frames"] = min(totals["zero"], max(0, totals["zero_frames"] - split))
    return split


def _zero_sums(totals: dict[str, Any], options: EstimateOptions) -> tuple[int, int]:
    """pages_shared and pages_sharing of the zero content where use_zero_pages is 0."""
    if totals["zero_frames"] < 2:
        return 0, 0
    return ksm_counts(totals["zero"], options.max_page_sharing)


def _zero_saved(totals: dict[str, Any], options: EstimateOptions) -> int:
    """Physical pages that merging the zero pages frees."""
    frames: int = totals["zero_frames"]
    return max(0, frames - (0 if options.use_zero_pages else _zero_sums(totals, options)[0]))


def _variant(
    totals: dict[str, Any], present: int, options: EstimateOptions, use_zero_pages: int
) -> ZeroVariant:
    zero = totals["zero"] if use_zero_pages else 0
    shared, sharing = (0, 0) if use_zero_pages else _zero_sums(totals, options)
    sharing += totals["sharing"]
    return ZeroVariant(
        pages_shared=shared + totals["shared"],
        pages_sharing=sharing,
        ksm_zero_pages=zero,
        general_profit=(sharing + zero) * PAGE_SIZE - (present - zero) * RMAP_ITEM_BYTES,
    )


def _interval(value: int, squares: float, sample: int, unseen: float) -> Interval:
    """95 % of a sum over contents, each kept with probability 1/sample (Horvitz-Thompson).

    A sample that met none or few contents tells too small a variance, or none at all: two more are
    added, as Agresti and Coull do, so that the interval of none ends at nearly three times `sample`
    (the rule of three).

    Args:
        value: the sum, scaled.
        squares: sum of the squares over the contents in the sample.
        sample: one content in so many is kept.
        unseen: the square that a content not met is given.
    """
    if sample == 1:
        return Interval(value, value)
    half = _Z95 * sample * math.sqrt((squares + 2 * unseen) * (1 - 1 / sample))
    return Interval(max(0, math.floor(value - half)), math.ceil(value + half))


def _unseen_square(totals: dict[str, Any], key: str) -> float:
    """Give a content that was not met the mean square of those that were, at least one page."""
    if key in ("unshared", "distinct", "volatile"):
        return 1.0  # a page each, or not told by how many contents
    square: float = totals[f"{key}2"] / max(1.0, totals["shared2"])
    return max(1.0, square)


def _regions(reading: Reading, table: npt.NDArray[Any]) -> list[RegionEstimate]:
    n = reading.options.sample
    return [
        RegionEstimate(
            pid=space.target.pid,
            command=space.target.command,
            start=region.start,
            end=region.end,
            perms=region.perms,
            name=region.name,
            mergeable=region.mergeable,
            present_pages=int(row["present"]),
            zero_pages=int(row["zero"]),
            merging_pages=n * int(row["merging"]),
            saved_pages=n * float(row["saved"]),
            volatile_pages=n * int(row["volatile"]),
            huge_pages=int(row["huge"]),
            split_huge_pages=int(row["split_huge"]),
            runs=int(row["runs"]) if n == 1 else 0,
            vmas=int(row["vmas"]) if n == 1 else 0,
        )
        for (space, region), row in zip(reading.regions, table, strict=True)
        if not space.note
    ]


def _processes(reading: Reading, table: npt.NDArray[Any]) -> list[ProcessEstimate]:
    n, at, found = reading.options.sample, 0, []
    for space in reading.spaces:
        rows = table[at : at + len(space.regions)]
        at += len(space.regions)
        if space.note:
            rows = rows[:0]
        target = space.target
        added = int(rows["vmas"].sum()) - int((rows["vmas"] > 0).sum())
        found.append(
            ProcessEstimate(
                pid=target.pid,
                command=target.command,
                user=target.user,
                cgroup=target.cgroup,
                present_pages=int(rows["present"].sum()),
                zero_pages=int(rows["zero"].sum()),
                merging_pages=n * int(rows["merging"].sum()),
                saved_pages=n * float(rows["saved"].sum()),
                volatile_pages=n * int(rows["volatile"].sum()),
                huge_pages=int(rows["huge"].sum()),
                split_huge_pages=int(rows["split_huge"].sum()),
                vmas=space.vmas,
                vmas_after=space.vmas + (added if n == 1 else 0),
                note=space.note,
            )
        )
    return found


_Plan = tuple[str, list[str], list[int]]  # by what, labels, party of each region


def _plan_matrices(reading: Reading) -> list[_Plan]:
    """Choose the rows of each matrix: the biggest, the rest together as `others`."""
    keys: dict[str, Callable[[Space, SpaceRegion], str]] = {
        "process": lambda space, _: space.target.label,
        "command": lambda space, _: space.target.command,
        "user": lambda space, _: space.target.user,
        "cgroup": lambda space, _: space.target.cgroup,
        "mapping": lambda _, region: region.name or "[anon]",
    }
    plans = []
    for by, key in keys.items():
        weight: dict[str, int] = defaultdict(int)
        for space, region in reading.regions:
            weight[key(space, region)] += region.anonymous_bytes
        labels = sorted(weight, key=lambda label: (-weight[label], label))
        if by not in ("process", "mapping") and len(labels) in (1, len(reading.spaces)):
            continue  # a matrix of one says nothing, one of all what that of processes says
        most = _MAPPINGS if by == "mapping" else _PARTIES
        if len(labels) > most:
            labels[most:] = ["others"]
        number = {label: i for i, label in enumerate(labels)}
        party = [number.get(key(*pair), len(labels) - 1) for pair in reading.regions]
        plans.append((by, labels, party))
    return plans


def _scaled(cells: npt.NDArray[np.float64], size: int, n: int) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in (cells.reshape(size, size) * n).tolist())


def _top(reading: Reading, row: tuple[int, ...]) -> TopContent:
    hash_, pages, frames, processes, regions, number, page = row
    space, region = reading.regions[number]
    return TopContent(
        hash=hash_,
        pages=pages,
        frames=frames,
        processes=processes,
        regions=regions,
        name=region.name or "[anon]",
        description=describe_contents(space, region, page),
    )


def _names(regions: Sequence[RegionEstimate]) -> dict[str, float]:
    """Pages saved by mapping name, the most first."""
    found: dict[str, float] = defaultdict(float)
    for region in regions:
        found[region.name or "[anon]"] += region.saved_pages
    return {name: found[name] for name in sorted(found, key=lambda name: -found[name])[:50]}


def _notes(reading: Reading, processes: Sequence[ProcessEstimate]) -> list[str]:
    notes = [f"{space.target.label}: {space.note}" for space in reading.spaces if space.note]
    for space, process in zip(reading.spaces, processes, strict=True):
        if not process.present_pages and not space.note:
            what = "nothing but holes" if space.target.path else "nothing in memory"
            notes.append(f"{space.target.label}: {what} in its regions")
        vanished = space.anonymous_bytes - pages_to_bytes(process.present_pages)
        if process.present_pages and vanished > _VANISHED * space.anonymous_bytes:
            notes.append(
                f"{space.target.label}: {render_bytes(vanished)} of "
                f"{render_bytes(space.anonymous_bytes)} were gone before they were read (unmapped, "
                "or given back)"
            )
        if space.target.path and process.zero_pages:
            zero = render_bytes(pages_to_bytes(process.zero_pages))
            notes.append(
                f"{space.target.label}: {zero} of it are zero: dumps have zeros where memory was "
                "never touched, too, which is none to save"
            )
    swapped = sum(space.swapped_bytes for space in reading.spaces if not space.note)
    if swapped:
        notes.append(
            f"{render_bytes(swapped)} more are in swap, where neither this nor ksmd looks; what is "
            "read back from there can be merged, too"
        )
    if not reading.census.frames_known():
        notes.append(
            "physical page numbers are hidden (CAP_SYS_ADMIN): pages at one address in parent and "
            "child are taken as shared by fork"
        )
    if not reading.census.huge_known():
        notes.append("which pages are huge is not told (PAGEMAP_SCAN, Linux 6.7): none are counted")
    if reading.options.sample > 1:
        notes.append(
            "a sample of contents does not tell what lies side by side: the engine's runs and VMAs "
            "are unknown, and of huge pages only those are counted that a sampled page would split"
        )
    limit = read_max_map_count()
    over = [p for p in processes if limit and p.vmas_after > limit]
    for process in over:
        notes.append(
            f"{process.command}[{process.pid}] would need {process.vmas_after} mappings in the "
            f"engine, vm.max_map_count is {limit}: the engine would leave some pages unmerged"
        )
    return notes
