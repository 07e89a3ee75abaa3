"""`KernelKsm` on the running kernel, and on the files of kernels that lack something."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pagemerge.errors import NotSupportedError, RejectedError
from pagemerge.kernel import KernelKsm
from tests.support.victims import holder

PAGES = 64


@pytest.mark.ksm
@pytest.mark.usefixtures("kernel_ksm")
def test_equal_pages_are_merged_listed_and_unmerged() -> None:
    ksm = KernelKsm()
    with holder({}) as child:
        child.ask(f"same x {PAGES}")
        start = int(child.ask("address"))
        assert child.ask("mark") == "0"
        ksm.knobs.set(pages_to_scan=100_000, sleep_millisecs=1, run=1)
        ksm.settle()
        assert ksm.counters()["pages_sharing"] == PAGES - 1
        process = next(process for process in ksm.processes() if process.pid == child.pid)
        assert process.ksm_merging_pages == PAGES
        region = next(r for r in ksm.regions(child.pid) if r.start <= start < r.end)
        assert (region.merged_bytes, region.mergeable) == (PAGES * 4096, True)
        with pytest.raises(RejectedError) as refused:
            ksm.knobs.set(max_page_sharing=10)
        assert refused.value.errno == errno.EBUSY
        ksm.knobs.set(run=2)
        assert ksm.counters()["pages_shared"] == 0


def test_regions_say_why_they_cannot_be_merged() -> None:
    with holder({}) as child:
        child.ask("same x 4")
        regions = KernelKsm().regions(child.pid)
    obstacles = {region.name: region.obstacle for region in regions}
    assert obstacles["[vdso]"] == "the kernel's own"
    assert obstacles["[stack]"] is None


def test_a_file_this_kernel_lacks_reads_as_none_and_names_its_version(tmp_path: Path) -> None:
    for name, text in (("run", "0"), ("pages_to_scan", "100"), ("pages_shared", "0")):
        (tmp_path / name).write_text(f"{text}\n")
    ksm = KernelKsm(tmp_path)
    assert ksm.knobs["smart_scan"] is None
    assert ksm.counters()["general_profit"] is None
    with pytest.raises(NotSupportedError) as refused:
        ksm.knobs.set(pages_to_scan=5, smart_scan=0)
    assert refused.value.hint == "Linux 6.7 brought it"
    assert (tmp_path / "pages_to_scan").read_text() == "100\n"


def test_a_kernel_without_ksm_is_not_supported(tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match="has no KSM"):
        KernelKsm(tmp_path / "ksm")
