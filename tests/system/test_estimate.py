"""Estimates of real processes, and what ksmd then really does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pagemerge.errors import CommandError, NotPermittedError
from pagemerge.insight import Estimate, EstimateOptions, estimate, find_targets
from pagemerge.insight.census import load_spaces, run_census
from pagemerge.insight.estimate import Reading, summarize
from pagemerge.memory import read_smaps, read_stat
from pagemerge.units import render_bytes
from tests.support.environment import require
from tests.support.kernel_ksm import KernelKsmControl
from tests.support.processes import Child, read_smaps_rollup
from tests.support.swap import swap_file
from tests.support.users import package_for, python_for
from tests.support.victims import compiled, holder
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("kernel_ksm_lock")  # they register with it

PAGES = 2000
NOBODY = 65534


def look(*children: Child, **options: float) -> Estimate:
    """Estimate what these processes have marked."""
    targets = find_targets(pids=[child.pid for child in children])
    return estimate(targets, EstimateOptions(mergeable=True, **options))  # type: ignore[arg-type]


def test_equal_pages_of_two_processes_are_found() -> None:
    with holder({}) as one, holder({}) as two:
        for child in (one, two):
            child.ask(f"fill same {PAGES}")
            child.ask("mark")
        result = look(one, two)
    assert result.pages_shared == result.pages_sharing == PAGES
    assert result.between_pages == PAGES
    assert result.within_pages == 0
    assert result.engine is not None
    assert result.engine.runs == 2
    assert [process.present_pages for process in result.processes] == [PAGES, PAGES]


def test_what_fork_left_shared_merges_only_with_another_page() -> None:
    with holder({}) as parent, holder({}) as other:
        parent.ask(f"fill same {PAGES}")
        parent.ask("mark")
        digest = parent.ask("sum")
        read, write = os.pipe()
        child = int(parent.ask(f"fork /proc/{os.getpid()}/fd/{read} {digest}"))
        try:
            targets = find_targets(pids=[parent.pid, child])
            alone = estimate(targets, EstimateOptions(mergeable=True))
            other.ask(f"fill same {PAGES}")
            other.ask("mark")
            targets = find_targets(pids=[parent.pid, child, other.pid])
            three = estimate(targets, EstimateOptions(mergeable=True))
        finally:
            os.write(write, b".")
            assert parent.ask(f"wait {child}") == "0"
            os.close(read)
            os.close(write)
    assert alone.pages_sharing == 0
    assert alone.pages_volatile == PAGES  # the child's, as ksmd counts them
    assert three.pages_sharing == 2 * PAGES
    assert three.frames_saved == PAGES


def test_pages_that_change_between_the_looks_are_volatile() -> None:
    source = (
        "import mmap, sys, threading\n"
        "m = mmap.mmap(-1, 200 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "m[:] = b'x' * len(m)\n"
        "m.madvise(12)\n"
        "def work():\n"
        "    n = 0\n"
        "    while True:\n"
        "        n += 1\n"
        "        for page in range(50):\n"
        "            m[page * 4096 : page * 4096 + 8] = n.to_bytes(8, 'big')\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "print('up', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with Child(source) as child:
        assert child.read_line() == "up"
        result = look(child, settle_seconds=0.3)
    assert result.processes[0].volatile_pages == 50
    assert (result.pages_shared, result.pages_sharing) == (1, 149)


def test_pages_that_were_never_touched_are_left_alone() -> None:
    with Child(
        "import mmap, sys\n"
        "m = mmap.mmap(-1, 1 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "m.madvise(15); m.madvise(12)\n"
        "m[0] = 1; m[999 * 4096] = 1; sum(m[i * 4096] for i in range(2000, 2100))\n"
        "print('up', flush=True); sys.stdin.read()\n"
    ) as child:
        assert child.read_line() == "up"
        result = look(child)
        # Of this mapping alone: the interpreter itself goes on to touch pages while it waits.
        resident = [smap.sizes["Rss"] for smap in read_smaps(child.pid) if smap.is_mergeable]
    assert resident == [2 * 4096]
    assert result.present_pages == 2  # reading maps the kernel's zero page, which is no candidate
    assert result.pages_sharing == 1


@pytest.mark.parametrize("protection", [0, 2, 4])  # none, write, execute
def test_pages_that_the_program_may_not_read_are_merged_and_counted(protection: int) -> None:
    source = (
        "import ctypes, mmap, sys\n"
        "m = mmap.mmap(-1, 300 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "m[:] = b'x' * len(m)\n"
        "m.madvise(12)\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "protection = int(sys.argv[1])\n"
        "assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(at), 200 * 4096, protection)\n"
        "print('up', flush=True); sys.stdin.read()\n"
    )
    with Child([sys.executable, "-c", source, str(protection)]) as child:
        assert child.read_line() == "up"
        result = look(child, settle_seconds=0.0)
    assert (result.pages_shared, result.pages_sharing, result.pages_volatile) == (2, 298, 0)


def test_what_is_in_swap_is_left_there_and_said(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "root, for a swap file")
    source = (
        "import mmap, os, sys\n"
        "m = mmap.mmap(-1, 2000 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "m[:] = os.urandom(len(m))\n"
        "m.madvise(12)\n"
        "m.madvise(21, 0, 1000 * 4096)\n"  # MADV_PAGEOUT
        "print('up', flush=True); sys.stdin.read()\n"
    )
    with swap_file(tmp_path), Child(source) as child:
        assert child.read_line() == "up"

        def swapped() -> int:
            return sum(s.sizes["Swap"] for s in read_smaps(child.pid) if s.is_mergeable)

        before = swapped()
        result = look(child, settle_seconds=0.0)
        assert 0 < before == swapped()
    assert result.present_pages == 2000 - before // 4096
    assert f"{render_bytes(before)} more are in swap" in result.notes[0]


def test_what_is_unmapped_before_it_is_read_costs_a_note() -> None:
    with holder({}) as child:
        child.ask(f"fill same {5 * PAGES}")
        targets, options = find_targets(pids=[child.pid]), EstimateOptions()
        with load_spaces(targets.items) as spaces:
            child.ask("drop")
            census, seconds = run_census(
                spaces, sample=1, salt=0, threads=1, settle_seconds=None, progress=None
            )
            regions = [(space, region) for space in spaces for region in space.regions]
            result = summarize(Reading(spaces, regions, census, seconds, options, ()))
        assert result.present_pages
        (note,) = (note for note in result.notes if "gone before they were read" in note)
        assert note.startswith(spaces[0].target.label)
        again = estimate(targets)
    assert not any("gone before" in note for note in again.notes)


def run_as_nobody(source: str, *arguments: str) -> Child:
    """Run Python source as another user."""
    argv = [python_for(NOBODY), "-c", source, *arguments]
    return Child(argv, env=package_for(NOBODY), user=NOBODY)


def require_other_user() -> None:
    """Skip where nobody else may run this interpreter."""
    require(os.geteuid() == 0, "root, to become another user")
    try:
        with run_as_nobody("import numpy, pagemerge; print('up')") as child:
            child.read_line()
    except EOFError:
        require(False, "an interpreter with numpy that other users may run")


@pytest.mark.parametrize("user", [None, NOBODY])
@pytest.mark.parametrize("lacks", ["", "pagemap_scan"])
def test_the_kernels_zero_page_is_none_to_save_also_on_older_kernels(
    lacks: str, user: int | None
) -> None:
    """Before Linux 6.7 nothing but its frame tells it from zeros that a program wrote."""
    if user:
        require_other_user()
    source = (
        "import json, mmap, os\n"
        "from pagemerge.insight import EstimateOptions, estimate, find_targets\n"
        "m = mmap.mmap(-1, 1000 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "m.madvise(15); m.madvise(12)\n"
        "m[:10 * 4096] = bytes(10 * 4096); m[999 * 4096] = 1\n"
        "sum(m[i * 4096] for i in range(200, 300))\n"
        "targets = find_targets(pids=[os.getpid()])\n"
        "r = estimate(targets, EstimateOptions(mergeable=True, settle_seconds=0.0))\n"
        "print(json.dumps((r.present_pages, r.zero_pages, r.notes)), flush=True)\n"
    )
    argv = [str(compiled("deny")), lacks] if lacks else []
    with Child([*argv, python_for(user), "-c", source], env=package_for(user), user=user) as child:
        present, zero, notes = json.loads(child.read_line())
    assert (present, zero) == (11, 10)
    assert any("which pages are huge is not told" in note for note in notes) == bool(lacks)


def test_huge_pages_that_would_be_split_are_counted() -> None:
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    require(enabled.exists() and "[never]" not in enabled.read_text(), "transparent huge pages")
    source = (
        "import mmap, random, sys\n"
        "m = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "m.madvise(14); m.madvise(12)\n"
        "m[:] = random.Random(5).randbytes(len(m))\n"
        "print('up', flush=True); sys.stdin.read()\n"
    )
    with Child(source) as one, Child(source) as two:
        assert one.read_line() == two.read_line() == "up"
        result = look(one, two)
    require(result.huge_pages, "a huge page to be had")
    assert result.split_huge_pages == result.huge_pages // 512
    assert result.pages_sharing == 2048


def test_a_process_given_twice_and_one_that_has_ended() -> None:
    with holder({}) as child, holder({}) as gone:
        child.ask("same x 10")
        child.ask("mark")
        targets = find_targets([str(child.pid), str(child.pid), str(gone.pid)])
        assert "given 2 times" in targets.notes[0]
        gone.kill()
        result = estimate(targets, EstimateOptions(mergeable=True))
    assert result.pages_sharing == 9
    assert any("ended" in note for note in result.notes)


def test_a_process_that_ends_while_it_is_read_costs_a_note() -> None:
    # A process that starts another program gives up its memory in between, at any instant.
    source = (
        "import os, sys, mmap\n"
        "m = mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "m[:] = os.urandom(1 << 20) * 64\n"
        "print('up', flush=True); sys.stdin.readline()\n"
        "os.execv('/bin/cat', ['cat'])\n"
    )
    with holder({}) as stays, Child(source) as leaves:
        stays.ask("same x 10")
        assert leaves.read_line() == "up"
        targets = find_targets(pids=[stays.pid, leaves.pid])

        def progress(what: str, done: int, total: int) -> None:
            del done, total
            if what == "settling" and Path(f"/proc/{leaves.pid}/comm").read_text() != "cat\n":
                leaves.send("go")
                wait_until(
                    lambda: Path(f"/proc/{leaves.pid}/comm").read_text() == "cat\n", "the exec"
                )

        result = estimate(targets, EstimateOptions(settle_seconds=0.3), progress)
    note = {process.pid: process.note for process in result.processes}
    assert "ended, or started another program" in note[leaves.pid]
    assert note[stays.pid] == ""
    assert result.present_pages > 0


def test_kernel_threads_and_zombies_are_named() -> None:
    with holder({}) as child:
        child.ask("same x 10")
        zombie = subprocess.Popen([sys.executable, "-c", ""])
        try:
            wait_until(lambda: read_stat(zombie.pid).state == "Z", "a zombie")
            notes = find_targets(pids=[child.pid, zombie.pid]).notes
            assert "zombie" in notes[0]
            with pytest.raises(CommandError, match="zombie"):
                find_targets(pids=[zombie.pid])
        finally:
            zombie.wait()
    with contextlib.suppress(FileNotFoundError):
        if read_stat(2).is_kernel_thread:
            with pytest.raises(CommandError, match="kernel thread"):
                find_targets(pids=[2])


def test_without_permission_it_says_what_would_help() -> None:
    require_other_user()
    with holder({}) as child:
        child.ask("same x 10")
        source = (
            "import sys\n"
            "from pagemerge.errors import NotPermittedError\n"
            "from pagemerge.insight import estimate, find_targets\n"
            "try:\n"
            "    estimate(find_targets(sys.argv[1:]))\n"
            "except NotPermittedError as error:\n"
            "    print(error.exit_status, error.hint)\n"
        )
        with run_as_nobody(source, str(child.pid)) as nobody:
            line = nobody.read_line()
    assert line.startswith(f"{NotPermittedError.exit_status} run as their user")


def test_another_user_sees_the_same_of_its_own_processes() -> None:
    """Without frame numbers, what fork shares is known by its address."""
    require_other_user()
    source = (
        "import json, mmap, os, random, sys\n"
        "from pagemerge.insight import EstimateOptions, estimate, find_targets\n"
        "m = mmap.mmap(-1, 100 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "m[:] = random.Random(1).randbytes(len(m)); m.madvise(12)\n"
        "r, w = os.pipe()\n"
        "pids = []\n"
        "for rewrites in (False, True):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        if rewrites: m[:] = bytes(m)\n"
        "        os.write(w, b'.'); sys.stdin.read(); os._exit(0)\n"
        "    os.read(r, 1); pids.append(pid)\n"
        "sums = []\n"
        "for some in (pids[:1], pids):\n"
        "    targets = find_targets(pids=[os.getpid(), *some])\n"
        "    e = estimate(targets, EstimateOptions(mergeable=True))\n"
        "    sums.append([e.pages_sharing, e.frames_saved, e.frames_known])\n"
        "print(json.dumps(sums), flush=True)\n"
    )
    with run_as_nobody(source) as nobody:
        sums = json.loads(nobody.read_line())
    assert sums == [[0, 0, False], [200, 100, False]]


def test_the_command_prints_json_with_the_kernels_names(tmp_path: Path) -> None:
    with holder({}) as one, holder({}) as two:
        for child in (one, two):
            child.ask("fill same 100")
            child.ask("mark")
        argv = [sys.executable, "-m", "pagemerge", "estimate", str(one.pid), str(two.pid)]
        html = tmp_path / "report.html"
        done = subprocess.run(
            [*argv, "--mergeable", "--json", "--html", html], capture_output=True, check=True
        )
        text = subprocess.run(argv, capture_output=True, check=True, text=True).stdout
    data = json.loads(done.stdout)
    assert (data["pages_shared"], data["pages_sharing"]) == (100, 100)
    assert len(data["processes"]) == len(data["regions"]) == 2
    assert "<svg" in html.read_text()
    assert "pages_sharing" in text


@pytest.mark.ksm
@pytest.mark.parametrize("use_zero_pages", [0, 1])
@pytest.mark.parametrize("limit", [256, 7])
def test_ksmd_reaches_what_was_predicted(
    kernel_ksm: KernelKsmControl, use_zero_pages: int, limit: int
) -> None:
    kernel_ksm.write("use_zero_pages", use_zero_pages)
    kernel_ksm.write("max_page_sharing", limit)
    kernel_ksm.write("pages_to_scan", 100_000)
    kernel_ksm.write("sleep_millisecs", 1)
    with holder({}) as one, holder({}) as two, holder({}) as three, holder({}) as four:
        for child in (one, two):
            child.ask("fill twins 500")
        three.ask("zero 50")
        four.ask("same y 60")
        for child in (one, two, three, four):
            child.ask("mark")
        result = look(one, two, three, four, use_zero_pages=use_zero_pages, max_page_sharing=limit)
        kernel_ksm.write("run", 1)
        kernel_ksm.wait_passes(4)
        reached = kernel_ksm.counters()
    for name in ("pages_shared", "pages_sharing", "ksm_zero_pages", "pages_unshared"):
        assert reached[name] == getattr(result, name), name
    assert reached["general_profit"] == result.general_profit
    assert reached["stable_node_chains"] == result.stable_node_chains
    assert reached["stable_node_dups"] == result.stable_node_dups


def test_looking_changes_nothing_of_what_fork_left_shared() -> None:
    """Pinning reads (process_vm_readv) would give each process a copy of its own."""
    with holder({}) as parent:
        parent.ask(f"fill same {PAGES}")
        digest = parent.ask("sum")
        read, write = os.pipe()
        child = int(parent.ask(f"fork /proc/{os.getpid()}/fd/{read} {digest}"))
        try:
            before = [read_smaps_rollup(pid)["Private_Dirty"] for pid in (parent.pid, child)]
            options = EstimateOptions(settle_seconds=0.0)
            estimate(find_targets(pids=[parent.pid, child]), options)
            after = [read_smaps_rollup(pid)["Private_Dirty"] for pid in (parent.pid, child)]
        finally:
            os.write(write, b".")
            assert parent.ask(f"wait {child}") == "0"
            os.close(read)
            os.close(write)
    assert all(now - was < PAGES * 4096 / 10 for was, now in zip(before, after, strict=True))


@pytest.mark.ksm
@pytest.mark.parametrize("use_zero_pages", [0, 1])
def test_zero_pages_of_huge_pages_are_predicted_as_the_kernel_counts_them(
    kernel_ksm: KernelKsmControl, use_zero_pages: int
) -> None:
    """Splitting maps them to the zero page since Linux 6.12, and no counter shows it."""
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    require(enabled.exists() and "[never]" not in enabled.read_text(), "transparent huge pages")
    kernel_ksm.write("use_zero_pages", use_zero_pages)
    kernel_ksm.write("pages_to_scan", 100_000)
    kernel_ksm.write("sleep_millisecs", 1)
    source = (
        "import mmap, random, sys\n"
        "m = mmap.mmap(-1, 10 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "m.madvise(14); m.madvise(12)\n"
        "r = random.Random(5)\n"
        "m[:] = b''.join(r.randbytes(4096) if i % 2 else bytes(4096) for i in range(2560))\n"
        "print('up', flush=True); sys.stdin.read()\n"
    )
    with Child(source) as one, Child(source) as two:
        assert one.read_line() == two.read_line() == "up"
        result = look(one, two, use_zero_pages=use_zero_pages)
        require(result.huge_pages, "a huge page to be had")
        kernel_ksm.write("run", 1)
        kernel_ksm.wait_passes(4)
        reached = kernel_ksm.counters()
    assert result.zero_pages == 2560
    for name in ("pages_shared", "pages_sharing", "ksm_zero_pages"):
        assert reached[name] == getattr(result, name), name
