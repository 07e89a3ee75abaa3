"""Four workers that each load the same 90 MB model, merged while they work; `make demo`.

What is claimed is measured by the kernel (Pss, MemAvailable) and by hashes of the workers' memory,
not by the engine's word. Ends with status 1 when anything is not as claimed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pagemerge
from demo.measure import Machine, Memory, read_machine, read_memory
from demo.minilm import MiniLM, find_model
from demo.show import Show

MIB = 2**20
PAGE = 4096
SENTENCE = "Samepage merging keeps one copy of equal pages."
LIMIT_SECONDS = 180.0
# Slow enough that it can be watched; the default, the kernel's, is 100 pages each 20 ms.
KNOBS = {"pages_to_scan": 2000, "sleep_millisecs": 20, "run": 1}


class Worker:
    """A worker process, spoken to in lines of JSON."""

    def __init__(self, number: int) -> None:
        """Start it and wait until it has loaded its model."""
        self.name = f"worker {number}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "demo.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        self.model_bytes: int = self._read()["model_bytes"]
        self.answered = 0

    def ask(self, do: str, **arguments: Any) -> Any:
        """Make a request and wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        return self._read()

    def embed(self) -> Any:
        """Have it do what it is there for."""
        self.answered += 1
        return self.ask("embed", text=SENTENCE)

    def memory(self) -> Memory:
        """Its memory now, as the kernel counts it."""
        return read_memory(self.process.pid)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)


@contextlib.contextmanager
def run_daemon() -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon of the demo's own, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="pagemerge-demo-") as folder:
        os.environ["PAGEMERGE_RUNTIME_DIR"] = folder
        log = Path(folder, "log").open("w+b")  # noqa: SIM115  # read when it fails
        daemon = subprocess.Popen(
            [sys.executable, "-m", "pagemerge", "daemon"], stdin=subprocess.DEVNULL, stderr=log
        )
        try:
            deadline = time.monotonic() + 20
            while not Path(folder, "control.sock").exists():
                if daemon.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError("the daemon did not start:\n" + log.read().decode())
                time.sleep(0.02)
            yield daemon
        finally:
            daemon.terminate()
            daemon.wait(30)
            log.close()


def merge(show: Show, ksm: pagemerge.Ksm, workers: list[Worker], expected: Any) -> bool:
    """Merge while the workers go on working; whether all their answers were right."""
    ksm.knobs.set(**KNOBS)
    for worker in workers:
        worker.ask("merge")
    right = True
    most, most_at, grew = 0, ksm.counters()["full_scans"] or 0, time.monotonic()
    deadline = grew + LIMIT_SECONDS
    goal = (len(workers) - 1) * workers[0].model_bytes // PAGE
    with show.progress(goal) as progress:
        while time.monotonic() < deadline:
            for worker in workers:
                right &= worker.embed() == expected
            counters = ksm.counters()
            sharing, scans = counters["pages_sharing"] or 0, counters["full_scans"] or 0
            if sharing > most + goal // 1000:
                most, most_at, grew = sharing, scans, time.monotonic()
            progress.update(sharing, sum(worker.answered for worker in workers))
            # Three passes in which nothing came: that was all; sooner only if it is about all.
            patience = 0.5 if sharing >= 0.98 * goal else 10.0
            if scans >= most_at + 3 and time.monotonic() > grew + patience:
                break
    return right


def wait_for_available(
    before: Machine, wanted: int, ours: list[int], seconds: float = 15.0
) -> Machine:
    """Read until MemAvailable has risen so far, others apart, or time is up; the last reading."""
    deadline = time.monotonic() + seconds
    while True:
        now = read_machine(ours)
        if risen_by(before, now) >= wanted or time.monotonic() > deadline:
            return now


def risen_by(before: Machine, after: Machine) -> int:
    """By how much MemAvailable rose, had the other processes kept still."""
    return after.available - before.available + (after.others - before.others)


def main() -> int:
    """Run it all; 0 when everything was as claimed."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--workers", type=int, default=4, help="how many, at least 2 (default 4)")
    count = max(2, parser.parse_args().workers)
    show = Show()

    file_digest = MiniLM(find_model()).digest()
    with run_daemon() as daemon, contextlib.ExitStack() as stack:
        ksm = stack.enter_context(pagemerge.connect("engine"))
        workers: list[Worker] = []
        show.say(f"Starting {count} workers; each loads the model all-MiniLM-L6-v2 for itself.")
        for number in range(1, count + 1):
            workers.append(Worker(number))
            stack.callback(workers[-1].close)
        model = workers[0].model_bytes
        expected = workers[0].embed()
        for worker in workers:
            worker.embed()  # so that what a first request allocates is there before we measure
        before = [worker.memory() for worker in workers]
        ours = [daemon.pid, *(worker.process.pid for worker in workers)]
        machine_before = read_machine(ours)

        show.say(f"Merging what is equal in them ({model / MIB:.0f} MiB each), while they work.")
        right = merge(show, ksm, workers, expected)
        ksm.knobs.set(run=0)  # what is merged stays so, and nothing moves while it is measured
        # This also reads every page: one that nobody has read since it was merged is in the pool,
        # but counted in nobody's Pss.
        digests = [worker.ask("digest") for worker in workers]
        after = [worker.memory() for worker in workers]
        overhead = read_memory(daemon.pid)
        show.saving([w.name for w in workers], before, after, overhead)
        saved = sum(m.pss for m in before) - sum(m.pss for m in after) - overhead.pss
        machine_after = wait_for_available(machine_before, saved // 2, ours)
        show.machine(machine_before, machine_after)
        show.cost(ksm.facts(), sum(worker.answered for worker in workers))
        ideal = (count - 1) * model
        show.check(right, "every answer while merging was right")
        show.check(
            set(digests) == {file_digest}, "after merging, each worker's model is the file's"
        )
        show.check(
            saved >= 0.6 * ideal,
            f"at least 60 % of {ideal / MIB:.0f} MiB was saved, the daemon's memory paid",
        )
        show.check(
            risen_by(machine_before, machine_after) >= saved // 2,
            "MemAvailable of the whole machine rose by at least half of it",
        )

        show.say(f"{workers[0].name} is trained: it writes to two layers of its model.")
        pages = workers[0].ask("train", layers=[4, 5])["pages"]
        written = [worker.memory() for worker in workers]
        show.writing([w.name for w in workers], after, written, pages * PAGE)
        grown = [now.own - then.own for now, then in zip(written, after, strict=True)]
        digests = [worker.ask("digest") for worker in workers]
        show.check(digests[0] != file_digest, f"{workers[0].name} has its own model now")
        show.check(set(digests[1:]) == {file_digest}, "the others' models are untouched")
        show.check(
            all(worker.embed() == expected for worker in workers[1:]), "and so are their answers"
        )
        slack = 4 * MIB  # what the interpreters allocate meanwhile
        show.check(
            abs(grown[0] - pages * PAGE) < slack,
            f"{workers[0].name}'s own memory grew by the {pages * PAGE / MIB:.1f} MiB it wrote",
        )
        show.check(all(growth < slack for growth in grown[1:]), "that of the others did not")
    return show.verdict()


if __name__ == "__main__":
    sys.exit(main())
