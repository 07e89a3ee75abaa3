"""The agent alone: the test speaks the daemon's part, truthfully or not."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pagemerge.engine import wire
from pagemerge.memory import read_smaps
from tests.support.processes import Child, read_smaps_rollup
from tests.support.victims import agent_env, holder

PAGE = 4096
N = 64
HEADER = struct.Struct("=IIQ")
RUN = struct.Struct("=QIIII")
RANGE = struct.Struct("=QQII")
GAP, JOINED = 1, 2


class Peer:
    """The daemon's end of one agent's connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.seq = 0
        datagram, fds, _, _ = socket.recv_fds(sock, 65536, 8)
        self.hello = wire.parse_hello(datagram)
        self.fds = fds
        sock.send(wire.render_welcome(os.getpid()))

    def track(self, start: int, end: int) -> None:
        """Have the kernel note which of these pages are written, as the daemon does."""
        register, write_protect_mode = 0xC020AA00, 2  # UFFDIO_REGISTER, _MODE_WP
        request = struct.pack("=QQQQ", start, end - start, write_protect_mode, 0)
        fcntl.ioctl(self.fds[-1], register, request)

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)

    def receive(self, kind: wire.Kind) -> bytes:
        while True:
            datagram = self.sock.recv(65536)
            assert datagram, "the agent has gone"
            if wire.parse_header(datagram)[0] == kind:
                return datagram

    def ask(
        self, kind: wire.Kind, entries: Sequence[bytes], fds: Sequence[int] = ()
    ) -> wire.Result:
        self.seq += 1
        datagram = HEADER.pack(kind, len(entries), self.seq) + b"".join(entries)
        socket.send_fds(self.sock, [datagram], list(fds))
        answer = self.receive(wire.Kind.RESULT)
        assert wire.parse_header(answer)[2] == self.seq
        return wire.parse_result(answer)


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "agent.sock"))
        listener.listen()
        listener.settimeout(20)
        yield listener


def segment(content: bytes) -> int:
    fd = os.memfd_create("pagemerge", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, 64 << 20)
    os.pwrite(fd, content, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x10 | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


@contextlib.contextmanager
def client(listener: socket.socket, folder: Path, **env: str) -> Iterator[tuple[Child, Peer, int]]:
    """A process whose N pages are random.Random("seed")'s, its agent, and their address."""
    with holder(agent_env(folder, None, **env)) as child:
        child.ask(f"fill seed {N}")
        address = int(child.ask("address"))
        assert child.ask("mark") == "0"
        sock, _ = listener.accept()
        sock.settimeout(20)
        peer = Peer(sock)
        try:
            mark = wire.parse_ranges(peer.receive(wire.Kind.MARK))[0]
            assert (mark.start, mark.end, mark.flags) == (address, address + N * PAGE, 1)
            yield child, peer, address
        finally:
            peer.close()


CONTENT = random.Random("seed").randbytes(N * PAGE)


@pytest.mark.parametrize("barrier", ["uffd,freeze", "freeze"])
def test_scattered_pages_are_replaced_within_one_stop(
    listener: socket.socket, tmp_path: Path, barrier: str
) -> None:
    reverse = b"".join(CONTENT[page * PAGE : (page + 1) * PAGE] for page in reversed(range(N)))
    wrong = bytearray(reverse)
    wrong[(N - 1 - 20) * PAGE] ^= 1
    fd = segment(bytes(wrong))
    with client(listener, tmp_path, PAGEMERGE_BARRIER=barrier) as (child, peer, address):
        before = child.ask("sum")
        assert peer.hello.fds & wire.HelloFd.UFFD
        peer.track(address, address + N * PAGE)
        pages = [page for page in range(N) if page % 10 != 9]
        runs = [RUN.pack(address + page * PAGE, 1, 0, N - 1 - page, 0) for page in pages]
        result = peer.ask(wire.Kind.MERGE, runs, [fd])
        assert (result.merged, result.failed) == (len(pages) - 1, 1)
        assert result.stopped_ns > 0
        assert child.ask("sum") == before
        pool = [smap for smap in read_smaps(child.pid) if "memfd:pagemerge" in smap.vma.path]
        assert sum(smap.vma.end - smap.vma.start for smap in pool) == result.merged * PAGE
    os.close(fd)


@pytest.mark.parametrize("barrier", ["uffd", "freeze"])
@pytest.mark.parametrize("pieces", [1, 4])
def test_private_pages_between_merged_ones_take_no_room_in_the_pool(
    listener: socket.socket, tmp_path: Path, barrier: str, pieces: int
) -> None:
    fd = os.memfd_create("pagemerge", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(fd, 64 << 20)
    holes = range(4, N, 8)
    for page in (page for page in range(N) if page not in holes):
        os.pwrite(fd, CONTENT[page * PAGE : (page + 1) * PAGE], page * PAGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x10 | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    with client(listener, tmp_path, PAGEMERGE_BARRIER=barrier) as (child, peer, address):
        before = child.ask("sum")
        peer.track(address, address + N * PAGE)
        runs = []
        for first in range(0, N, N // pieces):
            flags = 0
            for page in range(first, first + N // pieces, 8):
                for at, n, gap in ((page, 4, 0), (page + 4, 1, GAP), (page + 5, 3, 0)):
                    runs.append(RUN.pack(address + at * PAGE, n, 0, at, gap | flags))
                    flags = JOINED
        result = peer.ask(wire.Kind.MERGE, runs, [fd, peer.fds[-1]])
        assert (result.merged, result.copied) == (N - len(holes), len(holes))
        assert child.ask("sum") == before
        assert os.fstat(fd).st_blocks * 512 == (N - len(holes)) * PAGE
    os.close(fd)


def test_pages_between_scattered_ones_stay_private(listener: socket.socket, tmp_path: Path) -> None:
    fd = segment(bytes(PAGE) + CONTENT)
    with client(listener, tmp_path, PAGEMERGE_BARRIER="freeze") as (child, peer, address):
        before = child.ask("sum")
        peer.track(address, address + N * PAGE)
        runs = []
        for first in range(0, N, 8):  # three pages, two that stay, three pages
            place = address + first * PAGE
            runs.append(RUN.pack(place, 3, 0, 1 + first, 0))
            runs.append(RUN.pack(place + 3 * PAGE, 2, 0, 4 + first, GAP | JOINED))
            runs.append(RUN.pack(place + 5 * PAGE, 3, 0, 6 + first, JOINED))
        result = peer.ask(wire.Kind.MERGE, runs, [fd])
        assert (result.merged, result.failed, result.copied) == (N * 6 // 8, 0, N * 2 // 8)
        assert child.ask("sum") == before
        pool = [smap for smap in read_smaps(child.pid) if "memfd:pagemerge" in smap.vma.path]
        assert sum(smap.sizes["Anonymous"] for smap in pool) == N * 2 // 8 * PAGE
    os.close(fd)


@pytest.mark.parametrize("barrier", ["uffd", "freeze"])
def test_equal_pages_are_mapped_from_the_pool(
    listener: socket.socket, tmp_path: Path, barrier: str
) -> None:
    fd = segment(CONTENT)
    with client(listener, tmp_path, PAGEMERGE_BARRIER=barrier) as (child, peer, address):
        before = child.ask("sum")
        result = peer.ask(wire.Kind.MERGE, [RUN.pack(address, N, 0, 0, 0)], [fd])
        assert (result.merged, result.failed, result.mappings) == (N, 0, 1)
        assert result.barrier == wire.Barrier[barrier.upper()]
        assert child.ask("sum") == before
        assert "memfd:pagemerge" in Path(f"/proc/{child.pid}/maps").read_text()
        child.ask("write 0 1")
        child.ask("write 0 2")
        assert child.ask("sum") != before
        assert os.pread(fd, N * PAGE, 0) == CONTENT
    os.close(fd)


@pytest.mark.parametrize("barrier", ["uffd", "freeze"])
def test_gaps_keep_their_private_content(
    listener: socket.socket, tmp_path: Path, barrier: str
) -> None:
    pool = bytearray(CONTENT)
    pool[8 * PAGE : 12 * PAGE] = bytes(4 * PAGE)
    fd = segment(bytes(pool))
    with client(listener, tmp_path, PAGEMERGE_BARRIER=barrier) as (child, peer, address):
        before = child.ask("sum")
        runs = [
            RUN.pack(address, 8, 0, 0, 0),
            RUN.pack(address + 8 * PAGE, 4, 0, 8, GAP | JOINED),
            RUN.pack(address + 12 * PAGE, N - 12, 0, 12, JOINED),
        ]
        result = peer.ask(wire.Kind.MERGE, runs, [fd])
        assert (result.merged, result.failed, result.copied) == (N - 4, 0, 4)
        assert child.ask("sum") == before
        assert read_smaps_rollup(child.pid)["Rss"] > 0
    os.close(fd)


def test_wrong_hints_change_no_byte(listener: socket.socket, tmp_path: Path) -> None:
    chance = random.Random(4)
    pool = bytearray(CONTENT)
    for page in chance.sample(range(N), N // 2):
        pool[page * PAGE + chance.randrange(PAGE)] ^= 1
    fd = segment(bytes(pool))
    with client(listener, tmp_path) as (child, peer, address):
        before = child.ask("sum")
        merged = 0
        for _ in range(200):
            page, length = chance.randrange(N), chance.randrange(1, 40)
            offset = page if chance.random() < 0.7 else chance.randrange(N)
            place = address + page * PAGE
            if chance.random() < 0.1:
                place = chance.randrange(1 << 35) << 12
            run = RUN.pack(place or PAGE, length, 0, offset, 0)
            merged += peer.ask(wire.Kind.MERGE, [run], [fd]).merged
            assert child.ask("sum") == before
        assert merged > 0
    os.close(fd)


def test_unmerging_gives_anonymous_memory_back(listener: socket.socket, tmp_path: Path) -> None:
    fd = segment(CONTENT)
    with client(listener, tmp_path) as (child, peer, address):
        before = child.ask("sum")
        peer.ask(wire.Kind.MERGE, [RUN.pack(address, N, 0, 0, 0)], [fd])
        result = peer.ask(wire.Kind.UNMERGE, [RANGE.pack(address, address + N * PAGE, 0, 0)])
        assert result.merged == N
        assert child.ask("sum") == before
        assert "memfd:pagemerge" not in Path(f"/proc/{child.pid}/maps").read_text()
    os.close(fd)


def test_memory_that_grows_shows_zeros_and_nothing_of_the_pool(
    listener: socket.socket, tmp_path: Path
) -> None:
    fd = segment(CONTENT * 4)
    with client(listener, tmp_path) as (child, peer, address):
        assert peer.ask(wire.Kind.MERGE, [RUN.pack(address, N, 0, 0, 0)], [fd]).merged == N
        child.ask(f"resize {2 * N}")
        assert child.ask("sum") == hashlib.sha256(CONTENT + bytes(N * PAGE)).hexdigest()
    os.close(fd)


def test_descriptors_that_are_no_pool_are_not_mapped(
    listener: socket.socket, tmp_path: Path
) -> None:
    unsealed = os.memfd_create("pagemerge", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(unsealed, CONTENT)
    with (tmp_path / "file").open("w+b") as file, client(listener, tmp_path) as (_, peer, address):
        file.write(CONTENT)
        file.flush()
        for fd in (unsealed, file.fileno()):
            result = peer.ask(wire.Kind.MERGE, [RUN.pack(address, N, 0, 0, 0)], [fd])
            assert (result.merged, result.error) == (0, -errno.EPERM)
    os.close(unsealed)


def test_what_is_not_marked_is_not_merged(listener: socket.socket, tmp_path: Path) -> None:
    fd = segment(CONTENT)
    with client(listener, tmp_path) as (child, peer, address):
        assert child.ask("unmark") == "0"
        assert peer.ask(wire.Kind.MERGE, [RUN.pack(address, N, 0, 0, 0)], [fd]).merged == 0
    os.close(fd)


def test_only_zero_pages_are_dropped_as_zero_pages(listener: socket.socket, tmp_path: Path) -> None:
    with client(listener, tmp_path) as (child, peer, address):
        before = child.ask("sum")
        request = RANGE.pack(address, address + N * PAGE, 0, 0)
        result = peer.ask(wire.Kind.ZERO, [request])
        assert (result.merged, result.failed) == (0, N)
        assert child.ask("sum") == before
        child.ask(f"zero {N}")
        address = int(child.ask("address"))
        before = child.ask("sum")
        assert peer.ask(wire.Kind.ZERO, [RANGE.pack(address, address + N * PAGE, 0, 0)]).merged == N
        assert child.ask("sum") == before


@pytest.mark.parametrize("seed", range(6))
def test_garbage_from_the_daemon_ends_the_connection_and_nothing_else(
    listener: socket.socket, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    with client(listener, tmp_path) as (child, peer, address):
        before = child.ask("sum")
        good = bytearray(HEADER.pack(wire.Kind.MERGE, 1, 1) + RUN.pack(address, N, 0, 0, 0))
        bad = bytes(good[: chance.randrange(1, len(good))])
        peer.sock.send(bad if seed % 2 else chance.randbytes(100))
        again, _ = listener.accept()  # it hangs up and calls anew
        again.settimeout(20)
        second = Peer(again)
        assert second.hello.flags & wire.HelloFlag.BACK
        assert wire.parse_ranges(second.receive(wire.Kind.MARK))[0].start == address
        assert child.ask("sum") == before
        second.close()


_LATE = """
import ctypes, mmap
from pagemerge.engine.agent import load_agent
region = mmap.mmap(-1, 16384, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
region.madvise(mmap.MADV_DONTFORK)
address = ctypes.addressof(ctypes.c_char.from_buffer(region))
agent = load_agent()
agent.madvise(address, 16384, mmap.MADV_MERGEABLE)
print(address, flush=True)
input()
"""


def test_memory_that_is_not_inherited_stays_out_though_the_agent_comes_later(
    listener: socket.socket, tmp_path: Path
) -> None:
    env = {**os.environ, "PAGEMERGE_AGENT_SOCKET": str(tmp_path / "agent.sock")}
    with subprocess.Popen(
        [sys.executable, "-c", _LATE],
        env=env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        sock, _ = listener.accept()
        sock.settimeout(20)
        peer = Peer(sock)
        assert process.stdout is not None
        address = int(process.stdout.readline())
        marks = wire.parse_ranges(peer.receive(wire.Kind.MARK))
        kinds = {mark.flags for mark in marks if mark.start <= address < mark.end}
        assert kinds == {wire.Mark.EXCLUDED}
        peer.close()
        process.kill()
