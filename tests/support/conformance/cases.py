"""The one list of cases; a test says with `@case(...)` which of them it settles.

C1 to C24 state how Linux 6.18 behaves when it is single-stepped. The others are what the kernel's
selftests (tools/testing/selftests/mm) and the Linux Test Project (testcases/kernel/mem/ksm) assert,
under their names there.
"""

from __future__ import annotations

from typing import Final

import pytest

__all__ = ["CASES", "case"]

CASES: Final = {
    "C1": "equal pages are volatile after one pass, merged after two, and stay so",
    "C2": "one more equal page joins those that are merged",
    "C3": "a merged page that is written to is volatile after a pass, unshared after two",
    "C4": "pages with no twin are volatile after one pass, unshared from the second on",
    "C5": "smart_scan skips pages that never found a twin more and more often",
    "C6": "max_page_sharing: how many pages are kept, in chains, for any number of equal ones",
    "C7": "use_zero_pages: zeros become the zero page and need no page kept",
    "C8": "pages that the zero page replaced leave ksm_zero_pages when they are no longer so",
    "C9": "a fork doubles ksm_zero_pages until one of the two ends",
    "C10": "what madvise and prctl refuse, and with which errno",
    "C11": "prctl off unmerges what madvise had marked, too",
    "C12": "run=2 unmerges everything and sets full_scans to 0",
    "C13": "counters after an exit while ksmd is stopped",
    "C14": "mremap: moved pages are merged again after two passes",
    "C15": "pages that change before every pass are always volatile",
    "C16": "a batch is pages_to_scan pages and never crosses the end of a pass",
    "C17": "which page frame is kept",
    "C18": "pages that parent and child share after a fork are no twins of one another",
    "C19": "the trace events of a merge and of its end, in their order",
    "C20": "the scan-time advisor's arithmetic",
    "C21": "what is refused with EBUSY while pages are shared, and what is not",
    "C22": "which texts the knobs take, and which errno the others get",
    "C23": "unmerged and marked again with no pass between: merged after one pass",
    "C24": "huge pages are split only for what merges in them",
    "ksm_tests -M": "N equal pages are merged, whatever their protection, by madvise or prctl",
    "ksm_tests -Z": "pages of zeros are merged as any others, or by the zero page",
    "ksm_tests -N": "equal pages on two NUMA nodes are merged with merge_across_nodes only",
    "ksm_tests -U": "two merged pages that are written to are merged no longer",
    "ksm_tests -H": "equal huge pages are merged",
    "ksm_tests -D": "MADV_UNMERGEABLE of much memory does not fail",
    "ksm_tests -C": "writing to many merged pages gives each its own copy",
    "functional test_unmerge": "after MADV_UNMERGEABLE no two pages are one frame",
    "functional test_unmerge_zero_pages": "the zero page is unmerged by the call and by writing",
    "functional test_unmerge_discarded": "a range of which a half was discarded can be unmerged",
    "functional test_unmerge_uffd_wp": "a range that a userfaultfd protects can be unmerged",
    "functional test_prot_none": "memory that may not be read is merged and unmerged",
    "functional test_prctl": "prctl tells what it was told",
    "functional test_prctl_fork": "a forked child inherits prctl, and merges",
    "functional test_prctl_fork_exec": "a program inherits prctl over execve, and merges",
    "functional test_prctl_unmerge": "prctl off unmerges",
    "functional test_fork_ksm_merging_page_count": "a child starts with no merging pages",
    "merge ksm_merge": "mappings made next to one another under prctl are one",
    "ksm01": "three processes fill, change and refill memory: the exact counters each time",
    "ksm02": "ksm01 with memory bound to one NUMA node",
    "ksm03": "ksm01 in a memory cgroup",
    "ksm04": "ksm01 in a memory cgroup with memory bound to one NUMA node",
    "ksm05": "processes that mark memory and crash at once do no harm",
    "ksm06": "merge_across_nodes with pages on every node",
    "ksm07": "smart_scan saves at least every second look at a page with no twin",
}


def case(*names: str) -> pytest.MarkDecorator:
    """Say which cases a test settles; KeyError for one that is not in the list."""
    for name in names:
        CASES[name]
    return pytest.mark.case(*names)
