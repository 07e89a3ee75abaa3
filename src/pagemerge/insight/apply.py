"""Advice carried out in running processes, and what was really gained by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from pagemerge.errors import NotPermittedError, PagemergeError, ProcessGoneError
from pagemerge.insight.advise import Advice
from pagemerge.insight.results import RegionEstimate
from pagemerge.insight.targets import Targets
from pagemerge.kernel.frames import count_kept
from pagemerge.ksm import Ksm, Region
from pagemerge.memory import Vma, read_maps, read_stat
from pagemerge.units import PAGE_SIZE

__all__ = ["Applied", "AppliedRegion", "apply_advice"]

PASSES: Final = 3  # two until a page is merged; one may have been half over
STILL_PASSES: Final = 2  # in which nothing was gained
# The engine's agents merge while its passes go on, which may be far quicker than they are.
PATIENCE_SECONDS: Final = 0.5
DOUBT_SECONDS: Final = 3.0  # where much less was gained than foretold
NEARLY_ALL: Final = 0.9
LOOK_SECONDS: Final = 0.05

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class AppliedRegion:
    """One region of the advice, and what became of it.

    Attributes:
        predicted_pages: of its pages so many were to be merged, zero pages apart.
        merged_pages: so many were in the end; None where it could not be read.
        error: why it was not marked; None when it was.
        is_gone: whether the process or the region was there no more.
    """

    pid: int
    start: int
    end: int
    name: str
    predicted_pages: int
    merged_pages: int | None = None
    error: str | None = None
    is_gone: bool = False


@dataclass(slots=True)
class Applied:
    """What was done, and what came of it; pages.

    Attributes:
        ksm: "kernel" or "engine".
        regions: those of the advice, in its order.
        predicted_pages: what the regions were to save.
        saved_before_pages: what they saved already.
        saved_pages: what they saved in the end; None where nothing could be measured.
        passes: passes of ksmd that ended meanwhile.
        seconds: how long it took to settle, or was waited for.
        is_settled: whether nothing more was gained at the end.
        notes: what stood in the way of merging, or of measuring.
    """

    ksm: str
    regions: tuple[AppliedRegion, ...]
    predicted_pages: float
    saved_before_pages: int
    saved_pages: int | None
    passes: int
    seconds: float
    is_settled: bool
    notes: tuple[str, ...]

    @property
    def error_share(self) -> float | None:
        """How far off the prediction was: 0.02 is 2 % more than foretold, -0.02 less."""
        if self.saved_pages is None or not self.predicted_pages:
            return None
        return self.saved_pages / self.predicted_pages - 1

    def to_dict(self) -> dict[str, Any]:
        """Give plain dicts and lists, as `pagemerge advise --apply --json` prints them."""
        data = asdict(self)
        gained = None if self.saved_pages is None else self.saved_pages - self.saved_before_pages
        return {**data, "gained_pages": gained, "error_share": self.error_share}


def apply_advice(
    ksm: Ksm,
    advice: Advice,
    targets: Targets,
    timeout: float = 60.0,
    progress: Progress | None = None,
) -> Applied:
    """Mark the regions of the advice as mergeable, wait until it has settled, and measure.

    No knob is written. A region that has vanished, or is another's by now, is left out by name.

    Args:
        ksm: who is to merge.
        advice: as `advise` gave it.
        targets: what it was given for.
        timeout: seconds to wait at most.
        progress: called with "settling", passes that have ended, passes that it takes at least.

    Raises:
        PagemergeError: the counters can't be read.
    """
    starttimes = {target.pid: target.starttime for target in targets.items}
    regions = tuple(_applied_region(advised.region) for advised in advice.regions)
    saved_before, _ = _Measured(ksm, regions).count_saved(ksm, regions)
    seen: dict[int, Sequence[Vma] | PagemergeError] = {}
    hints: list[str | None] = []
    for region, advised in zip(regions, advice.regions, strict=True):
        if region.pid not in seen:
            seen[region.pid] = _look(region.pid, starttimes.get(region.pid, 0))
        hints.append(_mark(ksm, region, advised.region.perms, seen[region.pid]))
    done = [region for region in regions if region.error is None]
    notes = [f"what was not marked: {hint}" for hint in dict.fromkeys(hints) if hint]
    run = ksm.knobs["run"]
    passes, seconds, settled = 0, 0.0, False
    if done and run == 1:
        passes, seconds, settled = _settle(ksm, done, timeout, progress)
        if not settled:
            notes.append(
                f"it had not settled after {timeout:g} seconds and {passes} passes; it goes on: "
                "raise --timeout, or pages_to_scan"
            )
    elif done:
        notes.append(
            f"run is {run}: nothing is merged until 'pagemerge set --ksm {ksm.implementation} "
            "run=1' (the regions are marked)"
        )
    after = _Measured(ksm, regions)
    for region in regions:
        region.merged_pages = after.merged.get((region.pid, region.start))
    predicted = sum(
        advised.region.saved_pages + advised.region.zero_pages
        for region, advised in zip(regions, advice.regions, strict=True)
        if region.error is None
    )
    if len(done) == len(regions):
        predicted = advice.saved_pages
    saved, is_exact = after.count_saved(ksm, regions)
    if not is_exact:
        notes.append(
            "others merge, too, and page frames are told to root alone: of the pages kept, the "
            "part of these regions is reckoned by their part of all merged mappings"
        )
    return Applied(
        ksm=ksm.implementation,
        regions=regions,
        predicted_pages=predicted,
        saved_before_pages=saved_before,
        saved_pages=saved if done and run == 1 else None,
        passes=passes,
        seconds=seconds,
        is_settled=settled,
        notes=tuple(notes),
    )


class _Measured:
    """What regions save at this moment.

    Attributes:
        merged: merged pages by (pid, start); a region that can't be read is missing.
        merged_pages: their sum, and zero pages of the processes.
    """

    def __init__(self, ksm: Ksm, regions: Sequence[AppliedRegion]) -> None:
        self.merged: dict[tuple[int, int], int] = {}
        pids = {region.pid for region in regions}
        zero = 0
        for pid in pids:
            try:
                rows = ksm.regions(pid)
            except PagemergeError:
                continue
            for region in regions:
                if region.pid == pid:
                    self.merged[pid, region.start] = _merged_within(rows, region)
        for process in ksm.processes():
            if process.pid in pids:
                zero += process.ksm_zero_pages or 0
        self._zero = zero
        self._ours = sum(self.merged.values())
        self.merged_pages = self._ours + zero

    def count_saved(self, ksm: Ksm, regions: Sequence[AppliedRegion]) -> tuple[int, bool]:
        """Count the pages saved, zero pages included; and whether that is exact."""
        if ksm.implementation == "kernel":
            there = [region for region in regions if self.merged.get((region.pid, region.start))]
            kept = count_kept([(region.pid, region.start, region.end) for region in there])
            if kept is not None:
                return kept.mapped - kept.kept + self._zero, True
        counters = ksm.counters()
        shared, sharing = counters["pages_shared"] or 0, counters["pages_sharing"] or 0
        whole = shared + sharing
        # which pages the mappings lead to is not told: each mapping counts for the same part
        saved = round(self._ours * sharing / whole) if whole else 0
        return saved + self._zero, whole - self._ours <= 0.02 * whole


def _applied_region(region: RegionEstimate) -> AppliedRegion:
    return AppliedRegion(
        region.pid, region.start, region.end, region.name, predicted_pages=region.merging_pages
    )


def _merged_within(rows: Sequence[Region], region: AppliedRegion) -> int:
    """Count merged pages; of a row that reaches beyond the region its part."""
    total = 0.0
    for row in rows:
        overlap = min(row.end, region.end) - max(row.start, region.start)
        if overlap > 0:
            total += (row.merged_bytes or 0) * overlap / (row.end - row.start)
    return round(total / PAGE_SIZE)


def _look(pid: int, starttime: int) -> Sequence[Vma] | PagemergeError:
    """Read a process's mappings, if it is still the one that the advice is about."""
    try:
        if starttime and read_stat(pid).starttime != starttime:
            return ProcessGoneError(pid)
        return read_maps(pid)
    except (ProcessGoneError, NotPermittedError) as error:
        return error


def _mark(
    ksm: Ksm, region: AppliedRegion, perms: str, seen: Sequence[Vma] | PagemergeError
) -> str | None:
    """Mark it, or write into it why not; returns the way out, where there is one."""
    if isinstance(seen, PagemergeError):
        region.error, region.is_gone = str(seen), isinstance(seen, ProcessGoneError)
        return seen.hint
    left = region.end - region.start
    for vma in seen:
        overlap = min(vma.end, region.end) - max(vma.start, region.start)
        if overlap > 0 and (vma.path, vma.perms) == (region.name, perms):
            left -= overlap
    if left:
        region.error, region.is_gone = "it has vanished, or is something else by now", True
        return None
    try:
        ksm.advise(region.pid, region.start, region.end)
    except PagemergeError as error:
        region.error, region.is_gone = str(error), isinstance(error, ProcessGoneError)
        return error.hint
    return None


def _settle(
    ksm: Ksm, regions: Sequence[AppliedRegion], timeout: float, progress: Progress | None
) -> tuple[int, float, bool]:
    """Wait until passes have ended and nothing more is gained; passes, seconds, whether it has."""
    wanted = sum(region.predicted_pages for region in regions)
    began = grew = time.monotonic()
    last = _scans(ksm)
    passes, grew_at, best = 0, 0, -1
    while True:
        if progress is not None:
            progress("settling", min(passes, PASSES + STILL_PASSES), PASSES + STILL_PASSES)
        time.sleep(LOOK_SECONDS)
        scans = _scans(ksm)
        passes += scans - last if scans >= last else scans  # run=2 starts them anew
        last = scans
        # by the regions alone: what they save is reckoned from the machine's counters, too
        merged = _Measured(ksm, regions).merged_pages
        now = time.monotonic()
        if merged > best:
            best, grew, grew_at = merged, now, passes
        patience = PATIENCE_SECONDS if best >= NEARLY_ALL * wanted else DOUBT_SECONDS
        if passes >= max(PASSES, grew_at + STILL_PASSES) and now > grew + patience:
            return passes, now - began, True
        if now > began + timeout:
            return passes, now - began, False


def _scans(ksm: Ksm) -> int:
    return ksm.counters()["full_scans"] or 0
