"""What a trace comes to: merges, failures, passes, advisor decisions, losses; pure counting."""

from __future__ import annotations

import errno
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pagemerge.ksm import Event, LostEvents

__all__ = ["MERGE_EVENTS", "Durations", "ProcessMerges", "TraceSummary", "errno_name"]

# Both are attempts, with `err`; the kernel's ksm_merge_one_page is about the zero page alone.
MERGE_EVENTS: Final = frozenset({"ksm_merge_one_page", "ksm_merge_with_ksm_page"})
_RATE_SECONDS: Final = 2.0  # over which the rate of now is taken
_RATE_STEP: Final = 0.1


def errno_name(err: int) -> str:
    """Name a kernel's error number, which is negative.

    >>> errno_name(-14), errno_name(-12345)
    ('EFAULT', '-12345')
    """
    return errno.errorcode.get(-err, str(err))


@dataclass
class Durations:
    """Times that passes took, seconds."""

    count: int = 0
    total: float = 0.0
    shortest: float = 0.0
    longest: float = 0.0
    last: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one in."""
        self.shortest = min(self.shortest, seconds) if self.count else seconds
        self.longest = max(self.longest, seconds)
        self.count += 1
        self.total += seconds
        self.last = seconds

    @property
    def mean(self) -> float:
        """Their mean; 0 where there are none."""
        return self.total / self.count if self.count else 0.0


@dataclass
class ProcessMerges:
    """What was done to a process's pages.

    Attributes:
        merged: pages that came to share another's.
        zeroed: pages replaced by the zero page.
        failed: attempts that failed, by error.
        removed: pages merged before whose shared page was given up.
    """

    merged: int = 0
    zeroed: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    removed: int = 0


class TraceSummary:
    """Counts events; `add` every one, read at any time.

    Attributes:
        counts: events by name.
        processes: what was done to each process's pages; under None those of unknown ones.
        failed: attempts to merge that failed, by error.
        how: events about a known process, by what told it.
        lost: events that were not kept.
        began, ended: times of the first and the last event, seconds; None before there is one.
        advice: fields of the advisor's last decision.
        watched: how long was looked, seconds; None: not known, the events' own span counts.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.counts: Counter[str] = Counter()
        self.processes: dict[int | None, ProcessMerges] = {}
        self.failed: Counter[str] = Counter()
        self.how: Counter[str] = Counter()
        self.merged = 0
        self.zeroed = 0
        self.lost = 0
        self.passes = Durations()
        self.began: float | None = None
        self.ended: float | None = None
        self.watched: float | None = None
        self.advice: Mapping[str, int] | None = None
        self._pass_began: float | None = None
        self._recent: deque[list[float]] = deque()  # [when, merges], a row per tenth of a second

    def add(self, event: Event | LostEvents) -> None:
        """Count an event in."""
        if isinstance(event, LostEvents):
            self.lost += event.count
            self._pass_began = None  # its end may be among them
            return
        name, time = event.name, event.time
        if self.began is None:
            self.began = time
        self.ended = time
        self.counts[name] += 1
        if event.how is not None:
            self.how[event.how] += 1
        if name in MERGE_EVENTS:
            self._add_merge(event)
        elif name == "ksm_start_scan":
            self._pass_began = time
        elif name == "ksm_stop_scan":
            if self._pass_began is not None:
                self.passes.add(time - self._pass_began)
            self._pass_began = None
        elif name == "ksm_remove_rmap_item":
            self._process(event.pid).removed += 1
        elif name == "ksm_advisor":
            self.advice = event.fields

    @property
    def events(self) -> int:
        """How many events there were, lost ones apart."""
        return self.counts.total()

    @property
    def seconds(self) -> float:
        """How long was looked; where that is not known, from the first event to the last."""
        if self.watched is not None:
            return self.watched
        return 0.0 if self.began is None or self.ended is None else self.ended - self.began

    def recent_rate(self, now: float) -> float:
        """Tell how many pages a second were merged in the last seconds before `now`."""
        # a copy: the live view asks in a thread of its own
        rows = list(self._recent)
        return sum(count for when, count in rows if when >= now - _RATE_SECONDS) / _RATE_SECONDS

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON takes it; pids become texts there."""
        return {
            "events": self.events,
            "lost": self.lost,
            "seconds": self.seconds,
            "counts": dict(sorted(self.counts.items())),
            "merged": self.merged,
            "zeroed": self.zeroed,
            "failed": dict(self.failed),
            "passes": {
                "count": self.passes.count,
                "mean_seconds": self.passes.mean,
                "shortest_seconds": self.passes.shortest,
                "longest_seconds": self.passes.longest,
            },
            "advice": None if self.advice is None else dict(self.advice),
            "how": dict(self.how),
            "processes": [
                {
                    "pid": pid,
                    "merged": one.merged,
                    "zeroed": one.zeroed,
                    "failed": dict(one.failed),
                    "removed": one.removed,
                }
                for pid, one in self.by_merges()
            ],
        }

    def by_merges(self) -> list[tuple[int | None, ProcessMerges]]:
        """Give the processes, those with most merges first."""
        return sorted(
            self.processes.items(),
            key=lambda item: (-(item[1].merged + item[1].zeroed), item[0] or 0),
        )

    def _process(self, pid: int | None) -> ProcessMerges:
        found = self.processes.get(pid)
        if found is None:
            found = self.processes[pid] = ProcessMerges()
        return found

    def _add_merge(self, event: Event) -> None:
        process = self._process(event.pid)
        err = event.fields.get("err", 0)
        if err:
            name = errno_name(err)
            self.failed[name] += 1
            process.failed[name] += 1
            return
        if event.name == "ksm_merge_one_page":
            self.zeroed += 1
            process.zeroed += 1
        else:
            self.merged += 1
            process.merged += 1
        recent = self._recent
        if not recent or event.time - recent[-1][0] >= _RATE_STEP:
            while recent and recent[0][0] < event.time - _RATE_SECONDS:
                recent.popleft()
            recent.append([event.time, 0])
        recent[-1][1] += 1
