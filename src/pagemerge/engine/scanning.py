"""ksmd: when to look at what. The per-page work is the C core's.

A pass goes over every registered process in order; a batch is at most `pages_to_scan` pages and
never crosses the end of a pass; between batches ksmd sleeps `sleep_millisecs`; with nothing
registered it sleeps until something is. A pass ends when the agents have answered what it asked
of them, so that its counters speak of merges that happened.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pagemerge.engine.advisor import ScanTimeAdvisor
from pagemerge.engine.turns import BUSY_SECONDS, Turns
from pagemerge.units import PAGE_SIZE

if TYPE_CHECKING:
    from pagemerge import _core
    from pagemerge.engine.clients import Client
    from pagemerge.engine.settings import Settings

__all__ = ["Ksmd"]

log = logging.getLogger("pagemerge.ksmd")

SLICE_PAGES = 1 << 18  # before the sockets get their turn; ends earlier when many are read
QUIET_NAP_SECONDS = 0.002  # after a pass that found nothing new; doubles up to the next
QUIET_NAP_MAX_SECONDS = 0.25
# A pass over many mappings is dear though hardly a page has changed: it may take this much of the
# time.
FEW_CHANGES = 64  # of that many pages at most one was read, merged or broken
DEAR_PASS_SECONDS = 0.005  # of CPU
DEAR_PASS_SHARE = 0.1

Emit = Callable[[str, dict[str, int]], None]


class Ksmd:
    """The scanning policy; `step` does a slice of work and says when it wants its next turn."""

    def __init__(self, settings: Settings, scanners: dict[str, _core.Scanner], emit: Emit) -> None:
        """Share the settings and scanners with the daemon; `emit` takes trace events."""
        self.settings = settings
        self.scanners = scanners
        self.full_scans = 0
        self.passes = 0  # like full_scans, but never set back
        self.hashing_ns = 0  # what agents spent on scanning
        self._emit = emit
        self._order: list[Client] = []
        self._turns = Turns()
        self._todo: deque[Client] = deque()
        self._current: Client | None = None
        self._in_pass = False
        self._draining = False
        self._batch_left = 0
        self._in_batch = False
        self._wake_at = 0.0
        self._quiet_passes = 0
        self._dear_nap = 0.0
        self._pass_started = 0.0
        self._cpu_before = 0.0
        self._pages_before = (0, 0, 0)
        self._worked_before = 0
        self._advisor: ScanTimeAdvisor | None = None
        self._left: list[Client] = []
        self._waiting = False  # for an agent that hashes

    # what the daemon tells it

    def register(self, client: Client) -> None:
        """Put a process at the end of the order; a pass in progress does not visit it."""
        if client not in self._order:
            self._order.append(client)
            self._turns.add(client)
            self._emit("ksm_enter", {"mm": client.mm, "pid": client.pid})
            self.rouse()

    def unregister(self, client: Client) -> None:
        """Take a process out."""
        if client in self._order:
            self._order.remove(client)
            self._turns.remove(client)
            self._emit("ksm_exit", {"mm": client.mm, "pid": client.pid})
        if client in self._todo:
            self._todo.remove(client)
        if self._current is client:
            self._current = None

    def rouse(self) -> None:
        """Something new is there to look at: end a nap that was only for quiet."""
        if self._quiet_passes or self._dear_nap:
            self._quiet_passes = 0
            self._dear_nap = 0.0
            self._wake_at = min(
                self._wake_at, time.monotonic() + self.settings.sleep_millisecs / 1000
            )

    def wake(self) -> None:
        """End the current sleep (sleep_millisecs was changed)."""
        self._wake_at = 0.0
        self._quiet_passes = 0
        self._dear_nap = 0.0

    def restart_advisor(self) -> None:
        """advisor_mode has changed."""
        self._advisor = None
        if self.settings.advisor_mode == "scan-time":
            self._advisor = ScanTimeAdvisor(self.settings.advisor_min_pages_to_scan)

    def forget_pass(self) -> None:
        """run=2: everything is unmerged; the next pass is the first."""
        self._in_pass = self._in_batch = self._draining = False
        self._current = None
        self._todo.clear()
        self.full_scans = 0

    def take_left(self) -> list[Client]:
        """Give the processes whose memory has gone since the last call: by an exec, or an exit."""
        left, self._left = self._left, []
        return left

    @property
    def registered(self) -> list[Client]:
        """The processes that ksmd looks at, in its order."""
        return list(self._order)

    # a turn

    def step(self, now: float) -> float | None:
        """Work for about 10 ms.

        Returns:
            Seconds until the next turn is wanted, 0 for at once; None: not before something
            happens (an answer, a registration, a knob).
        """
        if self.settings.run != 1 or not self._order:
            return None
        if self._draining:
            return self._drain(now)
        if now < self._wake_at:
            return self._wake_at - now
        if self._turns.taken(now):
            return BUSY_SECONDS
        if not self._in_batch:
            self._in_batch = True
            self._batch_left = self.settings.pages_to_scan
        if self._batch_left <= 0:
            return self._end_batch(now)
        if not self._in_pass:
            self._begin_pass(now)
        self._slice()
        if self._draining:
            return self._drain(now)
        if self._batch_left <= 0:
            return self._end_batch(now)
        return None if self._waiting else 0.0

    def _begin_pass(self, now: float) -> None:
        self._in_pass = True
        self._pass_started = now
        self._todo = deque(self._order)
        self._worked_before = self._work_done()
        self._cpu_before, self._pages_before = time.process_time(), self._pages_done()
        self._dear_nap = 0.0
        self._turns.begin_pass()
        self._emit("ksm_start_scan", {"seq": self.full_scans, "rmap_entries": self._items()})
        for scanner in self.scanners.values():
            scanner.begin_pass()

    def _slice(self) -> None:
        left = min(self._batch_left, SLICE_PAGES)
        self._waiting = False
        while left > 0:
            if self._current is None and not self._next_client():
                self._draining = True
                break
            client = self._current
            assert client is not None
            scanned, done = client.scanner.scan(client.mm, left)
            left -= scanned
            self._batch_left -= scanned
            if not done:
                self._waiting = client.scanner.hashing(client.mm)
                if not self._waiting or client.answers:
                    break  # it has read for long enough, or the budget is used up
            self._current = None
        self.send_requests()

    def _next_client(self) -> bool:
        while self._todo:
            client = self._todo.popleft()
            try:
                mergeable = client.scanner.begin_mm(client.mm)
            except ProcessLookupError:
                self._left.append(client)
                continue
            if mergeable:
                self._current = client
                return True
            if not client.merge_any:
                client.marked = False
                self.unregister(client)
        return False

    def send_requests(self) -> None:
        """Hand every agent whose turn it is what is wanted of it."""
        self._turns.send_requests()

    def answered(self, client: Client) -> None:
        """Let an agent go on, or others take their turn."""
        if self._turns.are_few:
            self._turns.send_requests()
        else:
            client.send_requests()

    def _drain(self, now: float) -> float | None:
        self.send_requests()
        self.send_requests()  # what one process has finished writing, others may have now
        if any(client.asked for client in self._order):
            return None
        self._draining = self._in_pass = False
        for scanner in self.scanners.values():
            scanner.end_pass()
        self.send_requests()  # retired segments are emptied between passes
        self._emit("ksm_stop_scan", {"seq": self.full_scans, "rmap_entries": self._items()})
        self._turns.end_pass()
        self.full_scans += 1
        self.passes += 1
        self._advise(now)
        quiet = self._work_done() == self._worked_before
        self._quiet_passes = self._quiet_passes + 1 if quiet else 0
        self._dear_nap = self._choose_nap()
        return self._end_batch(now)

    def _choose_nap(self) -> float:
        """Seconds to rest after a pass, lest passes that hardly find anything take a whole core."""
        spent = time.process_time() - self._cpu_before
        pages = zip(self._pages_done(), self._pages_before, strict=True)
        changed = sum(abs(after - before) for after, before in pages)
        if spent < DEAR_PASS_SECONDS or changed * FEW_CHANGES > self._items():
            return 0.0
        return min(spent / DEAR_PASS_SHARE - spent, QUIET_NAP_MAX_SECONDS)

    def _end_batch(self, now: float) -> float:
        self._in_batch = False
        pause = max(self.settings.sleep_millisecs / 1000, self._dear_nap)
        if self._quiet_passes:
            nap = QUIET_NAP_SECONDS * 2 ** min(self._quiet_passes, 10)
            pause = max(pause, min(nap, QUIET_NAP_MAX_SECONDS))
        self._wake_at = now + pause
        return pause

    def _advise(self, now: float) -> None:
        if self._advisor is None:
            return
        settings = self.settings
        advice = self._advisor.end_of_pass(
            int((now - self._pass_started) * 1000),
            time.process_time_ns() + self.hashing_ns,
            settings.advisor_target_scan_time,
            settings.advisor_max_cpu,
            settings.advisor_max_pages_to_scan,
        )
        settings.advise_pages_to_scan(advice.pages_to_scan)
        self._emit(
            "ksm_advisor",
            {
                "scan_time": advice.scan_time,
                "pages_to_scan": advice.pages_to_scan,
                "cpu_percent": advice.cpu_percent,
            },
        )

    def _pages_done(self) -> tuple[int, int, int]:
        """Pages that were read so far, that are merged, and that are known: seen once or more."""
        scanners = self.scanners.values()
        read = _total(scanners, "bytes_read") // PAGE_SIZE
        return read, _total(scanners, "pages_sharing"), self._items()

    def _items(self) -> int:
        return _total(self.scanners.values(), "rmap_items")

    def _work_done(self) -> int:
        """A number that changes whenever a pass had something to do, or to remember."""
        names = ("bytes_read", "merge_requests", "breaks", "rmap_items")
        return sum(_total(self.scanners.values(), name) for name in names)


def _total(scanners: Iterable[_core.Scanner], name: str) -> int:
    return sum(scanner.counters().get(name, 0) for scanner in scanners)
