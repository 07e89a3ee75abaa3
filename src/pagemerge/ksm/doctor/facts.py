"""What the checks look at: a machine's and its processes' numbers, read once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pagemerge.ksm.interface import Process
from pagemerge.ksm.values import KnobValue
from pagemerge.units import PAGE_SIZE, render_name

__all__ = ["Contents", "Facts", "Machine", "ProcessFacts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine; what could not be read, or is lacking in this kernel, is None or not there.

    Attributes:
        implementation: whose merging, "kernel" or "engine".
        place: what the name of a knob or counter is put behind to say where it stands.
        ksmd_place: where ksmd's CPU time stands.
        has_ksm: whether it is there at all: /sys/kernel/mm/ksm, the engine's daemon.
        counters: at the first look; `later` at the second.
        look_seconds: between the two.
        ksmd_cpu_seconds: CPU time of ksmd between the two.
        vmstat: growth of the counters cow_ksm and ksm_swpin_copy between the two.
        vmstat_total: the same since boot.
        meminfo: bytes by the kernel's names.
        nodes: NUMA nodes that have memory.
        thp: what /sys/kernel/mm/transparent_hugepage/enabled is set to.
        max_ptes_shared: khugepaged's; pages of a huge page that may be shared when it is made.
        scan_ns: CPU time of ksmd for a page, mean since boot; None before the first.
    """

    implementation: str = "kernel"
    place: str = "/sys/kernel/mm/ksm/"
    ksmd_place: str = "/proc/PID/stat of ksmd"
    has_ksm: bool = True
    knobs: Mapping[str, KnobValue | None] = field(default_factory=dict)
    counters: Mapping[str, int | None] = field(default_factory=dict)
    later: Mapping[str, int | None] = field(default_factory=dict)
    look_seconds: float = 0.0
    ksmd_cpu_seconds: float | None = None
    vmstat: Mapping[str, int] = field(default_factory=dict)
    vmstat_total: Mapping[str, int] = field(default_factory=dict)
    meminfo: Mapping[str, int] = field(default_factory=dict)
    nodes: int = 1
    thp: str | None = None
    max_ptes_shared: int | None = None
    scan_ns: float | None = None

    def command(self, text: str) -> str:
        """Give a command of this package that is meant for this implementation."""
        return f"pagemerge {text} --ksm {self.implementation}"

    def knob(self, name: str) -> int | None:
        """Give a numeric knob; None where this kernel has none."""
        value = self.knobs.get(name)
        return value if isinstance(value, int) else None

    def count(self, name: str) -> int:
        """Give a counter at the second look; 0 where this kernel has none."""
        return self.later.get(name, self.counters.get(name)) or 0

    def growth(self, name: str) -> int:
        """Say how far a counter came between the looks."""
        return self.count(name) - (self.counters.get(name) or 0)

    @property
    def rmap_items(self) -> int:
        """Pages that ksmd has a record of."""
        names = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")
        return sum(map(self.count, names))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """A process; sizes in bytes.

    Attributes:
        ksm: its ksm_stat; None where it may not be read.
        has_smaps: whether its smaps could be read; the sizes below say nothing otherwise.
        marked_regions: how many regions are marked mergeable; the other marked_* are their sums.
        marked_file: present in them, but pages of a file (nobody has written to them).
        marked_shared_dirty: pages that fork left shared, and merged ones.
        marked_ksm: on KSM pages; None before Linux 6.6.
        able_anonymous: anonymous memory that is not marked, but could be.
        unable: present memory that never can be merged, by reason.
        has_agent: whether the engine's agent is mapped; None where that may not be seen.
        pinned: pages that a device may write to (VmPin of /proc/PID/status).
    """

    pid: int
    comm: str
    user: str = ""
    ksm: Process | None = None
    has_smaps: bool = True
    marked_regions: int = 0
    marked_size: int = 0
    marked_anonymous: int = 0
    marked_file: int = 0
    marked_huge: int = 0
    marked_swap: int = 0
    marked_shared_dirty: int = 0
    marked_ksm: int | None = None
    able_anonymous: int = 0
    unable: Mapping[str, int] = field(default_factory=dict)
    has_agent: bool | None = None
    pinned: int = 0

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{render_name(self.comm)}[{self.pid}]"

    @property
    def stat_file(self) -> str:
        """Where the numbers of `ksm` stand."""
        return self.file("ksm_stat")

    def file(self, name: str) -> str:
        """Name a file of its folder."""
        return f"/proc/{self.pid}/{name}"

    @property
    def merged_pages(self) -> int:
        """Its pages that are merged, by ksm_stat; those that lead to the zero page included."""
        if self.ksm is None:
            return (self.marked_ksm or 0) // PAGE_SIZE
        return (self.ksm.ksm_merging_pages or 0) + (self.ksm.ksm_zero_pages or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What the marked memory of the processes holds, pages; compared among these processes only.

    Attributes:
        merging: have an equal page elsewhere (zero pages apart).
        zero: are all zero.
        volatile: changed between the two looks.
        fork_shared: are the same physical page as another, since fork.
        already: are merged now.
    """

    present: int
    merging: int
    zero: int
    volatile: int
    fork_shared: int
    already: int
    look_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that the checks look at.

    Attributes:
        were_named: whether the user named the processes; else they are those that have KSM on.
        contents: None: the memory was not read.
        unread: what could not be read, and what it would take.
    """

    machine: Machine
    processes: tuple[ProcessFacts, ...] = ()
    were_named: bool = False
    contents: Contents | None = None
    unread: tuple[str, ...] = ()
