"""A program that does to its memory what it is told, call by call; run by `Client`, never imported.

A line of JSON in, `{"do": ..., "with": [...]}`; a line of JSON out. Children that it forks are
spoken to through it. Only what Python needs to start is imported: it is started often.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import sys
from typing import Any, TextIO

PAGE = 4096
UFFD_USER_MODE_ONLY = 1
_libc = ctypes.CDLL(None, use_errno=True)
_children: dict[int, TextIO] = {}
_kept: list[int] = []


def call(name: str, *args: int) -> list[int]:
    """A C library function, as a program would call it: [value, errno]."""
    function = getattr(_libc, name)
    function.restype = (
        ctypes.c_int if name not in ("mmap", "mremap", "sbrk", "syscall") else ctypes.c_long
    )
    ctypes.set_errno(0)
    value = function(*(ctypes.c_ulong(arg & (1 << 64) - 1) for arg in args))
    return [value, ctypes.get_errno() if value == -1 else 0]


def fill(address: int, values: list[int]) -> None:
    """Fill pages, each with one number over and over; 0 gives a page of zeros."""
    for index, value in enumerate(values):
        ctypes.memmove(address + index * PAGE, struct.pack("<Q", value) * (PAGE // 8), PAGE)


def fill_counting(address: int, pages: int, first: int) -> None:
    """Fill pages with numbers that count up."""
    for index in range(pages):
        ctypes.memmove(address + index * PAGE, struct.pack("<Q", first + index) * (PAGE // 8), PAGE)


def poke(address: int, byte: int) -> None:
    """Write one byte."""
    ctypes.memset(address, byte, 1)


def store(address: int, numbers: list[int]) -> None:
    """Write numbers of 64 bits one after the other."""
    data = struct.pack(f"<{len(numbers)}Q", *numbers)
    ctypes.memmove(address, data, len(data))


def peek(address: int, pages: int) -> list[int]:
    """Read what `fill` wrote: a number a page; -1 for a page that is not all one number."""
    found = []
    for index in range(pages):
        data = ctypes.string_at(address + index * PAGE, PAGE)
        found.append(struct.unpack_from("<Q", data)[0] if data == data[:8] * 512 else -1)
    return found


def poke_through_mem(address: int, values: list[int]) -> None:
    """Write a number to each page through /proc/self/mem, which needs no permission to write."""
    with open("/proc/self/mem", "r+b", buffering=0) as memory:  # noqa: PTH123
        for index, value in enumerate(values):
            os.pwrite(memory.fileno(), struct.pack("<Q", value), address + index * PAGE)


def write_protect(address: int, length: int) -> list[int]:
    """Register a range with a userfaultfd and write-protect it: [0 or -1, errno]."""
    fd = int(_libc.syscall(323, os.O_CLOEXEC | UFFD_USER_MODE_ONLY))
    if fd < 0:
        return [-1, ctypes.get_errno()]
    _kept.append(fd)
    api = ctypes.create_string_buffer(struct.pack("<QQQ", 0xAA, 0, 0))
    register = ctypes.create_string_buffer(struct.pack("<QQQQ", address, length, 2, 0))
    protect = ctypes.create_string_buffer(struct.pack("<QQQ", address, length, 1))
    for number, argument in ((0xC018AA3F, api), (0xC020AA00, register), (0xC018AA06, protect)):
        if _libc.ioctl(fd, ctypes.c_ulong(number), argument) < 0:
            return [-1, ctypes.get_errno()]
    return [0, 0]


def use_mappings(count: int) -> int:
    """Use up so many mappings, without memory: the address."""
    address = call("mmap", 0, count * PAGE, 0, 0x4022, -1, 0)[0]
    for index in range(0, count, 2):
        call("mprotect", address + index * PAGE, PAGE, 1)
    return address


def map_file(pages: int) -> int:
    """Map a file of zeros privately, to be read and written: the address."""
    fd = os.memfd_create("file")
    os.ftruncate(fd, pages * PAGE)
    address = call("mmap", 0, pages * PAGE, 3, 2, fd, 0)[0]
    os.close(fd)
    return address


def let_go() -> None:
    """Close what `write_protect` opened."""
    while _kept:
        os.close(_kept.pop())


def fork() -> int:
    """Fork a child that can be spoken to; its number."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _children.clear()
        serve(theirs.makefile("r"), theirs.makefile("w"))
        os._exit(0)
    theirs.close()
    _children[pid] = ours.makefile("rw")
    ours.close()
    return pid


def tell(pid: int, line: str) -> Any:
    """Hand a child a line, and give back its answer's value."""
    _children[pid].write(line + "\n")
    _children[pid].flush()
    return json.loads(_children[pid].readline())["value"]


def end(pid: int) -> int:
    """Have a child end, and wait for it: its exit status."""
    _children.pop(pid).close()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def crash_children(address: int, length: int, count: int) -> list[int]:
    """Fork children that mark memory and die of a signal at once; how each ended."""
    ends = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            call("madvise", address, length, 12)
            os.kill(os.getpid(), 11)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return ends


def replace_self() -> None:
    """execve this program anew; the new one answers."""
    os.execv(sys.executable, [sys.executable, "-I", "-S", __file__, "again"])


_DO = {
    function.__name__: function
    for function in (
        call,
        fill,
        fill_counting,
        poke,
        store,
        peek,
        poke_through_mem,
        write_protect,
        let_go,
        use_mappings,
        map_file,
        fork,
        tell,
        end,
        crash_children,
        replace_self,
    )
}


def serve(lines: TextIO, answers: TextIO) -> None:
    """Answer until the other side hangs up."""
    while line := lines.readline():
        request = json.loads(line)
        value = _DO[request["do"]](*request["with"])
        answers.write(json.dumps({"value": value}) + "\n")
        answers.flush()


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.stdout.write('{"value": null}\n')
        sys.stdout.flush()
    serve(sys.stdin, sys.stdout)
