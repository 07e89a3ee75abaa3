"""Measures how fast `estimate` reads.

    python -m benchmarks.census [--mib N] [--small-pages] [--markdown FILE]

Ratios in one run: a plain read loop over the same amount of memory, and process_vm_readv with XXH3
over the result, stand beside the reading of a process's pages by one thread and by one a core. The
best of some rounds in turns counts, so that other programs on the machine spoil little. What being
read costs the program is in benchmarks/slowdown.py.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.slowdown import Program
from pagemerge import _core
from pagemerge.insight import EstimateOptions, estimate, find_targets

_TARGET = """
import ctypes, os, sys
import numpy
if sys.argv[3] == "small":
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: NumPy asks for huge pages
data = numpy.random.default_rng(1).integers(0, 1 << 62, int(sys.argv[1]) << 17, dtype=numpy.int64)
if sys.argv[2] == "fork" and os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
print("ready", flush=True)
print(data.ctypes.data, flush=True)
sys.stdin.read()
"""

_CHUNK = 512 << 10


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def read_by_calls(pid: int, start: int, size: int) -> None:
    """Read a process's memory as anyone would: process_vm_readv in turn with XXH3."""
    buffer = np.zeros(_CHUNK, np.uint8)
    readv = ctypes.CDLL(None, use_errno=True).process_vm_readv
    local = _Iovec(buffer.ctypes.data, _CHUNK)
    for at in range(start, start + size, _CHUNK):
        remote = _Iovec(at, _CHUNK)
        got = readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        if got != _CHUNK:
            raise OSError(ctypes.get_errno(), "process_vm_readv")
        _core.hash_pages(buffer)


def seconds_of(action: Callable[[], object]) -> float:
    """Seconds of one run."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def seconds_of_estimate(pid: int, threads: int, size: int) -> float:
    """Seconds that the first look takes, for `size` bytes of the process's."""
    result = estimate(find_targets(pids=[pid]), EstimateOptions(threads=threads))
    return result.read_seconds * size / result.read_bytes


def read_rates(mib: int, rounds: int, pages: str) -> dict[str, float]:
    """GB/s of each way to read `huge` or `small` pages, the best round of each."""
    own = np.random.default_rng(2).integers(0, 1 << 62, mib << 17, dtype=np.int64)
    size = own.nbytes
    cores = os.cpu_count() or 1
    plain, forked = (Program(_TARGET, mib, kind, pages) for kind in ("own", "fork"))
    pid, start = plain.process.pid, (int(plain.answer()) + 4095) // 4096 * 4096
    ways: dict[str, Callable[[], float]] = {
        "plain read loop, one core": lambda: seconds_of(lambda: np.bitwise_or.reduce(own)),
        "process_vm_readv and XXH3, one core": lambda: seconds_of(
            lambda: read_by_calls(pid, start, size - _CHUNK)
        ),
        "estimate, one thread": lambda: seconds_of_estimate(pid, 1, size),
        f"estimate, {cores} threads": lambda: seconds_of_estimate(pid, cores, size),
        "estimate of pages that fork shares, one thread": lambda: seconds_of_estimate(
            forked.process.pid, 1, size
        ),
        f"estimate of pages that fork shares, {cores} threads": lambda: seconds_of_estimate(
            forked.process.pid, cores, size
        ),
    }
    best = dict.fromkeys(ways, float("inf"))
    try:
        for _ in range(rounds):
            for what, way in ways.items():
                best[what] = min(best[what], way())
    finally:
        for program in (plain, forked):
            program.stop()
    return {what: size / seconds / 1e9 for what, seconds in best.items()}


def render_table(rates: dict[str, float]) -> str:
    """Write the rates, and their ratios to the plain loop, as a table in Markdown."""
    loop = next(iter(rates.values()))
    lines = ["| | GB/s | of the plain loop |", "| --- | ---: | ---: |"]
    lines += [f"| {what} | {rate:.1f} | {rate / loop:.2f} |" for what, rate in rates.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run, print, and fail when a core reads less than a quarter of the plain loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--small-pages", action="store_true", help="no huge pages in the program")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    args = parser.parse_args()
    rates = read_rates(args.mib, args.rounds, "small" if args.small_pages else "huge")
    table = render_table(rates)
    print(table)
    if args.markdown:
        args.markdown.write_text(table)
    return 0 if rates["estimate, one thread"] >= 0.25 * rates["plain read loop, one core"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
