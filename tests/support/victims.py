"""Programs whose memory the engine merges in tests: one that holds still, one that never does."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.support.processes import Child
from tests.support.users import agent_for, python_for

__all__ = ["agent_env", "compiled", "holder", "read_stress", "run_stress"]

# Lines in: "fill SEED N" (pages alike in all processes with the same seed), "unique N", "zero N",
# "same CHAR N", "resize N" (mremap), "mark", "unmark", "write INDEX VALUE", "sum", "drop" (munmap),
# "dontneed", "fork", "spin" (until it is said again), "quit". One line out for each.
_HOLDER = """
import ctypes, hashlib, mmap, os, random, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
region = None
rest_now = None
def spin(rest_now):
    while not rest_now.is_set():
        pass
def address():
    return ctypes.addressof(ctypes.c_char.from_buffer(region))
def advise(advice):
    return libc.madvise(address(), len(region), advice)
for line in sys.stdin:
    word, *rest = line.split()
    answer = "ok"
    if word in ("fill", "unique", "zero"):
        pages = int(rest[-1])
        region = mmap.mmap(-1, pages * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if word == "zero":
            region[:] = bytes(pages * 4096)
        else:
            seed = rest[0] if word == "fill" else os.urandom(8).hex()
            region[:] = random.Random(seed).randbytes(pages * 4096)
    elif word == "same":
        pages = int(rest[-1])
        region = mmap.mmap(-1, pages * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        region[:] = (rest[0].encode() * 4096)[:4096] * pages
    elif word == "mark":
        answer = str(advise(12))
    elif word == "unmark":
        answer = str(advise(13))
    elif word == "dontneed":
        answer = str(libc.madvise(address(), len(region), 4))
    elif word == "huge":
        answer = str(advise(14))
    elif word == "resize":
        region.resize(int(rest[0]) * 4096)
    elif word == "write":
        region[int(rest[0])] = int(rest[1])
    elif word == "sum":
        answer = hashlib.sha256(region).hexdigest()
    elif word == "drop":
        region.close()
    elif word == "address":
        answer = str(address())
    elif word == "fork":
        pid = os.fork()
        if pid == 0:
            inner = os.open(rest[0], os.O_RDONLY)
            os.read(inner, 1)
            os._exit(0 if hashlib.sha256(region).hexdigest() == rest[1] else 1)
        answer = str(pid)
    elif word == "spin":
        if rest_now:
            rest_now.set()
            rest_now = None
        else:
            rest_now = threading.Event()
            threading.Thread(target=spin, args=(rest_now,)).start()
    elif word == "wait":
        answer = str(os.waitstatus_to_exitcode(os.waitpid(int(rest[0]), 0)[1]))
    elif word == "quit":
        break
    print(answer, flush=True)
"""


def agent_env(runtime: Path, user: int | None = None, **more: str) -> dict[str, str]:
    """The environment that brings the agent into a program, as `pagemerge run` sets it."""
    return {
        "LD_PRELOAD": str(agent_for(user)),
        "PAGEMERGE_AGENT_SOCKET": str(runtime / "agent.sock"),
        **more,
    }


def holder(env: Mapping[str, str], user: int | None = None, lacks: str = "") -> Child:
    """A Python process that holds memory as it is told.

    Args:
        env: Added to this process's environment.
        user: Number of the user to run as (root only).
        lacks: What deny.c takes away: "userfaultfd,pagemap_scan" ... .
    """
    argv = [python_for(user), "-c", _HOLDER]
    if lacks:
        argv = [str(compiled("deny")), lacks, *argv]
    return Child(argv, env=env, user=user)


@cache
def compiled(name: str, *flags: str) -> Path:
    """Compile tests/support/NAME.c, once a session; the program may be run by any user.

    Args:
        name: of the source, without `.c`.
        flags: Added to the compiler's; `-nostdlib` stands alone.
    """
    folder = Path(tempfile.mkdtemp(prefix="pagemerge-test-"))
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = folder / name
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    source = Path(__file__).with_name(f"{name}.c")
    usual = [] if "-nostdlib" in flags else ["-pthread"]
    subprocess.run(
        [compiler, "-O2", "-D_GNU_SOURCE", *usual, *flags, "-o", program, source], check=True
    )
    return program


@contextmanager
def run_stress(
    env: Mapping[str, str],
    *,
    count: int = 2,
    seconds: float = 5,
    pages: int = 4096,
    threads: int = 8,
    exchange: bool = True,
) -> Iterator[list[subprocess.Popen[str]]]:
    """Run `count` of them side by side, with process_vm_writev(2) or not; kill what is left."""
    argv = [str(compiled("stress")), "-s", str(seconds), "-p", str(pages), "-t", str(threads)]
    if not exchange:
        argv.append("-E")
    running = [
        subprocess.Popen(
            argv,
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        yield running
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def read_stress(process: subprocess.Popen[str], seconds: float = 120) -> str:
    """Wait for its end; what it printed. AssertionError when a check of it failed."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, f"exit status {process.returncode}: {output}"
    return output
