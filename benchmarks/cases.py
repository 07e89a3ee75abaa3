"""The cases: what each implementation does with the same memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.implementations import Implementation
from benchmarks.workload import PAGE, Shape, Workload

__all__ = [
    "LATENCY_ROUNDS",
    "LatencyResult",
    "LatencyRound",
    "MergeResult",
    "ScanResult",
    "measure_latency",
    "measure_merge",
    "measure_scan",
    "raise_max_map_count",
]

PLATEAU_SECONDS = 1.5  # no growth for so long: that was all
LIMIT_SECONDS = 180.0
WRITER_THREADS = 8
WRITES_PER_SECOND = 1000  # of each thread
BASELINE_SECONDS = 2.0
LATENCY_ROUNDS = 5


@dataclass
class Settled:
    """Passes over memory that nobody writes to."""

    passes: int
    seconds: float
    cpu_seconds: float

    @property
    def cpu_seconds_per_pass(self) -> float:
        """CPU for one pass."""
        return self.cpu_seconds / self.passes if self.passes else float("nan")


@dataclass
class MergeResult:
    """Two processes from unmerged to merged."""

    wall_seconds: float
    scanner_cpu_seconds: float
    process_cpu_seconds: float  # what the merged processes themselves spent on being merged
    expected_pages: int
    pages_shared: int
    pages_sharing: int
    passes: int
    pss_before_bytes: int
    pss_after_bytes: int
    metadata_bytes_per_page: float
    bad_pages: int
    settled: Settled
    max_map_count: int
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def cpu_seconds(self) -> float:
        """All CPU that merging cost, wherever it was spent."""
        return self.scanner_cpu_seconds + self.process_cpu_seconds


@dataclass
class ScanResult:
    """One process of which no page has a twin, from nothing to all pages known."""

    bytes: int
    wall_seconds: float
    cpu_seconds: float
    plain_read_gb_per_second: float
    bad_pages: int

    @property
    def gb_per_cpu_second(self) -> float:
        """10^9 bytes that one core gets through in a second."""
        return self.bytes / self.cpu_seconds / 1e9


@dataclass
class LatencyRound:
    """Writers before and while their memory is merged, once; quantiles in nanoseconds."""

    before: dict[str, Any]
    during: dict[str, Any]
    merging_seconds: float
    pages_sharing: int
    stolen_seconds: float  # in which a hypervisor let the CPUs stand still, while merging
    bad_pages: int

    def added_p99(self, what: str) -> int:
        """Nanoseconds that merging adds to the 99th percentile."""
        return int(self.during[what]["p99"]) - int(self.before[what]["p99"])


@dataclass
class LatencyResult:
    """Several rounds, those of the two implementations taken in turns."""

    rounds: list[LatencyRound]

    @property
    def bad_pages(self) -> int:
        """Pages that were wrong, in all rounds."""
        return sum(latency.bad_pages for latency in self.rounds)

    def added_p99(self, what: str) -> float:
        """Nanoseconds that merging adds to the 99th percentile: the median of the rounds."""
        return statistics.median(self._added(what))

    def spread(self, what: str) -> tuple[int, int]:
        """The least and the most that merging added in a round, nanoseconds."""
        added = self._added(what)
        return min(added), max(added)

    def _added(self, what: str) -> list[int]:
        return [latency.added_p99(what) for latency in self.rounds]


@contextlib.contextmanager
def raise_max_map_count(wanted: int) -> Iterator[int]:
    """Raise vm.max_map_count where that is allowed, and put it back; what it is meanwhile."""
    path = Path("/proc/sys/vm/max_map_count")
    before = int(path.read_text())
    if wanted <= before:
        yield before
        return
    try:
        path.write_text(f"{wanted}\n")
    except PermissionError:
        yield before
        return
    try:
        yield wanted
    finally:
        path.write_text(f"{before}\n")


@contextlib.contextmanager
def _workloads(
    implementation: Implementation, program: Path, shapes: list[Shape]
) -> Iterator[list[Workload]]:
    with contextlib.ExitStack() as stack:
        started: list[Workload] = []
        for shape in shapes:
            workload = Workload(program, shape, implementation.env)
            stack.callback(workload.close)
            started.append(workload)
        implementation.set_run(0)
        for workload in started:
            workload.mark()
        implementation.wait_registered([workload.pid for workload in started])
        yield started


def measure_merge(
    implementation: Implementation, program: Path, pages: int, grain: int
) -> MergeResult:
    """Time and CPU until the equal pages of two processes are merged."""
    shapes = [Shape(pages, seed=1), Shape(pages, seed=2, grain=grain)]
    with _workloads(implementation, program, shapes) as workloads:
        expected = workloads[0].equal_pages
        pss_before = sum(workload.pss_bytes() for workload in workloads)
        first_scan = implementation.counters()["full_scans"]
        cpu_before = implementation.cpu_seconds()
        process_cpu_before = sum(workload.cpu_seconds() for workload in workloads)

        implementation.set_run(1)
        started = time.monotonic()
        most, wall = 0, 0.0
        counters: dict[str, int] = {}
        # CPU is taken whenever more is merged, so that waiting for the plateau isn't counted.
        cpu = process_cpu = 0.0
        while most < expected:
            counters = implementation.counters()
            now = time.monotonic() - started
            if counters["pages_sharing"] > most:
                most, wall = counters["pages_sharing"], now
                cpu = implementation.cpu_seconds() - cpu_before
                process_cpu = (
                    sum(workload.cpu_seconds() for workload in workloads) - process_cpu_before
                )
            if (most and now - wall > PLATEAU_SECONDS) or now > LIMIT_SECONDS:
                break
            time.sleep(implementation.poll_seconds)
        passes = counters["full_scans"] - first_scan
        settled = _measure_settled(implementation, workloads)
        counters = implementation.counters()
        notes = implementation.notes()
        metadata = implementation.metadata_bytes() / (2 * pages)
        implementation.set_run(0)
        # Checking reads every page; one that nobody has read since is counted in nobody's Pss.
        bad = sum(workload.count_bad_pages() for workload in workloads)
        pss_after = sum(workload.pss_bytes() for workload in workloads)
    return MergeResult(
        wall_seconds=wall,
        scanner_cpu_seconds=cpu,
        process_cpu_seconds=process_cpu,
        expected_pages=expected,
        pages_shared=counters["pages_shared"],
        pages_sharing=counters["pages_sharing"],
        passes=passes,
        pss_before_bytes=pss_before,
        pss_after_bytes=pss_after,
        metadata_bytes_per_page=metadata,
        bad_pages=bad,
        settled=settled,
        max_map_count=int(Path("/proc/sys/vm/max_map_count").read_text()),
        notes=notes,
    )


def _measure_settled(
    implementation: Implementation,
    workloads: Sequence[Workload],
    passes: int = 5,
    seconds: float = 1.0,
) -> Settled:
    # A few passes first: what merging left to do is not part of a settled pass.
    _wait_passes(implementation, 3)
    first = implementation.counters()["full_scans"]
    cpu = implementation.cpu_seconds() + sum(one.cpu_seconds() for one in workloads)
    started = time.monotonic()
    time.sleep(seconds)
    last = _wait_passes(implementation, max(0, passes - (_passes(implementation) - first)))
    return Settled(
        passes=last - first,
        seconds=time.monotonic() - started,
        cpu_seconds=implementation.cpu_seconds()
        + sum(one.cpu_seconds() for one in workloads)
        - cpu,
    )


def _passes(implementation: Implementation) -> int:
    return implementation.counters()["full_scans"]


def _wait_passes(implementation: Implementation, passes: int) -> int:
    target = _passes(implementation) + passes
    deadline = time.monotonic() + LIMIT_SECONDS
    while (now := _passes(implementation)) < target and time.monotonic() < deadline:
        time.sleep(implementation.poll_seconds)
    return now


def measure_scan(implementation: Implementation, program: Path, pages: int) -> ScanResult:
    """How fast memory is read for the first time: one process, no two pages equal."""
    with _workloads(implementation, program, [Shape(pages, unique_percent=100)]) as [workload]:
        plain = workload.read_speed()
        first_scan = _passes(implementation)
        cpu = implementation.cpu_seconds() + workload.cpu_seconds()
        implementation.set_run(1)
        started = time.monotonic()
        while time.monotonic() - started < LIMIT_SECONDS:
            counters = implementation.counters()
            # ksmd's count starts anew with each pass; two passes are what it takes.
            if counters["pages_unshared"] >= 0.999 * pages or (
                implementation.name == "ksmd" and counters["full_scans"] >= first_scan + 2
            ):
                break
            time.sleep(implementation.poll_seconds)
        wall = time.monotonic() - started
        cpu = implementation.cpu_seconds() + workload.cpu_seconds() - cpu  # agents hash, too
        implementation.set_run(0)
        bad = workload.count_bad_pages()
    return ScanResult(pages * PAGE, wall, cpu, plain, bad)


def _touch_free_memory(size: int) -> None:
    """Make sure that so many free bytes of a virtual machine are its own.

    A hypervisor may take back what its guest has free. Whoever allocates it anew then stands still
    until it is given again, for milliseconds at times, and with him all who wait for his CPU. That
    is neither the engine's time, which fills its pool's pages, nor ksmd's.
    """
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def _stolen_seconds() -> float:
    """CPU time that the machine was ready to use and its hypervisor did not give, since boot."""
    return int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")


def measure_latency(implementation: Implementation, program: Path, pages: int) -> LatencyResult:
    """What threads that write at a steady rate notice while their memory is merged, once.

    Two processes with the same 90 % of pages in the same order; in one of them eight threads each
    store a word to a random page a thousand times a second. They do so first for two seconds with
    nobody merging, which tells how late the machine itself wakes eight threads, then from the start
    of merging until 0.3 s after it stopped growing, with half of the equal pages merged or more.
    What merging adds is the difference of the two 99th percentiles, both over all writes of all
    threads: thousands a second, so that a round's p99 rests on a hundred writes or more. "late"
    counts from when a write was due, so that a thread that could not run counts as well; "took" is
    the store alone.

    One round says little on a machine with fewer cores than threads: the caller takes several, one
    implementation after the other in turns (`LATENCY_ROUNDS`); median and spread are reported.
    Both get the same memory, rate and random sequence of writes, and each its own full speed, so
    pages per second differ. Whoever merges sooner is watched for a shorter time, of which the 0.3 s
    at the end are a larger part; that favours it. `merging_seconds` says how long it was.
    """
    shapes = [Shape(pages, seed=1), Shape(pages, seed=2)]
    with _workloads(implementation, program, shapes) as [_, writer]:
        writer.start_writers(WRITER_THREADS, WRITES_PER_SECOND)
        writer.lap()
        time.sleep(BASELINE_SECONDS)
        before = writer.lap()
        _touch_free_memory(2 * pages * PAGE)
        writer.lap()
        stolen = _stolen_seconds()
        implementation.set_run(1)
        started = time.monotonic()
        most, grew = 0, 0.0
        while True:
            sharing = implementation.counters()["pages_sharing"]
            now = time.monotonic() - started
            # Written pages leave again, so growth means a page in a thousand more.
            if sharing > most + pages // 1000:
                most, grew = sharing, now
            # With half of them merged a pause is the end; before that, merging may just begin.
            pause = 0.3 if most > writer.equal_pages // 2 else PLATEAU_SECONDS
            if (most and now - grew > pause) or now > LIMIT_SECONDS:
                break
            time.sleep(0.02)
        during = writer.lap()
        stolen = _stolen_seconds() - stolen
        writer.rest()
        implementation.set_run(0)
        bad = writer.count_bad_pages()
    return LatencyResult([LatencyRound(before, during, grew, most, stolen, bad)])
