from __future__ import annotations

from pagemerge.engine.advisor import Advice, ScanTimeAdvisor


def advise(advisor: ScanTimeAdvisor, elapsed_ms: int, cpu_ns: int) -> Advice:
    return advisor.end_of_pass(elapsed_ms, cpu_ns, target=200, max_cpu=70, max_pages=30_000)


def test_the_minimum_is_a_start_and_no_floor() -> None:
    # A first pass under a second, 36.22 s of ksmd's lifetime: measured on Linux 6.18.
    advice = advise(ScanTimeAdvisor(500), elapsed_ms=900, cpu_ns=36_220_000_000)
    assert advice == Advice(scan_time=1, pages_to_scan=10, cpu_percent=3622)


def test_a_pass_that_takes_too_long_gets_more_pages() -> None:
    advisor = ScanTimeAdvisor(500)
    cpu = 0
    pages = []
    for _ in range(12):
        cpu += 4_000_000_000
        pages.append(advise(advisor, 400_000, cpu).pages_to_scan)
    assert pages[-1] > pages[0]
    assert max(pages) <= 30_000


def test_the_cpu_limit_holds_the_pages_down() -> None:
    advisor = ScanTimeAdvisor(1000)
    advice = advisor.end_of_pass(400_000, 400_000_000_000, target=1, max_cpu=70, max_pages=10**9)
    assert advice.cpu_percent == 100
    assert advice.pages_to_scan <= 1000 // 100 * 70
