"""What an estimate says: typed, and as columns for Arrow, NumPy and data frames."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from pagemerge.insight.model import EngineCost, KsmdCost

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "Estimate",
    "Interval",
    "Matrix",
    "ProcessEstimate",
    "RegionEstimate",
    "TopContent",
    "ZeroVariant",
]


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % confidence interval; both ends equal the value where nothing was sampled."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class ProcessEstimate:
    """One process (or file) of an estimate; pages unless said otherwise.

    Attributes:
        present_pages: eligible pages in memory.
        zero_pages: of these all zero.
        merging_pages: would be merged with an equal page (zero pages apart).
        saved_pages: its share of pages_sharing.
        volatile_pages: changed between the two looks.
        huge_pages: 4 KiB pages in huge mappings.
        split_huge_pages: huge pages (2 MiB) that merging would split.
        vmas: mappings that it has; vmas_after: with the engine's merging (the same when sampling).
        note: why it, or a part of it, is left out.
    """

    pid: int
    command: str
    user: str
    cgroup: str
    present_pages: int
    zero_pages: int
    merging_pages: int
    saved_pages: float
    volatile_pages: int
    huge_pages: int
    split_huge_pages: int
    vmas: int
    vmas_after: int
    note: str


@dataclass(frozen=True, slots=True)
class RegionEstimate:
    """One region; as `ProcessEstimate`, and `mergeable`: whether ksmd looks at it already.

    `command` is the process's or the file's name: files have no number. `runs` and `vmas` (of the
    engine's merging) are 0 when sampling, which does not show what lies side by side.
    """

    pid: int
    command: str
    start: int
    end: int
    perms: str
    name: str
    mergeable: bool
    present_pages: int
    zero_pages: int
    merging_pages: int
    saved_pages: float
    volatile_pages: int
    huge_pages: int
    split_huge_pages: int
    runs: int
    vmas: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """Who shares with whom: pages that two have in common; the diagonal is duplicates within one.

    Attributes:
        by: `process`, `command`, `user`, `cgroup` or `mapping`.
        labels: of rows and columns alike.
        pages: rows of numbers; zero pages apart.
    """

    by: str
    labels: tuple[str, ...]
    pages: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class TopContent:
    """A content that many pages have.

    Attributes:
        description: what is in it, where an example could be read.
        frames: physical pages under these pages (fork shares them).
        name: the mapping that an example was found in.
    """

    hash: int
    pages: int
    frames: int
    processes: int
    regions: int
    name: str
    description: str


@dataclass(frozen=True, slots=True)
class ZeroVariant:
    """The totals under one setting of use_zero_pages."""

    pages_shared: int
    pages_sharing: int
    ksm_zero_pages: int
    general_profit: int


@dataclass(frozen=True)
class Estimate:
    """What merging would give; kernel-named numbers are as ksmd would count once it has settled.

    Attributes:
        rmap_items: pages that ksmd would keep a record of (64 bytes each).
        present_pages: eligible pages that were read.
        zero_pages: of these all zero.
        split_zero_pages: of these in huge pages; splitting frees them, and no counter shows it.
        distinct_contents: apart from zero.
        frames_saved: frames that come free; fewer than pages_sharing where fork shares some.
        within_pages: duplicates of a page of the same process; between_pages: of another one's.
        already_pages: pages that the kernel's KSM has merged now.
        huge_pages: 4 KiB pages in huge mappings; split_huge_pages: huge pages to be split.
        without_zero_pages, with_zero_pages: the totals with use_zero_pages 0 and 1.
        intervals: by name of total, when sampling.
        frames_known: whether the kernel showed which pages are physically the same.
        read_bytes, read_seconds: of the first look.
        held_bytes: memory that the estimate took at its peak; held_pages: records in it.
        engine: what the engine would need; None when sampling, which does not show runs.
        settle_seconds: between the looks; None: one look, volatile pages unknown.
    """

    pages_shared: int
    pages_sharing: int
    pages_unshared: int
    pages_volatile: int
    ksm_zero_pages: int
    stable_node_chains: int
    stable_node_dups: int
    general_profit: int
    use_zero_pages: int
    max_page_sharing: int
    rmap_items: int
    present_pages: int
    zero_pages: int
    split_zero_pages: int
    distinct_contents: int
    frames_saved: int
    within_pages: int
    between_pages: int
    already_pages: int
    huge_pages: int
    split_huge_pages: int
    volatile_share: float | None
    without_zero_pages: ZeroVariant
    with_zero_pages: ZeroVariant
    intervals: Mapping[str, Interval]
    sample: int
    settle_seconds: float | None
    frames_known: bool
    read_bytes: int
    read_seconds: float
    held_bytes: int
    held_pages: int
    ksmd: KsmdCost
    engine: EngineCost | None
    processes: tuple[ProcessEstimate, ...]
    regions: tuple[RegionEstimate, ...]
    matrices: tuple[Matrix, ...]
    top: tuple[TopContent, ...]
    names: Mapping[str, float]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give plain dicts and lists, as `pagemerge estimate --json` prints them."""
        return asdict(self)

    def columns(self, what: str = "regions") -> dict[str, npt.NDArray[Any]]:
        r"""Give `regions`, `processes` or `top` as NumPy arrays by column.

        `pandas.DataFrame(...)`, `polars.DataFrame(...)` and `pyarrow.table(...)` take it as it is:
        bytes of names that are no UTF-8 are written as `\xff`, which `to_dict` leaves as they are.

        Raises:
            ValueError: there is no such table.
        """
        import numpy as np

        if what not in _TABLES:
            raise ValueError(f"no table {what!r}: {', '.join(_TABLES)}")
        rows = getattr(self, what)
        return {
            field.name: np.array(
                [_plain(getattr(row, field.name)) for row in rows], _dtype(field.name, field.type)
            )
            for field in fields(_TABLES[what])
        }


_TABLES = {"regions": RegionEstimate, "processes": ProcessEstimate, "top": TopContent}


_UNSIGNED = ("start", "end", "hash")  # the others are numbers to reckon with: differences of them


def _dtype(name: str, annotation: object) -> np.dtype[Any]:
    import numpy as np

    kinds: dict[object, str] = {"int": "int64", "float": "float64", "bool": "bool"}
    return np.dtype("uint64" if name in _UNSIGNED else kinds.get(annotation, "str"))


def _plain(value: Any) -> Any:
    """Text without the surrogates that stand for odd bytes, which no UTF-8 column takes."""
    if isinstance(value, str) and not value.isascii():
        return os.fsencode(value).decode("utf-8", "backslashreplace")
    return value
