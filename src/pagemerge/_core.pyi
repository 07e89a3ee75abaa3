"""The C core: per-page work, without the interpreter lock."""

from typing import Any, Final, Self, final

PAGE_SIZE: Final[int]
PROTOCOL_VERSION: Final[int]
MESSAGE_MAX: Final[int]
SEGMENT_PAGES: Final[int]
HASH_VARIANT: Final[str]  # "avx512", "avx2" or "base"

def page_keys(buffer: object, whole: bool, /) -> bytes:
    """What an agent answers to PM_HASH, of every whole page, as packed native uint64."""

def hash_pages(buffer: object) -> bytes:
    """XXH3-64 of every whole page of a readable buffer, as packed native uint64."""

def zero_pages(buffer: object) -> bytes:
    """One byte a page: 1 where the page is all zero."""

def step_back(further: bool, /) -> None:
    """Have the calling thread let others go first, as ksmd does; OSError where it may not.

    `further`: with a longer slice than others have, so that whoever wakes up need not wait.
    """

@final
class Scanner:
    """What ksmd knows of one domain: processes, their pages, the index, the pool."""

    def __init__(self) -> None: ...
    # processes; `mm` is a number the caller chooses, never reused
    def add(
        self,
        mm: int,
        pid: int,
        pagemap_fd: int,
        maps_fd: int,
        mem_fd: int,
        uffd_fd: int,
        parent: int = 0,
    ) -> None:
        """Take a process in, `parent` the mm it was forked from (0: none).

        Descriptors are duplicated; -1 stands for one that is missing.
        """
    def remove(self, mm: int) -> None:
        """Forget a process that has ended; its slots lose their users."""
    def give(self, mm: int) -> None:
        """Its agent hashes pages, and writes them to the pool (PM_HELLO_GIVES)."""
    def stop_giving(self, mm: int) -> None:
        """It does not answer: what it has not written to the pool is not waited for."""
    def mark(self, mm: int, start: int, end: int, kind: int) -> None:
        """Note a PM_MARK_* of the protocol."""
    def set_all(self, mm: int, on: bool) -> None: ...
    def gone(self, mm: int, start: int, end: int, discarded: bool = False) -> None:
        """Hint that memory was unmapped, or only discarded, which leaves its marks."""
    def exclude(self, mm: int, start: int, end: int) -> None: ...
    # scanning
    def set_knob(self, name: str, value: int) -> None:
        """Set a knob of the kernel's name, or gap_pages or vma_reserve (pages, mappings)."""
    def begin_pass(self) -> None: ...
    def begin_mm(self, mm: int) -> bool:
        """Refresh the process's regions; False when it has none that may be merged.

        Raises:
            ProcessLookupError: the process is gone.
        """
    def scan(self, mm: int, budget: int) -> tuple[int, bool]:
        """Look at up to `budget` pages from the cursor: (pages looked at, whether it is done)."""
    def hashing(self, mm: int) -> bool:
        """Whether `scan` waits for the process's agent, which has as much to hash as may be."""
    def end_pass(self) -> None:
        """Retire and drop segments, forget what is stale."""
    # requests for agents
    def take_request(self, mm: int) -> tuple[int, bytes, list[int]] | None:
        """The next datagram for a process, or None: (seq, bytes, descriptors to send)."""
    def put_result(self, mm: int, datagram: bytes) -> None:
        """Apply a PM_RESULT. ValueError when it is not one, or answers nothing that was asked."""
    def drop_requests(self, mm: int) -> None:
        """The connection is lost: nothing that is under way will be answered."""
    def unmerge(self, mm: int, start: int, end: int) -> None:
        """Queue requests that turn what is merged in a range back into anonymous memory."""
    def unmerge_all(self) -> None:
        """run=2: the same for everything; drop the index, restart the page records."""
    # numbers
    def counters(self) -> dict[str, int]:
        """Kernel-named counters and our own: see `pagemerge.ksm`."""
    def process(self, mm: int) -> dict[str, int]: ...
    def regions(self, mm: int) -> list[tuple[int, int, int, int, int, int, str]]:
        """(start, end, pages seen, merged, zero, unshared, name) of each region."""
    def trace(self, on: bool) -> None: ...
    def take_events(self) -> tuple[list[tuple[str, float, int, int, int, int]], int]:
        """((name, monotonic seconds, mm, address, slot, err)…, lost) since the last call."""
    def page_merged(self, mm: int, address: int) -> bool: ...

def inject(pid: int, calls: list[tuple[int, ...]]) -> tuple[list[int], int]:
    """System calls (number, arguments...) made by another process, in one stop of one thread.

    What each returned (0 or -errno), and for how many nanoseconds the thread stood still. OSError:
    see pm_inject in native/core/inject.h.
    """

def slice_end(
    pagemap: int, kpageflags: int, start: int, end: int, pages: int, present: int, merged: int
) -> tuple[int, int, int, int]:
    """Where a part of memory that begins at `start` ends, so that unmerging it is quick.

    The files' descriptors (kpageflags -1: without), and the most that it may have; gives its end
    and what it has: pages, of these present ones, of these merged ones.
    """

def check_message(datagram: bytes, to_daemon: bool) -> None:
    """ValueError, with the reason, where a datagram is not well-formed."""

def parse_maps(text: bytes) -> list[tuple[int, int, str, int, int, int, str]]:
    """Lines of /proc/PID/maps: (start, end, perms, offset, dev, inode, path)."""

@final
class Census:
    """What the present anonymous pages of processes hold, by hash; see native/core/census.h."""

    def __new__(cls, sample: int = 1, salt: int = 0, threads: int = 0) -> Self: ...
    def add_process(self, pid: int, pagemap_fd: int, mem_fd: int = -1, /) -> int:
        """`mem_fd` is /proc/PID/mem: without it, reading unshares what fork left shared."""
    def add_file(self, fd: int, /) -> int: ...
    def add_region(self, space: int, start: int, end: int, offset: int = 0, /) -> int:
        """Spaces and addresses in ascending order; whole pages."""
    def read(self) -> None:
        """Read everything; InterruptedError after `cancel`."""
    def look_again(self) -> None: ...
    def progress(self) -> tuple[int, int]: ...
    def cancel(self) -> None: ...
    def group(
        self, max_page_sharing: int, parties: list[tuple[bytes, int]], top: int = 0, /
    ) -> tuple[dict[str, Any], list[bytes], list[tuple[int, int, int, int, int, int, int]]]:
        """Once: (totals, matrices of doubles, top contents).

        A party is a packed uint32 for each region; a content is (hash, pages, frames, spaces,
        regions, region, page).
        """
    def runs(self, gap_pages: int, /) -> tuple[int, int, int, list[int]]:
        """After `group`: (runs, pages, gap pages, runs of 1, 2-3, 4-7 ... pages)."""
    def select(self) -> tuple[bytes, bytes]:
        """After `group`: regions, the most useful first (uint32), and pages saved (double)."""
    def regions(self) -> bytes: ...
    def spaces(self) -> list[tuple[int, int]]:
        """(0 read, 1 gone, 2 refused, 3 failed; errno) of each space."""
    def held_bytes(self) -> int: ...
    def frames_known(self) -> bool: ...
    def huge_known(self) -> bool: ...
