"""Regions of several processes, summed by what is mapped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pagemerge.ksm.interface import Region

__all__ = ["RegionGroup", "group_regions"]


@dataclass(slots=True)
class RegionGroup:
    """What several processes have of one name; sums, None where no region tells.

    Attributes:
        name: what is mapped, as in /proc/PID/maps; empty: anonymous memory without a name.
        processes: how many have it.
        regions: how many regions these are.
        size_bytes: of address space.
        present_bytes: in memory, of each process by itself.
        anonymous_bytes: of these the processes' own: all that ksmd can look at.
        merged_bytes: on shared pages.
        zero_bytes: replaced by the zero page.
        mergeable_bytes: address space that ksmd looks at.
        obstacle: why none of it can be merged; None where some can.
    """

    name: str
    processes: int = 0
    regions: int = 0
    size_bytes: int = 0
    present_bytes: int | None = None
    anonymous_bytes: int | None = None
    merged_bytes: int | None = None
    zero_bytes: int | None = None
    mergeable_bytes: int = 0
    obstacle: str | None = None

    def add(self, region: Region) -> None:
        """Add a region."""
        size = region.end - region.start
        self.obstacle = region.obstacle if not self.regions else self.obstacle and region.obstacle
        self.regions += 1
        self.size_bytes += size
        self.mergeable_bytes += size if region.mergeable else 0
        self.present_bytes = _sum(self.present_bytes, region.present_bytes)
        self.anonymous_bytes = _sum(self.anonymous_bytes, region.anonymous_bytes)
        self.merged_bytes = _sum(self.merged_bytes, region.merged_bytes)
        self.zero_bytes = _sum(self.zero_bytes, region.zero_bytes)


def group_regions(processes: Iterable[Sequence[Region]]) -> list[RegionGroup]:
    """Sum the regions of processes by name, the most merged first.

    >>> heap = Region(0, 8192, "[heap]", merged_bytes=4096)
    >>> [(group.name, group.processes, group.merged_bytes) for group in group_regions([[heap]] * 2)]
    [('[heap]', 2, 8192)]
    """
    groups: dict[str, RegionGroup] = {}
    for regions in processes:
        for region in regions:
            if region.name not in groups:
                groups[region.name] = RegionGroup(region.name)
            groups[region.name].add(region)
        for name in {region.name for region in regions}:
            groups[name].processes += 1
    return sorted(
        groups.values(),
        key=lambda group: (
            -(group.merged_bytes or 0) - (group.zero_bytes or 0),
            -(group.anonymous_bytes or group.present_bytes or 0),
            group.name,
        ),
    )


def _sum(one: int | None, other: int | None) -> int | None:
    return one if other is None else (one or 0) + other
