"""Each cause is found on a machine made up to have it, with the files that show it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pagemerge.errors import ProcessGoneError
from pagemerge.kernel.doctor import (
    MACHINE_CHECKS,
    PROCESS_CHECKS,
    Contents,
    Facts,
    Machine,
    ProcessFacts,
    Severity,
    diagnose,
    read_facts,
)

RECORDED = Path(__file__).parents[2] / "machines" / "6.18"
PID = 1001
MIB_KB = 1024
HEALTHY = {
    "run": 1,
    "pages_to_scan": 1000,
    "sleep_millisecs": 20,
    "full_scans": 20,
    "pages_shared": 100,
    "pages_sharing": 900,
    "pages_unshared": 100,
    "pages_volatile": 10,
    "general_profit": 3_600_000,
}
MEMINFO = "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\nSwapFree: 1000000 kB\n"


class MadeUp:
    """A machine as files; well at first, with one process whose memory is merged."""

    def __init__(self, root: Path) -> None:
        self.proc, self.sys = root / "proc", root / "sys"
        shutil.copytree(RECORDED / "proc", self.proc)
        shutil.copytree(RECORDED / "sys", self.sys)
        self.ksm(**HEALTHY)
        (self.proc / "meminfo").write_text(MEMINFO)
        for pid in (1002, 1003):
            shutil.rmtree(self.proc / str(pid))
        self.process()

    def ksm(self, **values: int | str) -> None:
        for name, value in values.items():
            (self.sys / "kernel/mm/ksm" / name).write_text(f"{value}\n")

    def two_nodes(self) -> None:
        self.ksm(merge_across_nodes=0)
        nodes = self.sys / "devices/system/node"
        nodes.mkdir(parents=True)
        (nodes / "has_memory").write_text("0-1\n")

    def agent(self) -> None:
        """Map the engine's agent."""
        smaps = self.proc / str(PID) / "smaps"
        text = smaps.read_text()
        rest = text.split("\n", 1)[1]
        path = "/usr/lib/libpagemerge-agent.so"
        smaps.write_text(f"{text}600000000000-600000400000 r--p 00000000 08:01 77 {path}\n{rest}")

    def kernel_thread(self) -> None:
        for name in ("smaps", "ksm_stat"):
            (self.proc / str(PID) / name).write_text("")

    def process(
        self,
        flags: str = "rd wr mr mw me ac mg",
        merging: int = 900,
        items: int = 1024,
        pinned: int = 0,
        **kilobytes: int,
    ) -> None:
        """Give the process one region, of 4 MiB unless told otherwise."""
        sizes = {
            "Size": 4 * MIB_KB,
            "Rss": 4 * MIB_KB,
            "Shared_Dirty": 3600,
            "Anonymous": 4 * MIB_KB,
            "KSM": 3600,
            "AnonHugePages": 0,
            "Swap": 0,
            **kilobytes,
        }
        folder = self.proc / str(PID)
        lines = [f"{name}: {size} kB" for name, size in sizes.items()]
        text = "\n".join(["7f0000000000-7f0000400000 rw-p 00000000 00:00 0", *lines])
        (folder / "smaps").write_text(f"{text}\nVmFlags: {flags}\n")
        (folder / "status").write_text(f"Name:\tpython\nVmPin:\t{pinned} kB\n")
        marked = "yes" if "mg" in flags else "no"
        (folder / "ksm_stat").write_text(
            f"ksm_rmap_items {items}\nksm_zero_pages 0\nksm_merging_pages {merging}\n"
            f"ksm_process_profit {merging * 4096 - items * 64}\n"
            f"ksm_merge_any: no\nksm_mergeable: {marked}\n"
        )

    def facts(self, *pids: int) -> Facts:
        return read_facts(pids, look_seconds=0, proc=self.proc, sys=self.sys)


@pytest.fixture
def machine(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path)


def test_nothing_is_said_of_a_machine_that_is_well(machine: MadeUp) -> None:
    assert diagnose(machine.facts()) == []
    assert diagnose(machine.facts(PID)) == []


UNMARKED = "rd wr mr mw me ac"
FILES: dict[str, tuple[Callable[[MadeUp], None], Severity, str]] = {
    "no_ksm": (
        lambda m: shutil.rmtree(m.sys / "kernel/mm/ksm"),
        Severity.PROBLEM,
        "/sys/kernel/mm/ksm",
    ),
    "not_running": (
        lambda m: m.ksm(run=0, pages_shared=0),
        Severity.PROBLEM,
        "/sys/kernel/mm/ksm/run",
    ),
    "unmerged": (lambda m: m.ksm(run=2), Severity.PROBLEM, "/sys/kernel/mm/ksm/run"),
    "counters_frozen": (
        lambda m: m.ksm(run=0),
        Severity.NOTE,
        "/sys/kernel/mm/ksm/pages_shared",
    ),
    "scans_nothing": (
        lambda m: m.ksm(pages_to_scan=0),
        Severity.PROBLEM,
        "/sys/kernel/mm/ksm/pages_to_scan",
    ),
    "long_sleep": (
        lambda m: m.ksm(sleep_millisecs=60_000),
        Severity.PROBLEM,
        "/sys/kernel/mm/ksm/sleep_millisecs",
    ),
    "too_few_passes": (
        lambda m: m.ksm(full_scans=1, pages_shared=0, pages_sharing=0, pages_volatile=900),
        Severity.WARNING,
        "/sys/kernel/mm/ksm/full_scans",
    ),
    "slow_pass": (
        lambda m: m.ksm(pages_to_scan=1, sleep_millisecs=1000),
        Severity.WARNING,
        "/sys/kernel/mm/ksm/pages_to_scan",
    ),
    "advisor_drives": (
        lambda m: m.ksm(advisor_mode="none [scan-time]"),
        Severity.NOTE,
        "/sys/kernel/mm/ksm/advisor_mode",
    ),
    "nodes_apart": (
        lambda m: m.two_nodes(),
        Severity.WARNING,
        "/sys/devices/system/node/has_memory",
    ),
    "sharing_limit": (
        lambda m: m.ksm(stable_node_chains=1, stable_node_dups=300),
        Severity.WARNING,
        "/sys/kernel/mm/ksm/stable_node_dups",
    ),
    "zero_pages_apart": (
        lambda m: m.ksm(use_zero_pages=1, ksm_zero_pages=5000),
        Severity.NOTE,
        "/sys/kernel/mm/ksm/ksm_zero_pages",
    ),
    "mostly_volatile": (
        lambda m: m.ksm(pages_volatile=90_000),
        Severity.WARNING,
        "/sys/kernel/mm/ksm/pages_volatile",
    ),
    "contents_differ": (
        lambda m: m.ksm(pages_unshared=90_000),
        Severity.WARNING,
        "/sys/kernel/mm/ksm/pages_unshared",
    ),
    "ksmd_busy": (
        lambda m: m.ksm(sleep_millisecs=0),
        Severity.WARNING,
        "/sys/kernel/mm/ksm/sleep_millisecs",
    ),
    "costs_more": (
        lambda m: m.ksm(general_profit=-64),
        Severity.WARNING,
        "/sys/kernel/mm/ksm/general_profit",
    ),
    "breakage": (
        lambda m: m.ksm(pages_sharing=2_000_000),
        Severity.PROBLEM,
        "/proc/meminfo",
    ),
    "not_mergeable": (
        lambda m: m.process(UNMARKED, merging=0, items=0),
        Severity.PROBLEM,
        f"/proc/{PID}/smaps",
    ),
    "never_mergeable": (
        lambda m: m.process("rd wr mr mw me sh", merging=0, items=0, Anonymous=0),
        Severity.WARNING,
        f"/proc/{PID}/smaps",
    ),
    "file_backed": (
        lambda m: m.process(Anonymous=16, items=4, merging=4, Shared_Dirty=16, KSM=16),
        Severity.NOTE,
        f"/proc/{PID}/smaps",
    ),
    "not_touched": (
        lambda m: m.process(Rss=4, Anonymous=4, Shared_Dirty=0, KSM=0, merging=0, items=1),
        Severity.WARNING,
        f"/proc/{PID}/smaps",
    ),
    "not_visited": (
        lambda m: m.process(merging=0, items=10, KSM=0, Shared_Dirty=0),
        Severity.WARNING,
        f"/proc/{PID}/ksm_stat",
    ),
    "in_huge_pages": (
        lambda m: m.process(AnonHugePages=2048),
        Severity.NOTE,
        f"/proc/{PID}/smaps",
    ),
    "swapped": (lambda m: m.process(Swap=4096), Severity.WARNING, f"/proc/{PID}/smaps"),
    "pinned": (lambda m: m.process(pinned=4000), Severity.WARNING, f"/proc/{PID}/status"),
    "fork_shared": (
        lambda m: m.process(Shared_Dirty=4 * MIB_KB, KSM=0, merging=0),
        Severity.NOTE,
        f"/proc/{PID}/smaps",
    ),
    "process_costs_more": (
        lambda m: m.process(merging=1),
        Severity.NOTE,
        f"/proc/{PID}/ksm_stat",
    ),
    "engine_merges": (
        lambda m: m.agent(),
        Severity.NOTE,
        f"/proc/{PID}/maps",
    ),
    "no_memory": (
        lambda m: m.kernel_thread(),
        Severity.PROBLEM,
        f"/proc/{PID}/smaps",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_cause_is_found_in_the_files(machine: MadeUp, name: str) -> None:
    spoil, severity, file = FILES[name]
    spoil(machine)
    found = {finding.name: finding for finding in diagnose(machine.facts(PID))}
    assert name in found
    assert found[name].severity is severity
    assert file in {evidence.file for evidence in found[name].evidence}


def test_nobody_having_asked_for_merging_is_told(machine: MadeUp) -> None:
    machine.process(UNMARKED, merging=0, items=0)
    machine.ksm(pages_shared=0, pages_sharing=0, pages_unshared=0, pages_volatile=0)
    found = diagnose(machine.facts())
    assert [finding.name for finding in found] == ["nobody_registered"]
    assert "pagemerge enable PID" in found[0].cure


def test_most_of_it_not_being_marked_is_told() -> None:
    process = ProcessFacts(
        pid=5, comm="x", marked_regions=1, marked_anonymous=4096, able_anonymous=1 << 30
    )
    assert "little_marked" in names(Facts(machine=WELL, processes=(process,)))


WELL = Machine(
    knobs={"run": 1, "smart_scan": 1, "sleep_millisecs": 20, "use_zero_pages": 0},
    counters={"pages_scanned": 1000, "pages_skipped": 1000, "full_scans": 9},
    later={"pages_scanned": 1100, "pages_skipped": 1000, "full_scans": 9},
    look_seconds=0.5,
    ksmd_cpu_seconds=0.01,
    vmstat={"cow_ksm": 1, "ksm_swpin_copy": 0},
)
ALIKE = Contents(
    present=1000, merging=900, zero=0, volatile=0, fork_shared=0, already=0, look_seconds=0.5
)


def names(facts: Facts) -> set[str]:
    return {finding.name for finding in diagnose(facts)}


def told(machine: Machine) -> set[str]:
    marked = ProcessFacts(pid=5, comm="x", marked_regions=1)
    assert names(Facts(machine=WELL, processes=(marked,))) == set()
    return names(Facts(machine=machine, processes=(marked,)))


def test_what_grows_between_two_looks_is_told_by_its_rate() -> None:
    skipping = {"pages_scanned": 1100, "pages_skipped": 1800, "full_scans": 9}
    assert told(replace(WELL, later=skipping)) == {"smart_scan_skips"}
    assert told(replace(WELL, ksmd_cpu_seconds=0.4)) == {"ksmd_busy"}
    busy = {**WELL.later, "full_scans": 49, "pages_sharing": 0}
    assert told(replace(WELL, ksmd_cpu_seconds=0.2, later=busy)) == {"scans_in_vain"}
    assert told(replace(WELL, ksmd_cpu_seconds=0.2, later=busy | {"pages_sharing": 1})) == set()
    assert told(replace(WELL, vmstat={"cow_ksm": 5000})) == {"breaks_often"}
    assert told(replace(WELL, vmstat={"ksm_swpin_copy": 1})) == {"swap_copies"}


def test_merging_memory_of_two_users_is_told() -> None:
    pair = tuple(
        ProcessFacts(pid=pid, comm="x", user=user, marked_regions=1, marked_ksm=4096)
        for pid, user in ((5, "ann"), (6, "bob"))
    )
    assert names(Facts(machine=WELL, processes=pair)) == {"side_channel"}
    alone = (pair[0], replace(pair[1], user="ann"))
    assert names(Facts(machine=WELL, processes=alone)) == set()


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("nothing_equal", replace(ALIKE, merging=3)),
        ("rewritten", replace(ALIKE, volatile=700)),
        ("zero_unused", replace(ALIKE, zero=600)),
    ],
)
def test_what_the_memory_holds_is_told(name: str, contents: Contents) -> None:
    pair = tuple(ProcessFacts(pid=pid, comm="x", marked_regions=1) for pid in (5, 6))
    assert names(Facts(machine=WELL, processes=pair, contents=ALIKE)) == set()
    found = diagnose(Facts(machine=WELL, processes=pair, contents=contents))
    assert [finding.name for finding in found] == [name]  # once, not for each process


def test_every_check_is_tested_here() -> None:
    others = {
        *("nobody_registered", "little_marked", "smart_scan_skips", "breaks_often"),
        *(
            "scans_in_vain",
            "swap_copies",
            "side_channel",
            "nothing_equal",
            "rewritten",
            "zero_unused",
        ),
    }
    checks = {check.__name__ for check in (*MACHINE_CHECKS, *PROCESS_CHECKS)}
    assert checks == {*FILES, *others}


def test_the_gravest_comes_first(machine: MadeUp) -> None:
    machine.ksm(run=0, advisor_mode="none [scan-time]", general_profit=-1)
    ranks = [list(Severity).index(finding.severity) for finding in diagnose(machine.facts())]
    assert ranks == sorted(ranks)
    assert ranks[0] == 0


def test_half_of_the_spare_memory_is_a_warning(machine: MadeUp) -> None:
    machine.ksm(pages_sharing=900_000)
    found = [finding for finding in diagnose(machine.facts()) if finding.name == "breakage"]
    assert [finding.severity for finding in found] == [Severity.WARNING]


@pytest.mark.parametrize("recorded", sorted(RECORDED.parent.glob("*/kernel")), ids=str)
def test_recorded_kernels_are_examined_as_far_as_they_tell(recorded: Path, tmp_path: Path) -> None:
    shutil.copytree(recorded.parent, tmp_path / "m")
    (tmp_path / "m/proc/meminfo").write_text(MEMINFO)
    facts = read_facts((), look_seconds=0, proc=tmp_path / "m/proc", sys=tmp_path / "m/sys")
    if list((recorded.parent / "proc").glob("*/ksm_merging_pages")):
        assert facts.unread == ()
        assert facts.processes
    else:  # before Linux 5.19
        assert ["5.19" in text for text in facts.unread] == [True]
    for finding in diagnose(facts):
        assert all(evidence.value is not None for evidence in finding.evidence)


def test_a_kernel_that_tells_nothing_of_processes_is_no_machine_without_any(
    machine: MadeUp,
) -> None:
    for name in ("ksm_stat", "ksm_merging_pages"):
        for pid in (40, PID):
            (machine.proc / str(pid) / name).unlink()
    machine.ksm(pages_shared=0, pages_sharing=0, pages_unshared=0, pages_volatile=0)
    facts = machine.facts()
    assert [text for text in facts.unread if "5.19" in text]
    assert diagnose(facts) == []


def test_a_process_that_has_ended_is_named(machine: MadeUp) -> None:
    with pytest.raises(ProcessGoneError):
        machine.facts(4242)
