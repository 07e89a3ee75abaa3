"""Kernels of several versions: what is there is found by looking, what is lacking is named."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from pagemerge.commands import main
from pagemerge.errors import NotSupportedError
from pagemerge.kernel import KernelKsm
from pagemerge.ksm import COUNTERS, KNOBS, PROCESS_ITEMS
from tests.support.record_machine import KSMD, MADVISED, PLAIN, PRCTL

HERE = Path(__file__).parent
RECORDED = tuple(sorted(path.parent.name for path in HERE.glob("*/kernel")))

# What the versions brought since 5.10: files of /sys/kernel/mm/ksm, of /proc/PID, lines of
# ksm_stat, lines of vmstat and of smaps.
BROUGHT = {
    "5.17": {"vmstat": {"ksm_swpin_copy"}},
    "5.18": {"vmstat": {"cow_ksm"}},
    "5.19": {"process": {"ksm_merging_pages"}},
    "6.1": {"process": {"ksm_stat"}, "ksm_stat": {"ksm_rmap_items"}},
    "6.4": {"sys": {"general_profit"}, "ksm_stat": {"ksm_merging_pages", "ksm_process_profit"}},
    "6.6": {
        "sys": {"pages_scanned", "ksm_zero_pages"},
        "ksm_stat": {"ksm_zero_pages"},
        "smaps": {"KSM"},
    },
    "6.7": {"sys": {"smart_scan", "pages_skipped"}},
    "6.8": {
        "sys": {
            "advisor_mode",
            "advisor_max_cpu",
            "advisor_min_pages_to_scan",
            "advisor_max_pages_to_scan",
            "advisor_target_scan_time",
        }
    },
    "6.14": {"ksm_stat": {"ksm_merge_any", "ksm_mergeable"}},
}
DASH = "-"
VERSIONS = ("5.10", "5.15", "6.1", "6.6", "6.12", "6.18")


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def lacking(version: str, where: str) -> set[str]:
    """What later versions brought there."""
    return {
        name
        for later, brought in BROUGHT.items()
        if numbers(later) > numbers(version)
        for name in brought.get(where, ())
    }


def without_lines(path: Path, names: set[str]) -> None:
    """Take lines away that begin with one of the names."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.split(maxsplit=1)[0].rstrip(":") not in names]
        path.write_text("".join(kept))


def imitate(version: str, folder: Path) -> Path:
    """Make the tree of a version from that of the newest kernel."""
    shutil.copytree(HERE / max(RECORDED, key=numbers), folder)
    for name in lacking(version, "sys"):
        (folder / "sys/kernel/mm/ksm" / name).unlink()
    without_lines(folder / "proc/vmstat", lacking(version, "vmstat"))
    for process in (folder / "proc").iterdir():
        if process.name.isdigit():
            for name in lacking(version, "process"):
                (process / name).unlink()
            without_lines(process / "ksm_stat", lacking(version, "ksm_stat"))
            without_lines(process / "smaps", lacking(version, "smaps"))
    return folder


class Machine:
    """A tree and its version."""

    def __init__(self, version: str, root: Path) -> None:
        self.version = version
        self.root = root
        self.ksm = KernelKsm(root / "sys/kernel/mm/ksm", root / "proc")

    def since(self, version: str) -> bool:
        return numbers(self.version) >= numbers(version)


@pytest.fixture(params=VERSIONS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    """A copy of a recorded machine, or an imitated one."""
    version: str = request.param
    folder = tmp_path / version
    if version in RECORDED:
        shutil.copytree(HERE / version, folder)
    else:
        imitate(version, folder)
    return Machine(version, folder)


@pytest.fixture
def shown(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Let the commands find the machine."""
    there = partial(KernelKsm, machine.root / "sys/kernel/mm/ksm", machine.root / "proc")
    for module in ("pagemerge.kernel", "pagemerge.kernel.ksm"):
        monkeypatch.setattr(f"{module}.KernelKsm", there)
    monkeypatch.setenv("PAGEMERGE_KSM", "kernel")
    monkeypatch.setenv("COLUMNS", "300")
    return machine


@pytest.mark.parametrize("version", RECORDED)
def test_the_recorded_kernels_have_what_their_version_brought(version: str) -> None:
    folder = HERE / version
    assert (folder / "kernel").read_text().startswith(f"{version}.")
    everything = {item.name for item in (*KNOBS, *COUNTERS) if item.since}
    files = {path.name for path in (folder / "sys/kernel/mm/ksm").iterdir()}
    assert files == everything - lacking(version, "sys")
    process = folder / "proc" / str(MADVISED)
    assert not lacking(version, "process") & {path.name for path in process.iterdir()}
    if (process / "ksm_stat").exists():
        lines = (process / "ksm_stat").read_text().splitlines()
        found = {line.split()[0].rstrip(":") for line in lines}
        assert found == {item.name for item in PROCESS_ITEMS} - lacking(version, "ksm_stat")
    assert ("\nKSM:" in (process / "smaps").read_text()) is (numbers(version) >= (6, 6))


@pytest.mark.parametrize("version", sorted(set(RECORDED) - {max(RECORDED, key=numbers)}))
def test_an_imitation_has_the_files_of_the_real_one(version: str, tmp_path: Path) -> None:
    folder = imitate(version, tmp_path / "imitated")
    for part in ("sys/kernel/mm/ksm", f"proc/{MADVISED}", f"proc/{KSMD}"):
        real = {path.name for path in (HERE / version / part).iterdir()}
        assert {path.name for path in (folder / part).iterdir()} == real


def test_what_a_version_lacks_reads_as_none(machine: Machine) -> None:
    absent = lacking(machine.version, "sys")
    for name, value in machine.ksm.knobs.read().items():
        assert (value is None) is (name in absent), name
    for counter in COUNTERS:
        value = machine.ksm.counters()[counter.name]
        assert (value is None) is (counter.name in absent or counter.engine_only), counter.name
    facts = machine.ksm.facts()
    assert facts["pid"] == KSMD
    assert ("cow_ksm" in facts) is machine.since("5.18")
    assert ("ksm_swpin_copy" in facts) is machine.since("5.17")


def test_asking_for_a_knob_that_is_lacking_names_the_version(machine: Machine) -> None:
    before = (machine.root / "sys/kernel/mm/ksm/sleep_millisecs").read_text()
    for knob in KNOBS:
        if knob.name not in lacking(machine.version, "sys"):
            continue
        with pytest.raises(NotSupportedError) as refused:
            machine.ksm.knobs.set(sleep_millisecs=5, **{knob.name: knob.default})
        assert refused.value.hint == f"Linux {knob.since} brought it"
        assert refused.value.exit_status == 3
    assert (machine.root / "sys/kernel/mm/ksm/sleep_millisecs").read_text() == before


def test_processes_are_told_as_far_as_the_version_does(machine: Machine) -> None:
    if not machine.since("5.19"):
        with pytest.raises(NotSupportedError) as refused:
            machine.ksm.processes()
        assert refused.value.hint is not None
        assert "5.19" in refused.value.hint
        return
    found = {process.pid: process for process in machine.ksm.processes()}
    assert KSMD not in found
    assert PLAIN not in found
    assert (PRCTL in found) is machine.since("6.4")
    marked = found[MADVISED]
    assert marked.comm == "python"
    assert marked.ksm_merging_pages == 72
    for name, since in (
        ("ksm_rmap_items", "6.1"),
        ("ksm_process_profit", "6.4"),
        ("ksm_zero_pages", "6.6"),
        ("ksm_merge_any", "6.14"),
        ("ksm_mergeable", "6.14"),
    ):
        assert (getattr(marked, name) is not None) is machine.since(since), name


def test_regions_tell_what_is_merged_since_linux_6_6(machine: Machine) -> None:
    (region,) = [region for region in machine.ksm.regions(MADVISED) if region.mergeable]
    assert region.present_bytes == 80 * 4096
    assert region.merged_bytes == (72 * 4096 if machine.since("6.6") else None)
    obstacles = {r.name: r.obstacle for r in machine.ksm.regions(PLAIN)}
    assert obstacles["[vdso]"] == "the kernel's own"
    assert obstacles["[heap]"] is None


def test_status_shows_what_is_lacking_as_a_dash(
    shown: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == 0
    rows = {
        line.split()[0]: line.split()[1]
        for line in capsys.readouterr().out.splitlines()[2:]
        if len(line.split()) > 1
    }
    absent = lacking(shown.version, "sys")
    for knob in KNOBS:
        assert (rows[knob.name] == DASH) is (knob.name in absent), knob.name
    assert main(["status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {
        item.name for item in (*KNOBS, *COUNTERS) if item.since and told[item.name] is None
    } == (absent)


def test_set_says_what_it_lacks(shown: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    lacks_it = not shown.since("6.7")
    assert main(["set", "smart_scan=0", "sleep_millisecs=33"]) == (3 if lacks_it else 0)
    sleep = (shown.root / "sys/kernel/mm/ksm/sleep_millisecs").read_text()
    assert (sleep == "33\n") is not lacks_it
    if lacks_it:
        assert "Linux 6.7 brought it" in capsys.readouterr().err


def test_ps_and_regions_print_what_there_is(
    shown: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["ps"])
    printed = capsys.readouterr()
    if shown.since("5.19"):
        assert status == 0
        assert str(MADVISED) in printed.out
    else:
        assert status == 3
        assert "Linux 5.19 brought" in printed.err
    assert main(["regions", str(MADVISED)]) == 0
    assert "[heap]" in capsys.readouterr().out


def test_a_kernel_without_ksm_names_what_it_takes(tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError) as refused:
        KernelKsm(tmp_path / "ksm", tmp_path)
    assert "CONFIG_KSM" in str(refused.value.hint)
