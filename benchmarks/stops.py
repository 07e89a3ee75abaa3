"""How long a process stands still when merging is switched on or off in it.

    python -m benchmarks.stops [--rounds N] [--markdown FILE]

Two clocks: ours, from before a thread is stopped until after it is let go, and the process's own:
the longest time for which a thread that does nothing but look at the clock did not get to it. That
is measured without a call as often, since other programs take the CPU, too. Root.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import Loaded
from pagemerge.kernel import set_memory_merge
from tests.support.kernel_ksm import hold_kernel_ksm_lock
from tests.support.processes import Child

HERE = Path(__file__).parent
CASES = {  # busy threads, sleeping threads
    "one thread, asleep": (0, 0),
    "one more thread, busy": (1, 0),
    "64 more threads, asleep": (0, 64),
    "one busy, 63 asleep": (1, 63),
}


@dataclass
class Row:
    """Seconds, in each round."""

    what: str
    on: Loaded = field(default_factory=Loaded)
    off: Loaded = field(default_factory=Loaded)
    gaps: Loaded = field(default_factory=Loaded)
    gaps_without: Loaded = field(default_factory=Loaded)


def measure(what: str, program: Path, rounds: int) -> Row:
    """Switch merging on and off in one process."""
    busy, sleeping = CASES[what]
    row = Row(what)
    with Child([str(program), str(busy), str(sleeping)]) as child:
        child.read_line()
        for turn in range(rounds):
            child.ask("")
            on = turn % 2 == 0
            stopped = set_memory_merge(child.pid, on=on).stopped_seconds
            (row.on if on else row.off).latencies.append(stopped)
            gap = int(child.ask("")) / 1e9
            time.sleep(stopped)
            gap_without = int(child.ask("")) / 1e9
            if busy:
                row.gaps.latencies.append(gap)
                row.gaps_without.latencies.append(gap_without)
    return row


def render_table(rows: list[Row]) -> str:
    """Write the rows as a table in Markdown."""

    def us(values: Loaded, share: float) -> str:
        return f"{values.quantile(share) * 1e6:,.0f} µs" if values.latencies else "-"

    lines = [
        "| process | on, stopped at most: p50 | p99 | longest | off: p50 | p99 | longest | "
        "its busy thread's gap: p50 | p99 | without a call: p50 | p99 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [
            *(us(row.on, share) for share in (0.5, 0.99, 1)),
            *(us(row.off, share) for share in (0.5, 0.99, 1)),
            us(row.gaps, 0.5),
            us(row.gaps, 0.99),
            us(row.gaps_without, 0.5),
            us(row.gaps_without, 0.99),
        ]
        lines.append(f"| {row.what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000, help="for each case")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    args = parser.parse_args()
    program = HERE.parent / "build" / "benchmarks" / "gaps"
    program.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["cc", "-O2", "-D_GNU_SOURCE", "-pthread", "-o", program, HERE / "gaps.c"], check=True
    )
    print(f"load average before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    with hold_kernel_ksm_lock():
        table = render_table([measure(what, program, args.rounds) for what in CASES])
    print(table)
    if args.markdown:
        args.markdown.write_text(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
