"""What `pagemerge trace` costs ksmd and what it keeps, beside reading trace_pipe as text.

    .venv/bin/python -m benchmarks.tracing [--pages N] [--rounds N]

ksmd merges N equal pages at full speed, in turns without a trace, with `pagemerge trace` (raw ring
buffers), and with a reader of the kernel's text that has the same buffers and makes the same events
of it. ksmd's cost is its CPU time (/proc/PID/schedstat), which other processes' load leaves alone.
Turns the kernel's knobs (root), and restores them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pagemerge.kernel import KernelKsm
from pagemerge.kernel.tracefs import Instances, find_tracefs
from pagemerge.ksm import Event
from tests.support.kernel_ksm import KernelKsmControl, hold_kernel_ksm
from tests.support.victims import holder
from tests.support.waiting import wait_until

SETTLED_PASSES = 5  # with nothing left to merge
MERGE = "ksm_merge_with_ksm_page"
LINE = re.compile(r"-(\d+)\s+\[\d+\] \S+\s+(\d+\.\d+): (\w+): (.*)$")
NUMBERS = re.compile(r"(\w+) (-?[0-9a-f]+)")


def read_text(buffer_bytes: int) -> None:
    """The other way: decode trace_pipe until SIGTERM, then print what came and what was lost."""
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    with Instances(find_tracefs()) as instances:
        instance = instances[0]
        instance.write("trace_clock", "mono")
        instance.write("buffer_size_kb", str(buffer_bytes // 1024))
        file = os.open(instance.path / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        instance.enable("ksm")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        merges, rest = 0, ""
        while True:
            try:
                text = rest + os.read(file, 1 << 16).decode()
            except BlockingIOError:
                if ended:
                    break
                select.select([file], [], [], 0.05)
                continue
            lines = text.split("\n")
            rest = lines.pop()
            for line in lines:
                match = LINE.search(line)
                if match is None:
                    continue  # "CPU:0 [LOST 123 EVENTS]": counted below
                fields = {name: int(value, 16) for name, value in NUMBERS.findall(match[4])}
                event = Event(match[3], float(match[2]), fields)
                merges += event.name == MERGE
        lost = instance.read_lost()
        os.close(file)
    sys.stdout.write(json.dumps({"merges": merges, "lost": lost}) + "\n")


@contextlib.contextmanager
def reader(kind: str, buffer_bytes: int, found: dict[str, Any]) -> Iterator[None]:
    """Run a reader in a process of its own; `found` has its merges, losses, seconds afterwards."""
    if kind == "none":
        yield
        return
    if kind == "text":
        command = [sys.executable, "-m", "benchmarks.tracing", "--read-text", str(buffer_bytes)]
    else:
        command = [sys.executable, "-m", "pagemerge", "trace", "--ksm", "kernel", "--json"]
        command += ["--summary", "--buffer", str(buffer_bytes)]
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out)
        try:
            folder = find_tracefs() / "instances"
            wait_until(
                lambda: any(
                    (path / "events/ksm" / MERGE / "enable").read_text().startswith("1")
                    for path in folder.glob(f"pagemerge-{process.pid}-*")
                ),
                "the reader",
            )
            yield
            began = time.monotonic()
            process.terminate()
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
            found["reader_seconds"] = usage.ru_utime + usage.ru_stime
            found["after_seconds"] = time.monotonic() - began
            out.seek(0)
            answer = json.loads(out.read().removeprefix("ready\n"))
            found["lost"] = answer["lost"]
            counts = answer.get("counts", {})
            found["merges"] = answer["merges"] if kind == "text" else counts.get(MERGE, 0)
        finally:
            if process.returncode is None:
                process.kill()
                process.wait()


def ksmd_seconds(ksmd: int) -> float:
    """ksmd's CPU time; schedstat has nanoseconds."""
    return int(Path(f"/proc/{ksmd}/schedstat").read_text().split()[0]) / 1e9


def measure(
    kind: str, control: KernelKsmControl, ksmd: int, pages: int, buffer_bytes: int
) -> dict[str, Any]:
    """Merge everything once under a reader."""
    found: dict[str, Any] = {"kind": kind}
    control.write("run", 2)
    with reader(kind, buffer_bytes, found):
        cpu, began = ksmd_seconds(ksmd), time.monotonic()
        control.write("run", 1)
        wait_until(
            lambda: control.read("pages_sharing") + control.read("pages_shared") >= pages,
            "the merges",
        )
        found["seconds"] = time.monotonic() - began
        found["ksmd_seconds"] = ksmd_seconds(ksmd) - cpu
        cpu, scans = ksmd_seconds(ksmd), control.read("full_scans")
        control.wait_passes(SETTLED_PASSES)
        passes = control.read("full_scans") - scans
        found["pass_seconds"] = (ksmd_seconds(ksmd) - cpu) / passes
        control.write("run", 0)
    return found


def main() -> None:
    """Measure in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--buffer", type=int, default=16 << 20, help="bytes for each CPU")
    parser.add_argument("--read-text", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read_text:
        read_text(args.read_text)
        return
    rows: list[dict[str, Any]] = []
    knobs = {"pages_to_scan": 1_000_000, "sleep_millisecs": 0, "smart_scan": 0}
    with hold_kernel_ksm(**knobs) as control, holder({}) as child:
        ksmd = KernelKsm().facts()["pid"]
        assert isinstance(ksmd, int)
        child.ask(f"same x {args.pages}")
        assert child.ask("mark") == "0"
        for _ in range(args.rounds):
            for kind in ("none", "raw", "text"):
                rows.append(measure(kind, control, ksmd, args.pages, args.buffer))
                print(rows[-1])
    for kind in ("none", "raw", "text"):
        mine = [row for row in rows if row["kind"] == kind]
        cpu = statistics.median(row["ksmd_seconds"] for row in mine)
        wall = statistics.median(row["seconds"] for row in mine)
        settled = statistics.median(row["pass_seconds"] for row in mine)
        line = f"{kind:5} ksmd {cpu:.3f} s CPU, merged in {wall:.3f} s, {args.pages / wall:,.0f}/s"
        line += f"; a settled pass {settled * 1000:.1f} ms CPU"
        if kind != "none":
            kept = statistics.median(row["merges"] for row in mine)
            lost = statistics.median(row["lost"] for row in mine)
            after = statistics.median(row["after_seconds"] for row in mine)
            took = statistics.median(row["reader_seconds"] for row in mine)
            line += f"; kept {kept:,.0f}, lost {lost:,.0f}"
            line += f"; the reader took {took:.2f} s CPU and ended {after:.2f} s later"
        print(line)


if __name__ == "__main__":
    main()
