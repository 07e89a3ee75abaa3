"""Measures what being read by `estimate` costs the program that is read.

    python -m benchmarks.slowdown [--mib N] [--cycles N] [--markdown FILE] [WORK ...]

A program works on its own core: it writes a block of its own, changes words all over its memory, or
maps, fills and unmaps memory (which takes the locks that reading takes, too). Beside it one thread
reads, on the other core, again and again: nothing; another program; the program itself. The three
take turns, in an order that a drift of the machine does not favour, some dozens of times; what
counts is the ratio within a turn. A turn's figures are the calls' own CPU time (a low quantile:
other programs on the core only add to it) and their wall time (the median: waiting for a lock is
seen), less the time that they waited for a core (/proc/PID/schedstat), which others took. A turn in
which others took more than a few per cent is thrown away, as they spoil the caches, too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_TARGET = """
import mmap, os, sys, time
import numpy
os.sched_setaffinity(0, {int(sys.argv[2])})
rng = numpy.random.default_rng(1)
data = rng.integers(0, 1 << 62, int(sys.argv[1]) << 17, dtype=numpy.int64)
block = numpy.zeros(1 << 21, dtype=numpy.int64)
places = rng.integers(0, len(data), 1 << 20)
at = 0
def block_writes():
    numpy.add(block, 1, out=block)
def random_writes():
    global at
    data[places[at : at + 20000]] ^= 5
    at = (at + 20000) % 1_000_000
def maps():
    m = mmap.mmap(-1, 1 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for i in range(0, 1 << 20, 4096):
        m[i] = 1
    m.close()
schedstat = os.open("/proc/self/schedstat", os.O_RDONLY)
def now():  # on the CPU; in all, but for waiting for a core; that
    queued = int(os.pread(schedstat, 99, 0).split()[1])
    return (
        time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID),
        time.clock_gettime_ns(time.CLOCK_MONOTONIC) - queued,
        queued,
    )
print("ready", flush=True)
for line in sys.stdin:
    name, seconds = line.split()
    work, end, took = globals()[name], time.monotonic() + float(seconds), []
    work()
    queued = now()[2]
    while not took or time.monotonic() < end:
        begin = now()
        work()
        took.append((now()[0] - begin[0], now()[1] - begin[1]))
    on_cpu, in_all = numpy.array(took).T
    queued = (now()[2] - queued) / float(seconds) / 1e9
    print(numpy.quantile(on_cpu, 0.2), numpy.median(in_all), queued, flush=True)
"""

_READER = """
import os, sys, time
from pagemerge.insight import EstimateOptions, estimate, find_targets
os.sched_setaffinity(0, {int(sys.argv[1])})
print("ready", flush=True)
for line in sys.stdin:
    pid, seconds = line.split()
    end, times, read = time.monotonic() + float(seconds), 0, 0
    while time.monotonic() < end:
        if pid == "0":
            time.sleep(0.005)
            continue
        read += estimate(find_targets([pid]), EstimateOptions(threads=1)).read_bytes
    print(read, flush=True)
"""

WORKS = ("block_writes", "random_writes", "maps")
_SLICE_SECONDS = 0.05
_READ_SECONDS = 0.08
_QUEUED_MOST = 0.03  # of a slice
_TRIES = 40


class Program:
    """A helper that answers a line with a line."""

    def __init__(self, source: str, *arguments: object) -> None:
        """Start it and wait until it is up."""
        argv = [sys.executable, "-c", source, *map(str, arguments)]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self.answer() != "ready":
            raise RuntimeError("a helper did not come up")

    def ask(self, line: str) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        """Wait for a line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


@dataclass(frozen=True)
class Slowdown:
    """Of one kind of work while `beside` was read: quartiles of ratios less one, and the rate."""

    work: str
    beside: str
    on_cpu: tuple[float, ...]
    in_all: tuple[float, ...]
    gigabytes_a_second: float


def _turn(
    work: str, pids: dict[str, int], target: Program, reader: Program
) -> tuple[list[list[float]], float]:
    """Figures with each of them read (twice, in mirrored order), and the most that others took."""
    sums = {name: np.zeros(3) for name in pids}
    most = 0.0
    for name in (*pids, *reversed(pids)):
        reader.ask(f"{pids[name]} {_READ_SECONDS}")
        time.sleep(_SLICE_SECONDS / 5)  # it is at it when the work begins
        target.ask(f"{work} {_SLICE_SECONDS}")
        on_cpu, in_all, queued = (float(word) for word in target.answer().split())
        sums[name] += (on_cpu, in_all, int(reader.answer()))
        most = max(most, queued)
    return [list(sums[name]) for name in pids], most


def measure(works: list[str], mib: int, cycles: int) -> list[Slowdown]:
    """Measure each kind of work, with another program read and with itself read."""
    cores = sorted(os.sched_getaffinity(0))
    target, other = (Program(_TARGET, mib, cores[0]) for _ in range(2))
    reader = Program(_READER, cores[-1])
    pids = {"nothing": 0, "another": other.process.pid, "itself": target.process.pid}
    found = []
    try:
        for work in works:
            turns = []
            for _ in range(cycles * _TRIES):
                turn, queued = _turn(work, pids, target, reader)
                if queued < _QUEUED_MOST:
                    turns.append(turn)
                if len(turns) == cycles:
                    break
            else:
                raise RuntimeError(f"the machine is busy: {len(turns)} turns of {cycles} were good")
            table = np.array(turns)  # turn, what is read, (on the CPU, in all, bytes read)
            for i, name in enumerate(pids):
                if i:
                    ratios = table[:, i, :2] / table[:, 0, :2] - 1
                    on_cpu, in_all = np.quantile(ratios, (0.25, 0.5, 0.75), axis=0).T
                    rate = float(np.median(table[:, i, 2])) / (2 * _READ_SECONDS) / 1e9
                    found.append(Slowdown(work, name, tuple(on_cpu), tuple(in_all), rate))
    finally:
        for program in (target, other, reader):
            program.stop()
    return found


def render_table(rows: list[Slowdown]) -> str:
    """Write the rows as a table in Markdown."""

    def cell(quartiles: tuple[float, ...]) -> str:
        low, middle, high = quartiles
        return f"{middle:+.1%} ({low:+.1%} to {high:+.1%})"

    lines = [
        "| the program | what is read beside it | CPU time a call | time a call |",
        "| --- | --- | ---: | ---: |",
        *(
            f"| {row.work.replace('_', ' ')} | {row.beside} | {cell(row.on_cpu)} | "
            f"{cell(row.in_all)} |"
            for row in rows
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run, print, and fail when being read costs more than a program may lose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("works", nargs="*", choices=[*WORKS, []], default=[])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--cycles", type=int, default=40)
    parser.add_argument("--markdown", type=Path, help="write the table there")
    args = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        parser.error("needs two cores: the reader's is not the program's")
    rows = measure(args.works or list(WORKS), args.mib, args.cycles)
    table = render_table(rows)
    print(table)
    if args.markdown:
        args.markdown.write_text(table)
    worst = max(row.in_all[1] for row in rows if row.beside == "itself")
    return 0 if worst < 0.05 else 1


if __name__ == "__main__":
    raise SystemExit(main())
