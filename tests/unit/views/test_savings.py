"""The report of `pagemerge run` as people see it."""

from __future__ import annotations

import io
from typing import Any

from pagemerge.views.savings import print_savings

MIB = 2**20
REPORT: dict[str, Any] = {
    "ksm": "engine",
    "pages_shared": 1024,
    "pages_sharing": 3072,
    "ksm_zero_pages": 0,
    "metadata_bytes": 65536,
    "saved_bytes": 12 * MIB - 65536,
    "pss_before_bytes": 40 * MIB,
    "pss_after_bytes": 30 * MIB,
    "pool_resident_bytes": 5 * MIB,
    "daemon_pss_bytes": 9 * MIB,
    "daemon_cpu_seconds": 0.25,
    "agents_cpu_seconds": 0.05,
    "command_cpu_seconds": 2.0,
    "merges_left_for_vmas": 7,
    "notes": ["process 5 (x) was not merged: io_uring"],
}


def printed(**changes: Any) -> str:
    file = io.StringIO()
    print_savings({**REPORT, **changes}, file)
    return file.getvalue()


def test_the_first_line_is_what_was_saved() -> None:
    assert printed().splitlines()[0] == "pagemerge: saved 11.9 MiB, by the engine"


def test_loss_is_said_as_plainly() -> None:
    text = printed(saved_bytes=-65536, pages_shared=0, pages_sharing=0)
    assert text.startswith("pagemerge: saved -64.0 KiB")


def test_everything_that_was_measured_is_there() -> None:
    text = printed()
    assert "3,072 (12.0 MiB)" in text
    assert "5.00 MiB" in text
    assert "75.0 % of it; the daemon's own included" in text
    assert "daemon 250 ms, agents 50 ms; the command's own 2.00 s" in text
    assert "7 (28.0 KiB)" in text
    assert text.splitlines()[-1] == "note: process 5 (x) was not merged: io_uring"


def test_a_daemon_of_others_is_left_out() -> None:
    assert "the daemon's own apart" in printed(daemon_pss_bytes=None)


def test_a_command_too_short_to_be_seen_is_said_to_be() -> None:
    text = printed(saved_bytes=None, notes=["it ended before it could be looked at"])
    assert text.splitlines() == [
        "pagemerge: nothing was seen of the command",
        "note: it ended before it could be looked at",
    ]


def test_the_kernels_report_is_in_the_kernels_words() -> None:
    stat = {"ksm_merging_pages": 4096, "ksm_zero_pages": 3, "ksm_rmap_items": 5000}
    text = printed(ksm="kernel", ksm_stat=stat, passes=12)
    assert text.startswith("pagemerge: saved 11.9 MiB, by the kernel's KSM\n")
    assert "4,096 (16.0 MiB)" in text
    assert "75.0 % of it" in text
    assert "ksmd, for the whole machine, 12 passes; the command's own 2.00 s" in text
