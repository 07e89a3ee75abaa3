"""The kernel's KSM for a test or a benchmark: one user at a time, every knob restored.

The knobs are the whole machine's. Whoever turns them holds a lock file, and leaves everything as it
was found: also when it fails, and on SIGTERM and SIGHUP. What one that was killed has left behind,
the next holder of the lock puts back: it stands in the lock file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_until

__all__ = [
    "KernelKsmControl",
    "hold_kernel_ksm",
    "hold_kernel_ksm_lock",
    "why_no_kernel_ksm",
]

KSM = Path("/sys/kernel/mm/ksm")

# In an order in which they can be written: pages_to_scan is refused while the advisor is on.
_KNOBS = (
    "advisor_max_cpu",
    "advisor_min_pages_to_scan",
    "advisor_max_pages_to_scan",
    "advisor_target_scan_time",
    "pages_to_scan",
    "sleep_millisecs",
    "merge_across_nodes",
    "max_page_sharing",
    "use_zero_pages",
    "smart_scan",
    "stable_node_chains_prune_millisecs",
    "advisor_mode",
)


def why_no_kernel_ksm() -> str | None:
    """What keeps this process from turning the kernel's knobs; None when nothing does."""
    if not (KSM / "run").exists():
        return "the kernel's KSM (CONFIG_KSM)"
    if not os.access(KSM / "run", os.W_OK):
        return "permission to turn the kernel's KSM knobs (root)"
    return None


def lock_path() -> Path:
    """The lock file that all of this machine's users of KSM take."""
    return Path("/run/lock" if os.geteuid() == 0 else "/tmp") / "pagemerge-ksm.lock"


class KernelKsmControl:
    """Reads and writes /sys/kernel/mm/ksm; got from `hold_kernel_ksm`."""

    def read(self, name: str) -> int:
        """A counter or a numeric knob."""
        return int((KSM / name).read_text())

    def read_text(self, name: str) -> str:
        """A file's text; of a choice, what is chosen."""
        text = (KSM / name).read_text().strip()
        return text.split("[", 1)[1].split("]", 1)[0] if "[" in text else text

    def write(self, name: str, value: int | str) -> None:
        """Turn a knob; OSError when the kernel refuses."""
        (KSM / name).write_text(f"{value}\n")

    def has(self, name: str) -> bool:
        """Whether this kernel has the file."""
        return (KSM / name).exists()

    def counters(self) -> dict[str, int]:
        """All numeric files, by name."""
        found: dict[str, int] = {}
        for path in sorted(KSM.iterdir()):
            with contextlib.suppress(ValueError):
                found[path.name] = int(path.read_text())
        return found

    def wait_passes(self, passes: int = 3, seconds: float = 60.0) -> None:
        """Wait for that many passes to end; needs a registered process and run=1."""
        target = self.read("full_scans") + passes
        wait_until(
            lambda: self.read("full_scans") >= target,
            f"{passes} passes of ksmd (is any process registered?)",
            seconds,
        )

    def save(self) -> dict[str, str]:
        """Every knob's text, `run` too."""
        return {name: self.read_text(name) for name in (*_KNOBS, "run") if self.has(name)}

    def restore(self, saved: dict[str, str]) -> None:
        """Unmerge everything and put every knob back."""
        self.write("run", 2)  # some knobs are refused (EBUSY) while anything is shared
        if self.has("advisor_mode"):
            self.write("advisor_mode", "none")
        for name in _KNOBS:
            if name not in saved:
                continue
            if name == "pages_to_scan" and saved.get("advisor_mode", "none") != "none":
                continue  # the advisor's own; it starts anew
            self.write(name, saved[name])
        # run=2 above unmerged; if that was also the state that was found, it is there already.
        self.write("run", saved["run"])
        left = {name: (saved[name], now) for name, now in self.save().items() if saved[name] != now}
        left.pop("pages_to_scan" if saved.get("advisor_mode", "none") != "none" else "", None)
        if left:
            raise AssertionError(f"KSM knobs not restored (was, is): {left}")


_held: list[int] = []  # the lock file, while this process holds it


@contextlib.contextmanager
def hold_kernel_ksm_lock() -> Iterator[int]:
    """Have the machine's KSM to oneself, as it is: for whoever registers processes with it.

    May be taken again by who has it. Gives the lock file.
    """
    if _held:
        yield _held[0]
        return
    lock = os.open(lock_path(), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _held.append(lock)
        yield lock
    finally:
        _held.clear()
        os.close(lock)


@contextlib.contextmanager
def hold_kernel_ksm(**knobs: int | str) -> Iterator[KernelKsmControl]:
    """Lock the machine's KSM, empty it, set knobs, and restore all of them afterwards.

    Processes that others have registered are still scanned: exact counts need a machine where
    nobody else uses KSM.
    """
    control = KernelKsmControl()
    with hold_kernel_ksm_lock() as lock, _ending_in_order():
        left = _read_left(lock)
        if left:
            control.restore(left)
        saved = control.save()
        _write_left(lock, saved)
        try:
            control.write("run", 2)
            if "advisor_mode" not in knobs and control.has("advisor_mode"):
                control.write("advisor_mode", "none")
            for name, value in knobs.items():
                control.write(name, value)
            yield control
        finally:
            control.restore(saved)
            os.ftruncate(lock, 0)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _read_left(lock: int) -> dict[str, str]:
    """The knobs as they were found by a holder that did not come to restore them."""
    try:
        left: dict[str, Any] = json.loads(os.pread(lock, 1 << 16, 0) or b"{}")
    except ValueError:  # killed while it wrote this, before it turned anything
        return {}
    return left["knobs"] if left.get("boot") == _boot() else {}


def _write_left(lock: int, saved: dict[str, str]) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps({"boot": _boot(), "knobs": saved}).encode(), 0)


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end this process as Ctrl-C does: by way of every `finally`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL
    ]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
