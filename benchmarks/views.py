"""Measures how long the looking commands take on a large machine.

    python -m benchmarks.views [--processes N] [--mappings N] [--repeat N] [--json FILE]

`ps` over many processes with KSM on, `regions` of one with many mappings, `status`: each as a
command of its own, from its start to its end, its output in a pipe. The time and the CPU time of
the best run are given, and beside them what the kernel alone takes to give the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.kernel_ksm import hold_kernel_ksm_lock

PAGEMERGE = [sys.executable, "-m", "pagemerge"]


@contextlib.contextmanager
def crowd(program: Path, *arguments: str) -> Iterator[int]:
    """Run crowd.c until the end of the block; its pid."""
    with subprocess.Popen(
        [program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise SystemExit(f"crowd {' '.join(arguments)} has failed")
        yield process.pid
        process.kill()


def build_crowd(folder: Path) -> Path:
    """Compile it."""
    program = folder / "crowd"
    source = Path(__file__).with_name("crowd.c")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", program, source], check=True)
    return program


def best(action: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Do it again and again; seconds and CPU seconds of children of the quickest."""
    found = []
    for _ in range(repeat):
        used, begun = _cpu(), time.perf_counter()
        action()
        found.append((time.perf_counter() - begun, _cpu() - used))
    return min(found)


def command(*arguments: str) -> Callable[[], object]:
    """A pagemerge command that is run."""
    return lambda: subprocess.run(
        [*PAGEMERGE, *arguments, "--ksm", "kernel"], stdout=subprocess.DEVNULL, check=True
    )


def read_all(name: str, pids: list[int]) -> None:
    """Read a file of processes, and do nothing with it."""
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/{name}").read_bytes()


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.views", description=__doc__)
    parser.add_argument("--processes", type=int, default=1000)
    parser.add_argument("--mappings", type=int, default=30_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder, hold_kernel_ksm_lock():
        program = build_crowd(Path(folder))
        with crowd(program, "children", str(args.processes)):
            pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
            name = f"ps, {args.processes:,} processes"
            rows[name] = best(command("ps"), args.repeat)
            rows[f"{name}, JSON"] = best(command("ps", "--json"), args.repeat)
            rows["  the kernel's part: ksm_stat of all"] = best(
                lambda: read_all("ksm_stat", pids), args.repeat
            )
        with crowd(program, "mappings", str(args.mappings)) as pid:
            name = f"regions, {args.mappings:,} mappings"
            rows[name] = best(command("regions", str(pid)), args.repeat)
            rows[f"{name}, JSON"] = best(command("regions", str(pid), "--json"), args.repeat)
            rows["  the kernel's part: smaps"] = best(lambda: read_all("smaps", [pid]), args.repeat)
    rows["status"] = best(command("status"), args.repeat)
    rows["a command that does nothing (--version)"] = best(
        lambda: subprocess.run([*PAGEMERGE, "--version"], stdout=subprocess.DEVNULL, check=True),
        args.repeat,
    )
    load = os.getloadavg()[0]
    sys.stdout.write(f"{'':42} seconds  CPU seconds   (load {load:.1f})\n")
    for name, (seconds, cpu) in rows.items():
        sys.stdout.write(f"{name:42} {seconds:7.3f}  {cpu:11.3f}\n")
    if args.json:
        data = {name.strip(): {"seconds": s, "cpu_seconds": c} for name, (s, c) in rows.items()}
        args.json.write_text(json.dumps({"load": load, "rows": data}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
