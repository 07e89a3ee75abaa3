"""Builds workload.c, and holds its processes."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import Child, read_smaps_rollup

__all__ = ["PAGE", "Shape", "Workload", "build_workload", "process_cpu_seconds"]

PAGE = 4096


@dataclass(frozen=True)
class Shape:
    """What a process holds: so many pages, a share of them its own, in an order of its own."""

    pages: int
    unique_percent: int = 10
    grain: int = 0  # 0: in order; N: shuffled in pieces of N pages
    seed: int = 1


def build_workload(folder: Path) -> Path:
    """Compile workload.c into a folder.

    Raises:
        subprocess.CalledProcessError: The compiler failed; it has said why.
    """
    source = Path(__file__).with_name("workload.c")
    program = folder / "workload"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        folder.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC", "cc")
        flags = ["-std=gnu11", "-O3", "-march=native", "-Wall", "-Wextra", "-pthread"]
        subprocess.run([compiler, *flags, "-o", str(program), str(source)], check=True)
    return program


def process_cpu_seconds(pid: int) -> float:
    """CPU time that a process, ended threads and all, has used; kernel threads too.

    Its CPU clock has nanoseconds, where /proc/PID/stat counts ticks; the number of the clock is
    made as the C library's clock_getcpuclockid() does.
    """
    cpuclock_sched = 2
    return time.clock_gettime_ns((~pid << 3) | cpuclock_sched) / 1e9


class Workload:
    """One running workload process."""

    def __init__(self, program: Path, shape: Shape, env: Mapping[str, str]) -> None:
        """Start it and wait until its memory is filled."""
        numbers = (shape.pages, shape.unique_percent, shape.seed, shape.grain)
        self._child = Child([str(program), *map(str, numbers)], env=env)
        try:
            ready = json.loads(self._child.read_line(120))
        except BaseException:
            self._child.kill()
            raise
        self.pid: int = ready["pid"]
        self.address: int = ready["address"]
        self.equal_pages: int = ready["equal"]
        self.pages = shape.pages

    def mark(self) -> None:
        """Have it call madvise(MADV_MERGEABLE)."""
        self._do("mark")

    def read_speed(self) -> float:
        """GB/s at which it reads its own memory."""
        return float(self._child.ask("read", 60))

    def start_writers(self, threads: int, rate: int) -> None:
        """Start threads that each write `rate` times a second to random pages."""
        self._do(f"write {threads} {rate}")

    def lap(self) -> dict[str, Any]:
        """Quantiles, in nanoseconds, of the writes since the last lap."""
        lap: dict[str, Any] = json.loads(self._child.ask("lap"))
        return lap

    def rest(self) -> None:
        """End its writers."""
        self._do("rest")

    def count_bad_pages(self) -> int:
        """How many pages are not what they should be, down to the byte."""
        return int(self._child.ask("verify", 120))

    def pss_bytes(self) -> int:
        """Its proportional share of memory, by the kernel's count."""
        return read_smaps_rollup(self.pid)["Pss"]

    def cpu_seconds(self) -> float:
        """CPU time that it has used."""
        return process_cpu_seconds(self.pid)

    def close(self) -> None:
        """End it."""
        try:
            self._child.finish(30)
        finally:
            self._child.kill()

    def _do(self, command: str) -> None:
        answer = self._child.ask(command, 60)
        if answer != "ok":
            raise RuntimeError(f"workload {self.pid}: {command}: {answer}")
