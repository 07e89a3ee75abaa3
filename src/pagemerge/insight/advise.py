"""Advice: the few regions that carry the saving, as the calls that enable them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pagemerge.errors import CommandError
from pagemerge.insight.census import Progress
from pagemerge.insight.estimate import EstimateOptions, Reading, reading_targets, summarize
from pagemerge.insight.model import RMAP_ITEM_BYTES
from pagemerge.insight.results import Estimate, RegionEstimate
from pagemerge.insight.targets import Targets
from pagemerge.units import PAGE_SIZE

__all__ = ["Advice", "AdvisedRegion", "advise"]


@dataclass(frozen=True, slots=True)
class AdvisedRegion:
    """A region worth enabling, in order of usefulness.

    Attributes:
        cumulative_pages: pages that this region and those before it save together.
        cumulative_share: the same, of what all regions would save.
    """

    region: RegionEstimate
    cumulative_pages: float
    cumulative_share: float


@dataclass(frozen=True, slots=True)
class Advice:
    """The smallest set of regions found that gives the share asked for.

    Attributes:
        regions: the set, the most useful first.
        share: of the whole saving, as asked for.
        saved_pages: pages that the set saves; all_pages: that all regions would.
        rmap_items: pages that ksmd would visit in the set; all_rmap_items: in all regions.
        estimate: what it rests on.
    """

    regions: tuple[AdvisedRegion, ...]
    share: float
    saved_pages: float
    all_pages: float
    rmap_items: int
    all_rmap_items: int
    estimate: Estimate

    @property
    def profit_bytes(self) -> int:
        """Bytes that the set saves, less ksmd's metadata for it."""
        return round(self.saved_pages * PAGE_SIZE) - self.rmap_items * RMAP_ITEM_BYTES

    def to_dict(self) -> dict[str, Any]:
        """Give plain dicts and lists, as `pagemerge advise --json` prints them."""
        return {
            "share": self.share,
            "saved_pages": self.saved_pages,
            "all_pages": self.all_pages,
            "rmap_items": self.rmap_items,
            "all_rmap_items": self.all_rmap_items,
            "profit_bytes": self.profit_bytes,
            "regions": [
                {
                    **asdict(advised.region),
                    "cumulative_pages": advised.cumulative_pages,
                    "cumulative_share": advised.cumulative_share,
                }
                for advised in self.regions
            ],
            "notes": list(self.estimate.notes),
        }


def advise(
    targets: Targets,
    share: float = 0.95,
    options: EstimateOptions | None = None,
    progress: Progress | None = None,
) -> Advice:
    """Find the fewest regions that give `share` of the saving.

    Regions are dropped one by one, that first whose loss is least, as long as the share is kept:
    equal pages only pay when two regions that hold them stay, so that choosing each region by
    itself would not do.

    Args:
        targets: see `find_targets`.
        share: of the whole saving; above 0, at most 1.
        options: how to look.
        progress: as for `estimate`.

    Raises:
        CommandError: the share makes no sense, or nothing may be read.
        NotPermittedError, FormatError: as `estimate`.
    """
    if not 0 < share <= 1:
        raise CommandError(f"a share of {share:g}: it is above 0 and at most 1")
    with reading_targets(targets, options, progress) as reading:
        summary = summarize(reading)
        return _choose(reading, summary, share)


def _choose(reading: Reading, summary: Estimate, share: float) -> Advice:
    import numpy as np

    order_bytes, saving_bytes = reading.census.select()
    order = np.frombuffer(order_bytes, np.uint32)
    saving = np.frombuffer(saving_bytes, np.float64) * reading.options.sample
    whole = float(saving[-1]) if len(saving) else 0.0
    # the first that reaches it; a region that saves nothing never comes before
    count = int(np.searchsorted(saving, share * whole * (1 - 1e-12))) + 1 if whole else 0
    by_number = _by_number(reading, summary.regions)
    chosen = [
        AdvisedRegion(by_number[int(number)], float(pages), float(pages) / whole)
        for number, pages in zip(order[:count], saving[:count], strict=True)
    ]
    return Advice(
        regions=tuple(chosen),
        share=share,
        saved_pages=chosen[-1].cumulative_pages if chosen else 0.0,
        all_pages=whole,
        rmap_items=sum(advised.region.present_pages for advised in chosen),
        all_rmap_items=summary.present_pages,
        estimate=summary,
    )


def _by_number(reading: Reading, regions: Sequence[RegionEstimate]) -> dict[int, RegionEstimate]:
    """Regions by the census's numbers; those of spaces that could not be read are left out."""
    found: dict[int, RegionEstimate] = {}
    rows = iter(regions)
    for number, (space, _) in enumerate(reading.regions):
        if not space.note:
            found[number] = next(rows)
    return found
