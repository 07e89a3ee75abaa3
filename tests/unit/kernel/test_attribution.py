"""Whose an address space is, from sequences of records as the kernel gives them."""

from __future__ import annotations

import os
import threading

from pagemerge.kernel.attribution import CLONE_THREAD, CLONE_VM, Attribution, read_tgid

OWN = 500  # the tracing process


def make(**tgids: int) -> Attribution:
    known = {int(name.removeprefix("t")): tgid for name, tgid in tgids.items()}
    return Attribution(lambda tid: known.get(tid))


def test_who_registers_itself_is_known_by_its_context() -> None:
    attribution = make(t11=10)
    owner = attribution.enter(11, 0xA)
    assert (owner.pid, owner.how) == (10, "context")
    assert attribution.owner(0xA) is owner


def test_a_child_of_fork_is_told_from_its_parent() -> None:
    attribution = make(t10=10)
    parent = attribution.enter(10, 0xA)
    child = attribution.enter(10, 0xB)  # the kernel registers the child in the parent's context
    attribution.newtask(10, 20, 0x1200000)
    assert (parent.pid, parent.how) == (10, "context")
    assert (child.pid, child.how) == (20, "fork")


def test_neither_a_thread_nor_vfork_takes_the_registration() -> None:
    attribution = make(t10=10)
    owner = attribution.enter(10, 0xA)
    attribution.newtask(10, 11, CLONE_VM | CLONE_THREAD)
    attribution.newtask(10, 20, CLONE_VM | 0x4000)
    assert owner.pid == 10
    assert attribution.enter(11, 0xC).pid == 10  # the thread's process was learned
    assert attribution.enter(20, 0xD).pid == 20


def test_a_failed_fork_leaves_nothing_for_the_next() -> None:
    attribution = make(t10=10)
    attribution.enter(10, 0xB)
    attribution.exit(0xB)
    attribution.newtask(10, 20, 0)
    again = attribution.enter(10, 0xB)
    assert again.pid == 10


def test_an_address_that_is_free_again_is_nobodys() -> None:
    attribution = make(t10=10)
    before = attribution.enter(10, 0xA)
    assert attribution.exit(0xA) is before
    assert attribution.owner(0xA).pid is None
    assert attribution.unknown
    after = attribution.enter(10, 0xA)
    assert before is not after


def test_a_lookup_tells_by_the_time_of_the_lock() -> None:
    attribution = make()
    owner = attribution.owner(0xA)
    attribution.begin_round()
    attribution.looked_up(OWN, 100, 110)
    attribution.looked_up(20, 120, 130)
    attribution.looked_up(30, 140, 150)
    attribution.locked(105, 0x500, OWN)
    attribution.locked(115, 0xF, OWN)  # between two: about nobody
    attribution.locked(125, 0xA, OWN)
    attribution.locked(141, 0x500, OWN)  # a page fault of the tracing process itself
    attribution.locked(145, 0xB, OWN)
    attribution.locked(155, 0xC, OWN)
    assert (owner.pid, owner.how) == (20, "lookup")
    assert attribution.owner(0xB).pid == 30
    assert attribution.owner(0xF).pid is None
    assert attribution.owner(0xC).pid is None
    assert attribution.owner(0x500).pid == OWN


def test_a_lookup_corrects_what_was_wrong_and_leaves_what_was_right() -> None:
    attribution = make(t10=10)
    right, wrong = attribution.enter(10, 0xA), attribution.enter(10, 0xB)
    attribution.begin_round()
    attribution.looked_up(10, 100, 110)
    attribution.looked_up(20, 120, 130)
    attribution.locked(105, 0xA, OWN)
    attribution.locked(125, 0xB, OWN)
    assert (right.pid, right.how) == (10, "context")
    assert (wrong.pid, wrong.how) == (20, "lookup")


def test_memory_shared_by_vfork_stays_the_parents() -> None:
    attribution = make()
    attribution.begin_round()
    attribution.looked_up(20, 100, 110)
    attribution.looked_up(21, 120, 130)
    attribution.locked(105, 0xA, OWN)
    attribution.locked(125, 0xA, OWN)
    assert attribution.owner(0xA).pid == 20


def test_late_records_of_the_round_before_still_count() -> None:
    attribution = make()
    attribution.begin_round()
    attribution.looked_up(20, 100, 110)
    attribution.begin_round()
    attribution.looked_up(20, 200, 210)
    attribution.locked(105, 0xA, OWN)
    assert attribution.owner(0xA).pid == 20


def test_who_has_ended_when_its_registration_is_read_was_looked_up_before() -> None:
    attribution = make()
    attribution.begin_round()
    attribution.looked_up(20, 100, 110)
    owner = attribution.enter(20, 0xA)
    assert (owner.pid, owner.how) == (20, "context")
    assert attribution.enter(21, 0xB).pid is None  # a thread, say, of a process that has ended


def test_a_number_given_anew_is_the_new_ones() -> None:
    attribution = make(t10=10)
    attribution.newtask(10, 20, 0)
    attribution.newtask(10, 20, CLONE_VM | CLONE_THREAD)
    assert attribution.enter(20, 0xA).pid == 10


def test_nothing_is_trusted_after_a_loss() -> None:
    attribution = make(t10=10)
    attribution.enter(10, 0xA)
    attribution.forget()
    assert attribution.unknown
    assert attribution.owner(0xA).pid is None


def test_a_thread_is_known_by_its_process() -> None:
    found: list[int | None] = []
    thread = threading.Thread(target=lambda: found.append(read_tgid(threading.get_native_id())))
    thread.start()
    thread.join()
    assert found == [os.getpid()]
    assert read_tgid(2**22 + 1) is None
