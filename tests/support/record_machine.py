"""Record what a kernel shows of KSM: `python -m tests.support.record_machine FOLDER`, as root.

Writes a tree that `KernelKsm` can be pointed at: FOLDER/sys/kernel/mm/ksm with all its files, and
FOLDER/proc with ksmd, a process that marks memory by madvise, one that has it marked by prctl
(where the kernel knows that), one that has nothing to do with KSM, and vmstat. Process numbers
are made the same everywhere, and smaps is cut to the mappings that tests look at.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from tests.support.conformance.client import Client
from tests.support.conformance.record import kernel_name
from tests.support.conformance.worlds import KernelWorld, kernel_world

__all__ = ["KSMD", "MADVISED", "PLAIN", "PRCTL", "record"]

KSMD, MADVISED, PRCTL, PLAIN = 40, 1001, 1002, 1003
PAGES = 64
_FILES = ("comm", "stat", "ksm_stat", "ksm_merging_pages")
_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")
_KEPT = ("[heap]", "[stack]", "[vdso]", "[vvar]")


def record(folder: Path) -> None:
    """Let processes of three kinds run for some passes, and copy what the kernel shows."""
    with kernel_world() as world:
        madvised, address = world.marked([7] * PAGES + [0] * 8 + list(range(100, 108)))
        plain = world.client()
        plain.map([7] * 8)
        everything = _start_prctl(world)
        world.step(4)
        shutil.rmtree(folder, ignore_errors=True)
        _copy_folder(Path("/sys/kernel/mm/ksm"), folder / "sys/kernel/mm/ksm")
        (folder / "proc").mkdir(parents=True)
        vmstat = Path("/proc/vmstat").read_text().splitlines(keepends=True)
        kept = [
            line for line in vmstat if line.startswith(("ksm_", "cow_", "thp_split", "pgfault"))
        ]
        (folder / "proc/vmstat").write_text("".join(kept))
        (folder / "kernel").write_text(f"{kernel_name()}\n")
        ksmd = world.ksm.facts()["pid"]
        assert isinstance(ksmd, int)
        _copy_process(ksmd, folder / "proc", KSMD, None)
        _copy_process(madvised.pid, folder / "proc", MADVISED, address)
        _copy_process(plain.pid, folder / "proc", PLAIN, None)
        if everything is not None:
            _copy_process(everything.pid, folder / "proc", PRCTL, None)


def _start_prctl(world: KernelWorld) -> Client | None:
    client = world.client()
    if client.errno_of("prctl", 67, 1, 0, 0, 0):
        client.kill()
        return None
    client.map([8] * PAGES)
    return client


def _copy_folder(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        (target / path.name).write_text(path.read_text())


def _copy_process(pid: int, proc: Path, as_pid: int, address: int | None) -> None:
    source, target = Path(f"/proc/{pid}"), proc / str(as_pid)
    target.mkdir()
    for name in _FILES:
        if (source / name).exists():
            text = (source / name).read_text()
            if name == "stat":
                text = re.sub(r"^\d+", str(as_pid), text)
            (target / name).write_text(text)
    (target / "smaps").write_text(_cut(_read_smaps(source), address))


def _read_smaps(source: Path) -> str:
    try:
        return (source / "smaps").read_text()
    except OSError:  # a kernel thread has no memory
        return ""


def _cut(smaps: str, address: int | None) -> str:
    """Keep the mappings with names that the kernel gives, and the one of an address."""
    kept, keeping = [], False
    for line in smaps.splitlines(keepends=True):
        head = _HEAD.match(line)
        if head:
            start, end = int(head[1], 16), int(head[2], 16)
            holds = address is not None and start <= address < end
            keeping = holds or line.rstrip().endswith(_KEPT)
        if keeping:
            kept.append(line)
    return "".join(kept)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
