"""What knobs and counters come to, and the words for it."""

from __future__ import annotations

import pytest

from pagemerge.ksm.worth import derive_worth, estimate_pass_seconds
from pagemerge.views.status import iter_worth

KNOBS: dict[str, int | str | None] = {"run": 1, "pages_to_scan": 100, "sleep_millisecs": 20}
COUNTERS: dict[str, int | None] = {
    "pages_shared": 100,
    "pages_sharing": 900,
    "pages_unshared": 600,
    "pages_volatile": 400,
    "ksm_zero_pages": 100,
    "pages_scanned": 100_000,
    "pages_skipped": 300_000,
    "general_profit": 3_968_000,
}
FACTS: dict[str, object] = {
    "cpu_seconds": 0.2,
    "uptime_seconds": 100.0,
    "cow_ksm": 50,
    "ksm_swpin_copy": 0,
}
MEMINFO = {"MemAvailable": 8_000_000, "SwapFree": 1_000_000}


def test_each_value_is_what_its_name_says() -> None:
    worth = derive_worth(KNOBS, COUNTERS, FACTS, MEMINFO)
    assert worth == {
        "saved_bytes": 4_096_000,
        "profit_bytes": 3_968_000,
        "sharing_ratio": 9.0,
        "sharing_per_scanned_ratio": 0.01,
        "volatile_ratio": 0.2,
        "unshared_ratio": 0.3,
        "skipped_ratio": 0.75,
        "scan_ns": 2000.0,
        "pass_seconds": pytest.approx(20 * 0.020 + 2000 * 2e-6),
        "cpu_ratio": 0.002,
        "running_cpu_ratio": pytest.approx(0.0002 / 0.0202),
        "cow_bytes": 204_800,
        "swpin_bytes": 0,
        "breakage_bytes": 4_096_000,
        "spare_bytes": 9_000_000,
    }


def test_what_a_kernel_does_not_count_is_none_and_nothing_is_divided_by_zero() -> None:
    worth = derive_worth({"pages_to_scan": 0, "sleep_millisecs": 20}, {}, {}, {})
    assert {name for name, value in worth.items() if value is not None} == {
        "saved_bytes",
        "breakage_bytes",
    }
    assert list(iter_worth("kernel", worth)) == ["A pass never ends at today's settings."]


def test_a_pass_ends_with_a_sleep_however_few_pages_there_are() -> None:
    assert estimate_pass_seconds(0, 100, 20, None) == 0.02
    assert estimate_pass_seconds(101, 100, 20, None) == 0.04
    assert estimate_pass_seconds(100, 0, 20, None) is None


def words(implementation: str = "kernel", **counters: int) -> str:
    worth = derive_worth(KNOBS, {**COUNTERS, **counters}, FACTS, MEMINFO)
    return "\n".join(iter_worth(implementation, worth))


def test_the_words_say_whether_it_is_worth_it() -> None:
    text = words()
    assert text.startswith("Saves 3.91 MiB; 3.78 MiB after its own records: that is worth it.")
    assert "9.0 further users; one page is saved in 100 looks" in text
    assert "30.0% of the pages have no twin, 20.0% change" in text
    assert "A pass over all pages takes 404 ms at today's settings" in text
    assert "200 KiB when written to" in text
    assert "its records cost more than it saves" in words(general_profit=-64)
    assert "takes at most" in words("engine")


def test_the_words_warn_where_the_memory_would_not_suffice() -> None:
    assert "not enough" not in words()
    assert words(pages_sharing=1_000_000).endswith("that is not enough.")
