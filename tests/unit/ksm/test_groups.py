"""Regions of several processes summed by name."""

from __future__ import annotations

from pagemerge.ksm import Region, group_regions

PAGE = 4096
LIBRARY = "/usr/lib/libc.so.6"


def test_the_most_merged_name_comes_first_and_each_process_counts_once() -> None:
    one = [
        Region(0, 4 * PAGE, LIBRARY, merged_bytes=0, anonymous_bytes=PAGE, mergeable=False),
        Region(8 * PAGE, 9 * PAGE, "[heap]", merged_bytes=PAGE, mergeable=True),
        Region(9 * PAGE, 12 * PAGE, "[heap]", merged_bytes=2 * PAGE, mergeable=True),
    ]
    heap, library = group_regions([one, one[1:2]])
    assert (heap.name, heap.processes, heap.regions) == ("[heap]", 2, 3)
    assert (heap.size_bytes, heap.merged_bytes, heap.mergeable_bytes) == (5 * PAGE, 4 * PAGE, 20480)
    assert (library.processes, library.merged_bytes, library.mergeable_bytes) == (1, 0, 0)
    assert library.present_bytes is None


def test_a_name_has_an_obstacle_only_when_all_of_it_has_one() -> None:
    shared = Region(0, PAGE, "/dev/shm/x", obstacle="shared")
    private = Region(0, PAGE, "/dev/shm/x")
    assert [group.obstacle for group in group_regions([[shared, shared]])] == ["shared"]
    assert [group.obstacle for group in group_regions([[shared, private]])] == [None]
    assert [group.obstacle for group in group_regions([[private, shared]])] == [None]
