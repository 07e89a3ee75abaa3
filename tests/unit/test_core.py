"""The binding of the C core: what it takes, what it refuses, and a scan of a real process."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pagemerge import _core

PAGE = _core.PAGE_SIZE
MERGEABLE = 1


@pytest.fixture
def scanner() -> _core.Scanner:
    """A scanner without processes, with the counts of every visit."""
    made = _core.Scanner()
    made.set_knob("smart_scan", 0)
    return made


@pytest.fixture
def own_memory() -> Iterator[tuple[int, mmap.mmap]]:
    """64 pages of this process, each twice, and their address."""
    region = mmap.mmap(-1, 64 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_NOHUGEPAGE)
    half = random.Random(1).randbytes(32 * PAGE)
    region[:] = half * 2
    byte = ctypes.c_char.from_buffer(region)
    yield ctypes.addressof(byte), region
    del byte
    region.close()


def scan_pass(scanner: _core.Scanner, mm: int = 1) -> int:
    """One pass over one process; pages looked at."""
    scanner.begin_pass()
    looked = 0
    done = not scanner.begin_mm(mm)
    while not done:
        pages, done = scanner.scan(mm, 1000)
        looked += pages
    return looked


def test_hashes_are_equal_exactly_where_pages_are() -> None:
    data = b"a" * PAGE + b"b" * PAGE + b"a" * PAGE + b"rest"
    first, second, third = struct.unpack("=3Q", _core.hash_pages(data))
    assert first == third != second


def test_every_variant_of_the_hash_gives_the_same() -> None:
    program = (
        "import random; from pagemerge import _core;"
        "print(_core.HASH_VARIANT, _core.hash_pages(random.Random(1).randbytes(8192)).hex())"
    )
    found = {}
    for wanted in ("base", "avx2", "avx512"):
        env = {**os.environ, "PAGEMERGE_HASH": wanted}
        run = subprocess.run(
            [sys.executable, "-c", program], env=env, check=True, capture_output=True, text=True
        )
        variant, value = run.stdout.split()
        found[variant] = value
    assert len(set(found.values())) == 1
    assert "base" in found


def test_zero_pages_are_told_apart() -> None:
    data = bytearray(3 * PAGE)
    data[2 * PAGE - 1] = 1
    assert _core.zero_pages(data) == b"\1\0\1"


def test_maps_are_parsed_as_the_kernel_writes_them() -> None:
    start = 0x7F1000
    line = b"7f1000-7f3000 rw-p 00001000 fd:01 1046                      /tmp/a b (deleted)\n"
    assert _core.parse_maps(line) == [
        (start, start + 2 * PAGE, "rw-p", PAGE, 0xFD << 20 | 1, 1046, "/tmp/a b (deleted)")
    ]


def test_a_line_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="line 2"):
        _core.parse_maps(b"1000-2000 rw-p 00000000 00:00 0 \nnonsense\n")


def test_a_message_that_is_none_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="size"):
        _core.check_message(b"short", True)


def test_a_process_that_is_not_there_is_a_key_error(scanner: _core.Scanner) -> None:
    calls = (
        lambda: scanner.begin_mm(7),
        lambda: scanner.scan(7, 1),
        lambda: scanner.take_request(7),
        lambda: scanner.remove(7),
        lambda: scanner.process(7),
    )
    for call in calls:
        with pytest.raises(KeyError, match="7"):
            call()


def test_knobs_refuse_what_they_cannot_be(scanner: _core.Scanner) -> None:
    with pytest.raises(ValueError, match="no knob"):
        scanner.set_knob("nonsense", 1)
    with pytest.raises(ValueError, match="max_page_sharing"):
        scanner.set_knob("max_page_sharing", 1)
    with pytest.raises(ValueError, match="smart_scan"):
        scanner.set_knob("smart_scan", 1 << 40)


def test_ranges_are_whole_pages(scanner: _core.Scanner) -> None:
    scanner.add(1, os.getpid(), -1, -1, -1, -1)
    for start, end in ((1, PAGE), (0, 100), (2 * PAGE, PAGE)):
        with pytest.raises(ValueError, match="whole pages"):
            scanner.mark(1, start, end, MERGEABLE)
    with pytest.raises(ValueError, match="mark"):
        scanner.mark(1, 0, PAGE, 99)


def test_a_number_is_given_once(scanner: _core.Scanner) -> None:
    scanner.add(1, os.getpid(), -1, -1, -1, -1)
    with pytest.raises(ValueError, match="already"):
        scanner.add(1, os.getpid(), -1, -1, -1, -1)


def test_nothing_marked_is_nothing_to_scan(scanner: _core.Scanner) -> None:
    scanner.add(1, os.getpid(), -1, -1, -1, -1)
    assert scanner.begin_mm(1) is False
    assert scanner.regions(1) == []


def test_two_looks_make_a_request(
    scanner: _core.Scanner, own_memory: tuple[int, mmap.mmap]
) -> None:
    address, _region = own_memory
    scanner.add(1, os.getpid(), -1, -1, -1, -1)
    scanner.mark(1, address, address + 64 * PAGE, MERGEABLE)
    scanner.trace(True)
    assert scan_pass(scanner) == 64
    assert scanner.counters()["pages_volatile"] == 64
    assert scanner.take_request(1) is None
    scan_pass(scanner)
    request = scanner.take_request(1)
    assert request is not None
    seq, datagram, fds = request
    kind, count, named_seq = struct.unpack_from("=IIQ", datagram)
    assert (kind, named_seq) == (17, seq)
    assert len(datagram) == 16 + 24 * count
    assert len(fds) in (1, 2)  # twins within one 2 MiB stretch have slots in a segment of their own
    _core.check_message(datagram, False)
    runs = [struct.unpack_from("=QIIII", datagram, 16 + 24 * i) for i in range(count)]
    assert sum(run[1] for run in runs) == 64
    assert all(os.pread(fds[run[2]], PAGE, run[3] * PAGE) for run in runs)
    # It says that everything differs: nothing is merged, and no slot is left in use.
    failed = b"".join(struct.pack("=QII", run[0], run[1], 1) for run in runs)
    result = struct.pack("=IIQ", 5, count, seq) + struct.pack("=IIIIIiQQ", 0, 64, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="not the answer"):
        scanner.put_result(1, result[:-1])
    scanner.put_result(1, result + failed)
    with pytest.raises(ValueError, match="not the answer"):
        scanner.put_result(1, result + failed)
    counters = scanner.counters()
    assert (counters["pages_shared"], counters["merge_failures_differs"]) == (0, 64)
    events, lost = scanner.take_events()
    assert lost == 0
    assert {name for name, *_ in events} == {"ksm_merge_with_ksm_page", "ksm_remove_ksm_page"}
    assert not scanner.page_merged(1, address)


def test_metadata_stays_within_sixteen_bytes_a_page(scanner: _core.Scanner) -> None:
    pages = 65536
    region = mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(pages):
        region[page * PAGE : page * PAGE + 4] = struct.pack("=I", page // 2)
    byte = ctypes.c_char.from_buffer(region)
    address = ctypes.addressof(byte)
    scanner.add(1, os.getpid(), -1, -1, -1, -1)
    scanner.mark(1, address, address + pages * PAGE, MERGEABLE)
    for _ in range(2):
        assert scan_pass(scanner) == pages
    counters = scanner.counters()
    assert counters["pages_pending"] >= pages - 2
    assert counters["metadata_bytes"] / pages <= 16
    scanner.remove(1)
    del byte
    region.close()


def test_a_process_that_has_ended_is_a_process_lookup_error(scanner: _core.Scanner) -> None:
    program = "print('ready', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    scanner.add(1, child.pid, -1, -1, -1, -1)
    scanner.set_all(1, True)
    assert scanner.begin_mm(1) is True
    child.communicate(b"\n")
    scanner.gone(1, 0, PAGE)
    with pytest.raises(ProcessLookupError):
        scanner.begin_mm(1)
    scanner.remove(1)
    assert scanner.counters()["rmap_items"] == 0
