"""Holds `estimate` against the kernel's ksmd, on real programs.

    python -m benchmarks.prediction [--markdown FILE] [WORKLOAD ...]

Each workload is started with merging asked for (PR_SET_MEMORY_MERGE, inherited through exec) while
ksmd is stopped; it is estimated; then ksmd runs until it has settled, and its counters are read.
Root; the machine's KSM is locked meanwhile and left as it was found.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.guests import await_guest, build_guest, guest_argv
from pagemerge.insight import Estimate, EstimateOptions, estimate, find_targets
from pagemerge.memory import read_stat, read_tree
from pagemerge.units import render_bytes
from tests.support.kernel_ksm import KernelKsmControl, hold_kernel_ksm
from tests.support.waiting import wait_until

_PR_SET_MEMORY_MERGE = 67


def _ask_for_merging() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_MEMORY_MERGE, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_MEMORY_MERGE)")


class Programs:
    """Programs of a workload; ended when it is over."""

    def __init__(self, folder: Path) -> None:
        """Keep their files in a folder."""
        self.folder = folder
        self.running: list[subprocess.Popen[str]] = []

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Start one, with merging asked for."""
        program = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self.folder,
            preexec_fn=_ask_for_merging,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        self.running.append(program)
        return program

    def await_line(self, program: subprocess.Popen[str]) -> None:
        """Wait until it says that it is ready."""
        assert program.stdout is not None
        if program.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{program.args!r} did not come up")

    def stop(self) -> None:
        """End all of them."""
        for program in self.running:
            program.kill()
            program.communicate()


def redis(programs: Programs) -> None:
    """Four redis servers that loaded the same file (replicas, as it were)."""
    sockets = [programs.folder / f"redis{i}.sock" for i in range(4)]
    common = ["redis-server", "--port", "0", "--save", "", "--dir", str(programs.folder)]
    first = [*common, "--dbfilename", "data.rdb"]
    programs.start(*first, "--unixsocket", str(sockets[0]))
    rows = (f"SET key:{i} {f'value-{i:09}-' * 20}" for i in range(150_000))
    _redis(sockets[0], *rows, "SAVE")
    for path in sockets[1:]:
        programs.start(*first, "--unixsocket", str(path))
        _redis(path, "DBSIZE")


def _redis(path: Path, *commands: str) -> None:
    wait_until(path.exists, f"{path}")
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(60)
        wait_until(lambda: link.connect_ex(str(path)) == 0, "redis")
        with link.makefile("rb") as answers:
            for at in range(0, len(commands), 1000):
                part = commands[at : at + 1000]
                link.sendall("".join(f"{command}\r\n" for command in part).encode())
                for command in part:
                    while (line := answers.readline()).startswith(b"-LOADING"):
                        link.sendall(f"{command}\r\n".encode())
                    if line.startswith(b"-"):
                        raise RuntimeError(line.decode())


_PYTHON = """
import json, random, sys, sqlite3, asyncio, email, decimal, logging, xml.dom.minidom, numpy
model = numpy.random.default_rng(7).standard_normal(4_000_000)
words = json.loads(json.dumps({f"word{i}": [i, str(i)] for i in range(60_000)}))
own = random.Random(int(sys.argv[1])).randbytes(4 << 20)
print("ready", flush=True)
sys.stdin.read()
"""


def python_workers(programs: Programs) -> None:
    """Four Python workers with the same libraries, model and table, and 4 MiB of their own."""
    for program in [programs.start(sys.executable, "-c", _PYTHON, str(i)) for i in range(4)]:
        programs.await_line(program)


_FORKING = """
import os, random, signal, sys, numpy
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
model = numpy.random.default_rng(7).standard_normal(4_000_000)
table = {f"word{i}": [i, str(i)] for i in range(60_000)}
up_r, up_w = os.pipe()
for worker in range(4):
    if os.fork() == 0:
        for value in table.values():
            value.append(1)  # the same change in each: pages copied, and equal again
        own = random.Random(worker).randbytes(2 << 20)
        os.write(up_w, b".")
        sys.stdin.read()
        os._exit(0)
left = 4
while left:
    left -= len(os.read(up_r, left))
print("ready", flush=True)
sys.stdin.read()
"""


def python_prefork(programs: Programs) -> None:
    """A Python server that forked four workers, which each touched half of what they share."""
    programs.await_line(programs.start(sys.executable, "-c", _FORKING))


_NODE = """
const rows = [];
for (let i = 0; i < 200000; i++)
  rows.push({id: i, name: `name-${i}`, tags: [`t${i % 7}`, `u${i % 11}`]});
const table = Buffer.alloc(16 << 20, JSON.stringify(rows.slice(0, 20000)));
console.log("ready");
process.stdin.resume();
"""


def node(programs: Programs) -> None:
    """Three node processes with the same code and data."""
    for program in [programs.start("node", "-e", _NODE) for _ in range(3)]:
        programs.await_line(program)


_JAVA = """
public class Hold {
    public static void main(String[] a) throws Exception {
        byte[][] rows = new byte[6000][];
        java.util.Random random = new java.util.Random(3);
        for (int i = 0; i < rows.length; i++) {
            rows[i] = new byte[4096];
            random.nextBytes(rows[i]);
        }
        System.gc();
        System.out.println("ready");
        System.in.read();
        System.out.println(rows.length);
    }
}
"""


def java(programs: Programs) -> None:
    """Two JVMs with the same objects, made in the same order."""
    (programs.folder / "Hold.java").write_text(_JAVA)
    argv = ("java", "-Xms96m", "-Xmx96m", "-XX:+UseSerialGC", "Hold.java")
    for program in [programs.start(*argv) for _ in range(2)]:
        programs.await_line(program)


def qemu(programs: Programs) -> None:
    """Three QEMU guests of one image, with 6 MiB of their own."""
    image = build_guest()
    argvs = [guest_argv(image, programs.folder / f"monitor{i}") for i in range(3)]
    for guest in [programs.start(*argv) for argv in argvs]:
        await_guest(guest)


WORKLOADS: dict[str, tuple[str, Callable[[Programs], None]]] = {
    "redis": ("redis-server", redis),
    "python": (sys.executable, python_workers),
    "prefork": (sys.executable, python_prefork),
    "node": ("node", node),
    "java": ("java", java),
    "qemu": ("qemu-system-x86_64", qemu),
}


@dataclass(frozen=True)
class Row:
    """One comparison."""

    workload: str
    use_zero_pages: int
    present_pages: int
    predicted: dict[str, int]
    reached: dict[str, int]
    volatile_share: float
    read_seconds: float
    ksmd_cpu_seconds: float
    predicted_cpu_seconds: float

    @property
    def sharing_error(self) -> float:
        """How far pages_sharing was off, of what was reached."""
        reached = self.reached["pages_sharing"]
        return (self.predicted["pages_sharing"] - reached) / reached if reached else 0.0


_COMPARED = ("pages_shared", "pages_sharing", "ksm_zero_pages", "pages_unshared", "pages_volatile")


def compare(name: str, use_zero_pages: int, settle_seconds: float) -> Row:
    """Run one workload, estimate it, let ksmd settle, and read what it reached."""
    with (
        tempfile.TemporaryDirectory() as folder,
        hold_kernel_ksm(
            pages_to_scan=20000,
            sleep_millisecs=1,
            smart_scan=0,
            max_page_sharing=256,
            use_zero_pages=use_zero_pages,
        ) as ksm,
    ):
        programs = Programs(Path(folder))
        try:
            WORKLOADS[name][1](programs)
            result = _estimate(programs, use_zero_pages, settle_seconds)
            before = _ksmd_cpu_seconds()
            ksm.write("run", 1)
            ksm.wait_passes(2, 120)
            cpu = _ksmd_cpu_seconds() - before
            reached = _settle(ksm)
            _check_alone(programs)
        finally:
            programs.stop()
    predicted = {key: getattr(result, key) for key in _COMPARED}
    return Row(
        name,
        use_zero_pages,
        result.present_pages,
        predicted,
        reached,
        result.volatile_share or 0.0,
        result.read_seconds,
        cpu,
        result.ksmd.cpu_seconds,
    )


def _check_alone(programs: Programs) -> None:
    """Say it when programs of others are merged, too: the counters are the machine's."""
    own = set(read_tree([program.pid for program in programs.running]))
    for path in Path("/proc").glob("[0-9]*/ksm_stat"):
        with contextlib.suppress(OSError):
            words = path.read_text().split()  # nothing, where the program has ended
            items = int(words[words.index("ksm_rmap_items") + 1]) if words else 0
            if items and int(path.parent.name) not in own:
                sys.stderr.write(f"{path}: {items} rmap_items of another program\n")


def _estimate(programs: Programs, use_zero_pages: int, settle_seconds: float) -> Estimate:
    pids = read_tree([program.pid for program in programs.running])
    options = EstimateOptions(
        mergeable=True,
        settle_seconds=settle_seconds,
        max_page_sharing=256,
        use_zero_pages=use_zero_pages,
        pages_to_scan=20000,
        sleep_millisecs=1,
    )
    return estimate(find_targets(pids=pids), options)


def _settle(ksm: KernelKsmControl) -> dict[str, int]:
    """Wait until four passes in a row bring nothing more."""
    last = -1
    for _ in range(30):
        ksm.wait_passes(4, 120)
        now = ksm.read("pages_sharing") + ksm.read("ksm_zero_pages")
        if abs(now - last) <= max(8, now // 2000):
            break
        last = now
    return {key: ksm.read(key) for key in _COMPARED}


def _ksmd_cpu_seconds() -> float:
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text() == "ksmd\n":
                return read_stat(int(path.parent.name)).cpu_seconds
    return 0.0


def rows_of(names: list[str], settle_seconds: float) -> Iterator[Row]:
    """Compare each workload, with and without use_zero_pages; say what is not installed."""
    for name in names:
        if shutil.which(WORKLOADS[name][0]) is None:
            sys.stderr.write(f"{name}: left out, there is no {WORKLOADS[name][0]} here\n")
            continue
        for use_zero_pages in (0, 1):
            row = compare(name, use_zero_pages, settle_seconds)
            print(json.dumps(row.__dict__), flush=True)
            yield row


def render_table(rows: list[Row]) -> str:
    """Write the comparison as a table in Markdown."""
    lines = [
        "| workload | eligible | use_zero_pages | pages_sharing: predicted | reached | off | "
        "pages_shared: predicted | reached | ksm_zero_pages: predicted | reached | volatile | "
        "read in |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        p, r = row.predicted, row.reached
        lines.append(
            f"| {row.workload} | {render_bytes(row.present_pages * 4096)} | {row.use_zero_pages} | "
            f"{p['pages_sharing']:,} | {r['pages_sharing']:,} | {row.sharing_error:+.2%} | "
            f"{p['pages_shared']:,} | {r['pages_shared']:,} | {p['ksm_zero_pages']:,} | "
            f"{r['ksm_zero_pages']:,} | {row.volatile_share:.2%} | "
            f"{row.read_seconds * 1000:.0f} ms |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workloads", nargs="*", choices=[*WORKLOADS, []], default=[])
    parser.add_argument("--settle", type=float, default=3.0, help="seconds between the two looks")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    args = parser.parse_args()
    begin = time.monotonic()
    rows = list(rows_of(args.workloads or list(WORKLOADS), args.settle))
    table = render_table(rows)
    print(table)
    print(f"took {time.monotonic() - begin:.0f} s")
    if args.markdown:
        args.markdown.write_text(table)
    worst = max((abs(row.sharing_error) for row in rows), default=0.0)
    return 0 if worst <= 0.02 else 1


if __name__ == "__main__":
    raise SystemExit(main())
