"""The messages between daemon and agent, as `native/core/protocol.h` lays them out."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

__all__ = [
    "Barrier",
    "Hello",
    "HelloFd",
    "HelloFlag",
    "Kind",
    "Mark",
    "Range",
    "Result",
    "parse_hashes",
    "parse_header",
    "parse_hello",
    "parse_ranges",
    "parse_result",
    "render_advise",
    "render_advise_all",
    "render_ping",
    "render_welcome",
]

PROTOCOL_VERSION = 1
_HEADER = struct.Struct("=IIQ")
_HELLO = struct.Struct("=IIIIiIQQ64s64s")
_WELCOME = struct.Struct("=IIiI")
_RANGE = struct.Struct("=QQII")
_HASHES = struct.Struct("=QH6x")
_RESULT = struct.Struct("=IIIIHHiQQ")


class Kind(IntEnum):
    """enum pm_message_type."""

    HELLO = 1
    MARK = 2
    ALL = 3
    GONE = 4
    RESULT = 5
    BYE = 6
    HASHES = 7
    WELCOME = 16
    MERGE = 17
    UNMERGE = 18
    ZERO = 19
    PING = 20
    ADVISE = 21
    ADVISE_ALL = 22
    HASH = 23
    GIVE = 24
    STEP_BACK = 25


class HelloFd(IntFlag):
    """enum pm_hello_fd: which descriptors came along, in this order."""

    PAGEMAP = 1
    MAPS = 2
    MEM = 4
    UFFD = 8


class HelloFlag(IntFlag):
    """enum pm_hello_flag."""

    PRELOADED = 1
    IMPORTED = 2
    FORKED = 4
    ALL = 8
    BACK = 16
    SHARED_TABLE = 32
    GIVES = 64


class Barrier(IntFlag):
    """enum pm_barrier."""

    UFFD = 1
    FREEZE = 2
    SEALED = 4


class Mark(IntEnum):
    """enum pm_mark."""

    MERGEABLE = 1
    UNMERGEABLE = 2
    SEALED = 3
    UNSEALED = 4
    EXCLUDED = 5


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of an agent; addresses are bytes."""

    version: int
    flags: HelloFlag
    fds: HelloFd
    barriers: Barrier
    parent: int
    page_size: int
    own_start: int
    own_end: int
    domain: str
    refusal: str


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes `[start, end)`, and what is said of them."""

    start: int
    end: int
    flags: int


@dataclass(frozen=True, slots=True)
class Result:
    """What an agent did with a request; pages, and nanoseconds."""

    merged: int
    failed: int
    copied: int
    mappings: int
    barrier: Barrier
    at_work: bool
    error: int
    cpu_ns: int
    stopped_ns: int


def parse_header(datagram: bytes) -> tuple[int, int, int]:
    """Split off (type, entries, seq)."""
    kind, count, seq = _HEADER.unpack_from(datagram)
    return kind, count, seq


def parse_hello(datagram: bytes) -> Hello:
    """Read a PM_HELLO that has been checked."""
    version, flags, fds, barriers, parent, page_size, start, end, domain, refusal = (
        _HELLO.unpack_from(datagram, _HEADER.size)
    )
    return Hello(
        version,
        HelloFlag(flags),
        HelloFd(fds),
        Barrier(barriers),
        parent,
        page_size,
        start,
        end,
        domain.split(b"\0")[0].decode("utf-8", "replace"),
        refusal.split(b"\0")[0].decode("utf-8", "replace"),
    )


def parse_ranges(datagram: bytes) -> list[Range]:
    """Read the ranges of a PM_MARK, PM_ALL or PM_GONE that has been checked."""
    count = _HEADER.unpack_from(datagram)[1]
    body = memoryview(datagram)[_HEADER.size : _HEADER.size + count * _RANGE.size]
    return [Range(start, end, flags) for start, end, flags, _ in _RANGE.iter_unpack(body)]


def parse_result(datagram: bytes) -> Result:
    """Read the head of a PM_RESULT that has been checked."""
    merged, failed, copied, mappings, barrier, at_work, error, cpu_ns, stopped_ns = (
        _RESULT.unpack_from(datagram, _HEADER.size)
    )
    return Result(
        merged, failed, copied, mappings, Barrier(barrier), bool(at_work), error, cpu_ns, stopped_ns
    )


def parse_hashes(datagram: bytes) -> tuple[int, bool]:
    """Read the head of a PM_HASHES that has been checked: the agent's CPU ns, and `at_work`."""
    cpu_ns, at_work = _HASHES.unpack_from(datagram, _HEADER.size)
    return cpu_ns, bool(at_work)


def render_welcome(daemon_pid: int, barrier: int = 0, freeze_max_usecs: int = 0) -> bytes:
    """Make the PM_WELCOME that answers a PM_HELLO."""
    head = _HEADER.pack(Kind.WELCOME, 1, 0)
    return head + _WELCOME.pack(PROTOCOL_VERSION, barrier, daemon_pid, freeze_max_usecs)


def render_advise(start: int, end: int, kind: Mark) -> bytes:
    """Make a PM_ADVISE: madvise on a program's behalf, for the bytes `[start, end)`."""
    return _HEADER.pack(Kind.ADVISE, 1, 0) + _RANGE.pack(start, end, kind, 0)


def render_advise_all(on: bool) -> bytes:
    """Make a PM_ADVISE_ALL: prctl(PR_SET_MEMORY_MERGE) on a program's behalf."""
    return _HEADER.pack(Kind.ADVISE_ALL, 1, 0) + _RANGE.pack(0, 0, on, 0)


def render_step_back(further: bool) -> bytes:
    """Make a PM_STEP_BACK: whether a program is at work that the agent should let go first."""
    return _HEADER.pack(Kind.STEP_BACK, 1, 0) + _RANGE.pack(0, 0, further, 0)


def render_ping(seq: int) -> bytes:
    """Make a PM_PING, whose answer says whether the program is at work."""
    return _HEADER.pack(Kind.PING, 0, seq)
