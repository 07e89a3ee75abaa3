"""Measure the engine beside the kernel's ksmd, on the same memory, in one run.

Run as `make bench`, or from the project's folder as `python -m benchmarks.run`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks.cases import (
    LATENCY_ROUNDS,
    LatencyResult,
    MergeResult,
    ScanResult,
    measure_latency,
    measure_merge,
    measure_scan,
    raise_max_map_count,
)
from benchmarks.implementations import Implementation, run_engine, run_kernel
from benchmarks.report import Results, build_rows, describe_machine, print_report, to_json
from benchmarks.workload import PAGE, build_workload
from tests.support.kernel_ksm import why_no_kernel_ksm

HERE = Path(__file__).parent
Measure = Callable[[Implementation, Path, int], MergeResult | ScanResult | LatencyResult]

CASES: dict[str, Measure] = {
    "same": lambda implementation, program, pages: measure_merge(implementation, program, pages, 0),
    "shuffled-16": lambda implementation, program, pages: measure_merge(
        implementation, program, pages, 16
    ),
    "shuffled-1": lambda implementation, program, pages: measure_merge(
        implementation, program, pages, 1
    ),
    "scan": measure_scan,
    "latency": measure_latency,
}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="256 MiB a process instead of 1 GiB")
    parser.add_argument("--mib", type=int, help="size of a process in MiB")
    parser.add_argument("--case", action="append", choices=CASES, help="only this one; repeatable")
    parser.add_argument("--only", choices=("engine", "ksmd"), help="leave the other of the two out")
    parser.add_argument(
        "--rounds", type=int, default=LATENCY_ROUNDS, help="of the latency case, in turns"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error("--rounds: at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure, print, keep; 1 when a goal was missed or memory was wrong."""
    args = parse_arguments(argv)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # in a log, too, a row is a line
    pages = (args.mib or (256 if args.quick else 1024)) * 2**20 // PAGE
    program = build_workload(HERE.parent / "build" / "benchmarks")
    machine = describe_machine()

    implementations = [run_kernel, run_engine]
    why = why_no_kernel_ksm()
    if args.only == "engine":
        implementations = [run_engine]
    elif args.only == "ksmd":
        implementations = [run_kernel]
    elif why:
        console.print(f"Only the engine is measured: this process lacks {why}.")
        implementations = [run_engine]

    results: Results = {}
    for case in args.case or CASES:
        results[case] = {}
        with contextlib.ExitStack() as stack:
            if case.startswith("shuffled"):
                wanted = 4 * pages + 65536
                if stack.enter_context(raise_max_map_count(wanted)) < wanted:
                    console.print(
                        "vm.max_map_count can't be raised by this user: the engine merges what "
                        "it has mappings for, and counts what is left."
                    )
            for _ in range(args.rounds if case == "latency" else 1):
                for run in implementations:
                    with run() as implementation:
                        console.print(f"{case}: {implementation.name} ...", highlight=False)
                        result = CASES[case](implementation, program, pages)
                        former = results[case].get(implementation.name)
                        if isinstance(former, LatencyResult) and isinstance(result, LatencyResult):
                            former.rounds += result.rounds
                        else:
                            results[case][implementation.name] = result
    rows = build_rows(results)
    print_report(console, rows, results)

    path = args.json or HERE / "results" / f"{time.strftime('%Y%m%dT%H%M%S')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": machine,
        "pages_per_process": pages,
        "goals": [{**vars(row), "ratio": row.ratio} for row in rows],
        "cases": to_json(results),
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    console.print(f"all numbers: {path}", highlight=False)
    wrong = any(result.bad_pages for case in results.values() for result in case.values())
    return 1 if wrong or any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
