"""What of a pool that others use, too, is counted as a command's."""

from __future__ import annotations

from pagemerge.engine.savings import part_of_pool
from pagemerge.ksm import Process

PAGE = 4096


def client(pid: int, pages: int) -> Process:
    return Process(pid=pid, comm="x", ksm_merging_pages=pages)


def test_a_pool_is_divided_by_its_users_as_in_pss() -> None:
    clients = [client(1, 100), client(2, 100)]
    assert part_of_pool(100 * PAGE, 100, clients, {1}) == 50 * PAGE
    assert part_of_pool(100 * PAGE, 100, clients, {1, 2}) == 100 * PAGE


def test_it_is_no_more_than_what_is_mapped() -> None:
    assert part_of_pool(10 * PAGE, 100, [client(1, 100)], {1}) == 10 * PAGE


def test_nothing_that_is_known_to_be_merged_leaves_what_is_mapped() -> None:
    assert part_of_pool(10 * PAGE, 0, [client(1, 0)], {1}) == 10 * PAGE
