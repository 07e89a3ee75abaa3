"""QEMU guests of one small image: a workload of `benchmarks.prediction`, and their dumps.

    python -m benchmarks.guests [--guests N]

Holds the estimate of dumps that QEMU wrote (ELF, raw) against that of the guests themselves, which
stand still meanwhile, and shows what is said to its compressed formats. Needs root,
qemu-system-x86_64, busybox (static), cpio and apt-get, which fetches Debian's cloud kernel.
GUEST_ACCEL=tcg has QEMU translate rather than use /dev/kvm, where that is none that works.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pagemerge.errors import FormatError
from pagemerge.insight import Estimate, EstimateOptions, estimate, find_targets
from tests.support.waiting import wait_until

GUEST_MIB: Final = 256
_ACCEL: Final = os.environ.get("GUEST_ACCEL", "kvm")
_BOOT_SECONDS: Final = 180
_PACKAGE: Final = "linux-image-cloud-amd64"
_CACHE: Final = Path("build/guest")
# Real files, the same in all guests: libraries, scripts, data.
_FILES: Final = ("/usr/lib/x86_64-linux-gnu/perl-base", "/usr/share/perl")

_INIT: Final = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox dd if=/dev/urandom of=/tmp/own bs=1M count=6 2>/dev/null
/bin/busybox find /usr -type f -exec /bin/busybox md5sum {} + >/tmp/sums
/bin/busybox cp -r /usr /tmp/copy
i=0
while [ $i -lt 20 ]; do /bin/busybox sleep 1000000 & i=$((i + 1)); done
echo ready
exec /bin/busybox sleep 1000000
"""


@dataclass(frozen=True)
class GuestImage:
    """What guests boot."""

    kernel: Path
    initrd: Path


def build_guest() -> GuestImage:
    """Fetch a kernel, once, and pack a small file system."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    kernels = sorted(_CACHE.glob("boot/vmlinuz-*"))
    if not kernels:
        depends = _run("apt-cache", "depends", _PACKAGE)
        name = next(line.split()[-1] for line in depends.splitlines() if "Depends:" in line)
        _run("apt-get", "download", f"{name}-unsigned", cwd=_CACHE)
        _run("dpkg-deb", "-x", str(next(_CACHE.glob("*.deb"))), str(_CACHE))
        kernels = sorted(_CACHE.glob("boot/vmlinuz-*"))
    return GuestImage(kernels[-1].resolve(), _pack(_CACHE / "root", _CACHE / "initrd").resolve())


def _pack(root: Path, initrd: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    (root / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", root / "bin/busybox")
    for path in (Path(name) for name in _FILES):
        if path.is_dir():
            shutil.copytree(path, root / path.relative_to("/"), symlinks=True)
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    with initrd.open("wb") as file:
        names = _run("find", ".", cwd=root)
        argv = ["cpio", "--quiet", "-o", "-H", "newc"]
        subprocess.run(argv, input=names.encode(), stdout=file, cwd=root, check=True)
    return initrd


def _run(*argv: str, cwd: Path | None = None) -> str:
    return subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True).stdout


def guest_argv(image: GuestImage, monitor: Path) -> list[str]:
    """Give the command of a guest whose console is its standard output."""
    return [
        *("qemu-system-x86_64", "-machine", f"pc,accel={_ACCEL},mem-merge=on", "-cpu", "max"),
        *("-m", str(GUEST_MIB), "-nodefaults", "-display", "none", "-serial", "stdio"),
        *("-monitor", f"unix:{monitor},server,nowait", "-kernel", str(image.kernel)),
        *("-initrd", str(image.initrd), "-append", "console=ttyS0 quiet loglevel=0 panic=-1"),
    ]


def await_guest(guest: subprocess.Popen[str]) -> None:
    """Wait until its init says that it is ready."""
    assert guest.stdout is not None
    alarm = threading.Timer(_BOOT_SECONDS, guest.kill)  # ends the lines
    alarm.start()
    try:
        if any("ready" in line for line in guest.stdout):
            return
    finally:
        alarm.cancel()
    raise RuntimeError(f"a guest did not come up (accel={_ACCEL}; GUEST_ACCEL=tcg may)")


def tell_monitor(path: Path, command: str) -> str:
    """Have a guest's monitor carry a command out."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(120)
        link.connect(str(path))
        answer = ""
        for text in ("", f"{command}\n"):
            link.sendall(text.encode())
            answer = ""
            while not answer.endswith("(qemu) "):
                if not (part := link.recv(1 << 16)):
                    raise RuntimeError(f"the monitor hung up at {command!r}")
                answer += part.decode(errors="replace")
        return answer


@contextmanager
def _standing_guests(count: int, folder: Path) -> Iterator[list[tuple[int, Path]]]:
    image = build_guest()
    guests, found = [], []
    try:
        for i in range(count):
            monitor = folder / f"monitor{i}"
            guests.append(
                subprocess.Popen(
                    guest_argv(image, monitor),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            found.append((guests[-1].pid, monitor))
        for guest, (_, monitor) in zip(guests, found, strict=True):
            await_guest(guest)
            wait_until(monitor.exists, "the monitor")
            tell_monitor(monitor, "stop")
        yield found
    finally:
        for guest in guests:
            guest.kill()
            guest.communicate()


def _look(*paths: Path, pids: tuple[int, ...] = ()) -> Estimate:
    options = EstimateOptions(mergeable=bool(pids), use_zero_pages=1)
    return estimate(find_targets(files=paths, pids=pids), options)


def main() -> int:
    """Compare live guests with their dumps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guests", type=int, default=2)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        _standing_guests(args.guests, folder := Path(name)) as guests,
    ):
        live = _look(pids=tuple(pid for pid, _ in guests))
        size = GUEST_MIB << 20
        results = {"live": live}
        for kind, command in (
            ("ELF dump", "dump-guest-memory {}"),
            ("raw image", f'pmemsave 0 {size} "{{}}"'),
        ):
            paths = []
            for i, (_, monitor) in enumerate(guests):
                paths.append(folder / f"{kind.split()[0]}{i}")
                answer = tell_monitor(monitor, command.format(paths[-1]))
                if not paths[-1].exists():
                    raise RuntimeError(f"{command}: {answer}")
            results[kind] = _look(*paths)
            for path in paths:
                path.unlink()
        print("| what is read | pages_sharing | pages_shared | not zero | zero |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for kind, e in results.items():
            filled = e.present_pages - e.zero_pages
            print(
                f"| {kind} | {e.pages_sharing:,} | {e.pages_shared:,} | {filled:,} "
                f"| {e.zero_pages:,} |"
            )
        path = folder / "compressed"
        tell_monitor(guests[0][1], f"dump-guest-memory -z {path}")
        try:
            _look(path)
        except FormatError as error:
            print(f"dump-guest-memory -z: {error} ({error.hint})")
        worst = max(abs(e.pages_sharing - live.pages_sharing) for e in results.values())
        return 0 if worst <= 0.02 * live.pages_sharing else 1


if __name__ == "__main__":
    raise SystemExit(main())
