"""How long a process is held by `enable` and `disable`: by how its threads wait, and by its size.

    python -m benchmarks.holds [--rounds N] [--markdown FILE] [TABLE ...]

Tables: waits (how the threads wait, and how many there are), all (one thread stopped, as it is
done, against all of them), unmerging (much merged memory, in slices and by one call), mappings
(very many). Times are from before a thread is told to stop until after it is let go: a busy one
that has no CPU first waits for one, as it would have anyhow. Root; `unmerging` locks the machine's
KSM meanwhile and leaves it as it was found.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.load import Loaded
from pagemerge.kernel import set_memory_merge
from pagemerge.kernel.injecting import call_numbers, inject_calls
from pagemerge.kernel.slicing import Unmerging
from pagemerge.memory import read_smaps_rollup
from tests.support.kernel_ksm import hold_kernel_ksm
from tests.support.processes import Child
from tests.support.waiting import wait_until

HERE = Path(__file__).parent
BUILT = HERE.parent / "build" / "benchmarks"
KINDS = {
    "epoll": "in epoll_wait",
    "nanosleep": "in nanosleep",
    "futex": "on a futex",
    "busy": "busy",
}
SIZES = (8, 32, 256)  # MiB
PR_SET_MEMORY_MERGE = 67


def build(name: str) -> Path:
    """Compile one of the programs."""
    BUILT.mkdir(parents=True, exist_ok=True)
    source, program = HERE / f"{name}.c", BUILT / name
    subprocess.run(["cc", "-O2", "-D_GNU_SOURCE", "-pthread", "-o", program, source], check=True)
    return program


@contextlib.contextmanager
def held(kind: str, threads: int, mib: int = 0, mappings: int = 0) -> Iterator[int]:
    """A process of that kind; its number."""
    with Child([str(build("held")), kind, str(threads), str(mib), str(mappings)]) as child:
        child.read_line(120)
        yield child.pid


def us(values: Loaded) -> list[str]:
    """Write the middle, the 99th hundredth and the longest."""
    return [f"{values.quantile(share) * 1e6:,.0f} µs" for share in (0.5, 0.99, 1)]


def row(*cells: str) -> str:
    """Write a line of a table, and show it at once."""
    line = f"| {' | '.join(cells)} |\n"
    print(line, end="", flush=True)
    return line


def head(*cells: str) -> str:
    """Write a table's first lines; the columns after the first are numbers."""
    return row(*cells) + row("---", *["---:"] * (len(cells) - 1))


def toggle(pid: int, rounds: int) -> tuple[Loaded, Loaded]:
    """Switch on and off; the longest stop of each."""
    on, off = Loaded(), Loaded()
    for _ in range(rounds):
        on.latencies.append(set_memory_merge(pid, on=True).stopped_seconds)
        off.latencies.append(set_memory_merge(pid, on=False).stopped_seconds)
    return on, off


def fewer(rounds: int, kind: str, threads: int) -> int:
    """So many busy threads get to a CPU but now and then."""
    return max(4, rounds // threads) if kind == "busy" else rounds


def measure_waits(rounds: int) -> str:
    """By how the threads wait, and how many there are."""
    text = head("threads", "on: p50", "p99", "longest", "off: p50", "p99", "longest")
    for kind, words in KINDS.items():
        for threads in (1, 64, 500):
            with held(kind, threads) as pid:
                on, off = toggle(pid, fewer(rounds, kind, threads))
            text += row(f"{threads}, {words}", *us(on), *us(off))
    return text


def measure_all(rounds: int) -> str:
    """One thread stopped, against all of them."""
    seize = build("seize")
    text = head("threads", "one: p50", "p99", "longest", "all: p50", "p99", "longest")
    for kind in ("futex", "busy"):
        for threads in (1, 10, 200):
            with held(kind, threads) as pid:
                turns = fewer(rounds, kind, threads)
                one, _ = toggle(pid, turns)
                argv = [str(seize), str(pid), str(turns)]
                done = subprocess.run(argv, capture_output=True, text=True, check=True)
            everyone = Loaded([int(line) / 1e9 for line in done.stdout.split()])
            text += row(f"{threads}, {KINDS[kind]}", *us(one), *us(everyone))
    return text


class Recorded(Unmerging):
    """Keeps the length of each stop."""

    def __init__(self, pid: int) -> None:
        """Begin with none."""
        super().__init__(pid)
        self.held = Loaded()

    def call(self, call: tuple[int, ...]) -> int:
        """Have it make a call."""
        result = super().call(call)
        self.held.latencies.append(self._last_seconds)
        return result


def measure_unmerging(_rounds: int) -> str:
    """Much merged memory: in slices, and by one call."""
    text = head("merged", "stops", "p50", "p99", "longest", "until it is done", "by one call")
    prctl_off = (call_numbers().prctl, PR_SET_MEMORY_MERGE, 0, 0, 0, 0)
    with hold_kernel_ksm(run=1, pages_to_scan=100_000, sleep_millisecs=0, smart_scan=0) as ksm:
        for mib in SIZES:
            with held("futex", 4, mib) as one, held("futex", 4, mib) as two:
                pids = (one, two)
                for pid in pids:
                    set_memory_merge(pid, on=True)
                wait_until(lambda: all(is_merged(pid, mib) for pid in pids), "merged", 100)  # noqa: B023
                ksm.write("pages_to_scan", 100)  # as usual, and so while it is unmerged
                ksm.write("sleep_millisecs", 20)
                slices = Recorded(one)
                begin = time.monotonic()
                if slices.run(0, 1 << 64) or slices.call(prctl_off):
                    raise AssertionError("not unmerged")
                seconds = time.monotonic() - begin
                if read_smaps_rollup(one)["KSM"]:
                    raise AssertionError("something is merged still")
                _, whole = inject_calls(two, [prctl_off])
            ksm.write("pages_to_scan", 100_000)
            ksm.write("sleep_millisecs", 0)
            text += row(
                f"{mib} MiB",
                str(slices.stops),
                *us(slices.held),
                f"{seconds:.2f} s",
                f"{whole * 1e3:,.1f} ms",
            )
    return text


def is_merged(pid: int, mib: int) -> bool:
    """Whether all of that memory is."""
    return read_smaps_rollup(pid)["KSM"] >= mib << 20


def measure_mappings(rounds: int) -> str:
    """Very many mappings, of a page each."""
    text = head("mappings", "on: p50", "p99", "longest", "off: p50", "p99", "longest")
    for count in (1_000, 10_000, 60_000):
        with held("futex", 1, 0, count) as pid:
            on, off = toggle(pid, max(3, min(rounds, 100_000 // count)))
        text += row(f"{count:,}", *us(on), *us(off))
    return text


TABLES: dict[str, Callable[[int], str]] = {
    "waits": measure_waits,
    "all": measure_all,
    "unmerging": measure_unmerging,
    "mappings": measure_mappings,
}


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(TABLES))
    parser.add_argument("--rounds", type=int, default=300, help="for each line of a table")
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    args = parser.parse_args()
    texts = []
    for name in args.tables or TABLES:
        texts.append(TABLES[name](args.rounds))
        print()
    if args.markdown:
        args.markdown.write_text("\n".join(texts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
