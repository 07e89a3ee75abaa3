"""fork, exec, crashes: who is registered, and what belongs to whom."""

from __future__ import annotations

from tests.support.conformance.cases import case
from tests.support.conformance.worlds import Counts, World


@case("C18")
def test_pages_shared_by_fork_are_no_twins_of_one_another(world: World) -> None:
    client, address = world.marked([1, 2, 3, 4])
    child = client.fork()
    world.await_registered(2)
    assert world.step(3) == Counts(0, 0, 4, 4)  # the child's stay volatile
    child.poke(address, 99)
    client.poke(address, 99)  # two equal pages of their own now
    world.step(3)
    assert world.counts()[:2] == (1, 1)
    assert child.peek(address, 4) == client.peek(address, 4) == [-1, 2, 3, 4]


@case("C18")
def test_a_merged_page_that_is_inherited_counts_for_the_child_after_a_pass(world: World) -> None:
    client, address = world.marked([7] * 10)
    world.merge()
    child = client.fork()
    world.await_registered(2)
    assert world.step() == Counts(1, 19, 0, 0)
    child.poke(address, 1)
    world.step(2)
    assert world.counts() == Counts(1, 18, 1, 0)
    assert client.peek(address, 10) == [7] * 10
    child.end()
    world.await_registered(1)
    world.step()
    assert world.counts() == Counts(1, 9, 0, 0)


@case("functional test_prctl_fork")
def test_a_child_inherits_prctl_and_merges(world: World) -> None:
    world.needs_prctl()
    client = world.client()
    client.merge_any(True)
    child = client.fork()
    assert child.merges_any() == 1
    address = child.map([0xCF] * 512)
    world.await_registered(2)
    world.step(3)
    assert len(set(child.frames_read(address, 512))) <= 2
    assert world.merging_pages(child.pid) > 0
    child.unmark(address, 512)
    assert child.has_own_frames(address, 512)
    assert client.merges_any() == 1


@case("functional test_prctl_fork_exec")
def test_a_program_inherits_prctl_over_execve_and_merges(world: World) -> None:
    world.needs_prctl()
    client = world.client()
    client.merge_any(True)
    client.exec_itself()
    if world.is_kernel and not client.merges_any():
        world.lacks("prctl that outlives execve", "6.7")
    if not world.is_kernel:
        world.differs("prctl does not outlive execve; PAGEMERGE_ALL=1 (run --all) does")
        assert client.merges_any() == 0
        client.kill()
        client = world.client(PAGEMERGE_ALL="1")
        client.exec_itself()
    assert client.merges_any() == 1
    address = client.map([0xCF] * 512)
    world.await_known(client.pid)
    world.step(3)
    assert len(set(client.frames_read(address, 512))) <= 2
    assert world.merging_pages(client.pid) > 0


@case("functional test_prctl_fork_exec")
def test_marks_do_not_outlive_execve(world: World) -> None:
    client, _ = world.marked([7] * 10)
    world.merge()
    client.exec_itself()
    other, _ = world.marked_beside([5, 6])
    client.map([7] * 10)
    world.step(3)
    assert world.counts() == Counts(0, 0, 2, 0)
    assert not world.tells_processes or world.merging_pages(client.pid) == 0
    other.kill()


@case("functional test_fork_ksm_merging_page_count")
def test_a_child_starts_with_no_merging_pages(world: World) -> None:
    world.needs(world.tells_processes, "/proc/PID/ksm_merging_pages", "5.19")
    client, _ = world.marked([7] * 512)
    world.merge()
    assert world.merging_pages(client.pid) == 512
    world.stop()
    child = client.fork()
    if world.is_kernel and world.merging_pages(child.pid):
        world.lacks("merging pages that are not inherited", "6.18")
    assert world.merging_pages(child.pid) == 0


@case("ksm05")
def test_processes_that_mark_memory_and_crash_do_no_harm(world: World) -> None:
    client, address = world.marked([7] * 4)
    world.set("pages_to_scan", 100)
    world.set("sleep_millisecs", 0)
    world.set("run", 1)
    assert client.do("crash_children", address, 4096, 100) == [-11] * 100
    world.ksm.settle(3)
    assert world.counts()[:2] == (1, 3)
    assert client.peek(address, 4) == [7] * 4


@case("ksm_tests -M")
def test_equal_pages_of_several_processes_are_merged(world: World) -> None:
    clients = [world.client() for _ in range(3)]
    places = [client.map([5, 6, 7, 8]) for client in clients]
    for client, address in zip(clients, places, strict=True):
        client.mark(address, 4)
    world.await_registered(3)
    assert world.merge() == Counts(4, 8, 0, 0)
    frames = {
        tuple(client.frames_read(address, 4))
        for client, address in zip(clients, places, strict=True)
    }
    assert len(frames) == 1
    for client in clients:
        if world.tells_processes:
            assert world.merging_pages(client.pid) == 4


@case("C1")
def test_profits_add_up(world: World) -> None:
    world.needs(world.has("general_profit"), "general_profit", "6.4")
    client, _ = world.marked([7] * 10)
    world.merge()
    process = world.process(client.pid)
    assert process.ksm_rmap_items == 10
    if world.is_kernel:
        assert world.read("general_profit") == 9 * 4096 - 10 * 64
        assert process.ksm_process_profit == 10 * 4096 - 10 * 64
    else:
        world.differs("profits are less by the metadata that there really is")
        metadata = world.read("metadata_bytes")
        assert world.read("general_profit") == 9 * 4096 - metadata
        assert process.ksm_process_profit is not None
        assert process.ksm_process_profit < 10 * 4096
