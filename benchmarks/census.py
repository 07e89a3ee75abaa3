"""Measures how fast `estimate` reads, and what it costs the program that is read.

    python -m benchmarks.census [--mib N]

Ratios in one run: a plain read loop over the same amount of memory stands beside the reading of a
process's pages, by one thread and by one a core; and a program's own loop, alone and while it is
read again and again (by its own CPU time: the reader takes a core, not the program's).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pagemerge import _core
from pagemerge.insight import EstimateOptions, estimate, find_targets

_TARGET = """
import os, sys, time
import numpy
pages = int(sys.argv[1])
data = numpy.random.default_rng(1).integers(0, 1 << 62, pages * 512, dtype=numpy.int64)
work = numpy.zeros(1 << 22, dtype=numpy.int64)
if sys.argv[2] == "fork":
    for _ in range(1):
        if os.fork() == 0:
            sys.stdin.read()
            os._exit(0)
print("ready", flush=True)
for line in sys.stdin:  # each line: loop for so many seconds, say how many rounds
    begin, end, rounds = time.process_time(), time.monotonic() + float(line), 0
    while time.monotonic() < end:
        work += 1  # writes 32 MiB: faults and memory bandwidth would show
        rounds += 1
    print(rounds / (time.process_time() - begin), flush=True)
"""


@dataclass
class Target:
    """A program that holds memory, and loops when told."""

    process: subprocess.Popen[str]

    def ask(self, seconds: float) -> None:
        """Begin a loop."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()

    def answer(self) -> float:
        """Wait for its rounds a second of CPU time."""
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())


def start(mib: int, kind: str) -> Target:
    """Start one and wait until it holds its memory."""
    process = subprocess.Popen(
        [sys.executable, "-c", _TARGET, str(mib << 8), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError("the target did not come up")
    return Target(process)


def best(action: Callable[[], object], times: int = 5) -> float:
    """Seconds of the quickest of some runs."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        action()
        found.append(time.perf_counter() - begin)
    return min(found)


def read_rates(mib: int) -> dict[str, float]:
    """GB/s of a plain loop, of hashing in place, and of reading a process."""
    own = np.random.default_rng(2).integers(0, 1 << 62, mib << 17, dtype=np.int64)
    size = own.nbytes
    rates = {
        "plain read loop, one core": size / best(lambda: np.bitwise_or.reduce(own)) / 1e9,
        "hashing in place, one core": size / best(lambda: _core.hash_pages(own)) / 1e9,
    }
    cores = os.cpu_count() or 1
    for kind, what in (("own", "a process's own pages"), ("fork", "pages shared by fork")):
        target = start(mib, kind)
        try:
            targets = find_targets(pids=[target.process.pid])
            for threads in sorted({1, cores}):
                results = [estimate(targets, EstimateOptions(threads=threads)) for _ in range(5)]
                rate = max(r.read_bytes / r.read_seconds for r in results) / 1e9
                rates[f"{what}, {threads} threads"] = rate
        finally:
            target.process.kill()
            target.process.communicate()
    return rates


def slowdowns(mib: int, seconds: float) -> tuple[float, float]:
    """How much slower a program loops while another is read, and while it is read itself.

    One thread reads without a pause. Both against the loop with nobody reading; what the second has
    beyond the first is the price of being read, the rest is that of sharing cores and memory.
    """
    target, other = start(mib, "own"), start(mib, "own")
    try:
        rounds: dict[int, float] = {0: 0.0, other.process.pid: 0.0, target.process.pid: 0.0}
        for _ in range(5):  # in turns: the machine's own drift hits all
            for pid in rounds:
                target.ask(seconds)
                end = time.monotonic() + seconds
                while pid and time.monotonic() < end:
                    estimate(find_targets(pids=[pid]), EstimateOptions(threads=1))
                rounds[pid] += target.answer()
        alone = rounds[0]
        return 1 - rounds[other.process.pid] / alone, 1 - rounds[target.process.pid] / alone
    finally:
        for program in (target, other):
            program.process.kill()
            program.process.communicate()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    for what, rate in read_rates(args.mib).items():
        print(f"{what:40} {rate:6.1f} GB/s")
    beside, read = slowdowns(args.mib, args.seconds)
    print(f"{'slowdown while another program is read':40} {beside:6.1%}")
    print(f"{'slowdown while it is read itself':40} {read:6.1%}")


if __name__ == "__main__":
    main()
