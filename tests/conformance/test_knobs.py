"""What can be written into the knobs, what happens then, and what is refused."""

from __future__ import annotations

from errno import EBUSY, EINVAL, ERANGE
from typing import Final

import pytest

from tests.support.conformance.cases import case
from tests.support.conformance.worlds import HOUR_MILLISECS, World, kernel_version
from tests.support.waiting import wait_until

UINT: Final = 2**32
ULONG: Final = 2**64

# For each kind of parser: texts with what is read back, or with the errno.
UNSIGNED: Final = {
    "0": 0,
    "+1": 1,
    "007": 7,
    "5\n": 5,
    str(UINT - 1): UINT - 1,
}
UNSIGNED_REFUSED: Final = ("-1", " 1", "1 ", "0x1", "1.5", "\n", "1\n\n", "y", "99x")
BOOLEAN: Final = {"1": 1, "y": 1, "T": 1, "on": 1, "1.5": 1, "0": 0, "N": 0, "f": 0, "off": 0}
BOOLEAN_REFUSED: Final = ("2", "o", " 1", "-1", "\n", "x")
TOO_LARGE: Final = (str(ULONG), "99999999999999999999999")


def lacks_unless(world: World, name: str, since: str) -> None:
    world.needs(world.has(name), name, since)


def check(
    world: World, name: str, taken: dict[str, int], refused: tuple[str, ...], code: int = EINVAL
) -> None:
    """Write each text and look: what is refused changes nothing."""
    for text, value in taken.items():
        assert world.write(name, text) == 0, f"{name} {text!r}"
        assert world.read(name) == value, f"{name} {text!r}"
    before = world.read(name)
    for text in refused:
        assert world.write(name, text) == code, f"{name} {text!r}"
        assert world.read(name) == before, f"{name} {text!r}"


@case("C22")
@pytest.mark.parametrize(
    ("name", "since"),
    [
        ("pages_to_scan", "2.6.32"),
        ("sleep_millisecs", "2.6.32"),
        ("stable_node_chains_prune_millisecs", "4.13"),
    ],
)
def test_numbers_of_32_bits(world: World, name: str, since: str) -> None:
    lacks_unless(world, name, since)
    check(world, name, UNSIGNED, (*UNSIGNED_REFUSED, str(UINT), *TOO_LARGE))


@case("C22")
@pytest.mark.parametrize(("name", "since"), [("use_zero_pages", "4.11"), ("smart_scan", "6.7")])
def test_flags(world: World, name: str, since: str) -> None:
    lacks_unless(world, name, since)
    taken = BOOLEAN
    if world.is_kernel and kernel_version() < (6, 1):  # 5.10 knows no "true" and "false"
        taken = {text: value for text, value in BOOLEAN.items() if text not in ("T", "f")}
    check(world, name, taken, BOOLEAN_REFUSED)


@case("C22")
def test_run_takes_0_1_and_2(world: World) -> None:
    check(world, "run", {"2": 2, "1": 1, "0": 0}, ("3", *UNSIGNED_REFUSED, *TOO_LARGE))


@case("C22")
def test_max_page_sharing_takes_2_and_more(world: World) -> None:
    lacks_unless(world, "max_page_sharing", "4.13")
    check(world, "max_page_sharing", {"2": 2, "+300": 300, str(2**31 - 1): 2**31 - 1}, ("1", "0"))
    check(world, "max_page_sharing", {"256": 256}, ("-5", "x"))
    check(world, "max_page_sharing", {}, (str(2**31), *TOO_LARGE), ERANGE)


@case("C22")
def test_merge_across_nodes_takes_0_and_1(world: World) -> None:
    lacks_unless(world, "merge_across_nodes", "3.9 with CONFIG_NUMA")
    check(world, "merge_across_nodes", {"0": 0, "1": 1}, ("2", "-1", "y", str(ULONG - 1)))
    check(world, "merge_across_nodes", {}, TOO_LARGE, ERANGE)


@case("C22")
def test_advisor_mode_takes_its_two_words(world: World) -> None:
    lacks_unless(world, "advisor_mode", "6.8")
    for text in ("scan-time", "scan-time\n", "none", "none\n"):
        assert world.write("advisor_mode", text) == 0
        assert world.ksm.knobs["advisor_mode"] == text.strip()
    for text in ("Scan-Time", "scan", "none\n\n", " none"):
        assert world.write("advisor_mode", text) == EINVAL
    assert world.ksm.knobs["advisor_mode"] == "none"


@case("C22")
def test_the_advisors_limits(world: World) -> None:
    lacks_unless(world, "advisor_mode", "6.8")
    for name in ("advisor_min_pages_to_scan", "advisor_max_pages_to_scan"):
        check(world, name, {"0": 0, str(ULONG - 1): ULONG - 1}, ("-1", "x", *TOO_LARGE))
    check(world, "advisor_target_scan_time", {"1": 1, "200": 200}, ("0", "x", *TOO_LARGE))
    check(world, "advisor_max_cpu", {"250": 250, str(UINT): 0, "70": 70}, ("-1", *TOO_LARGE))


@case("C20", "C22")
def test_the_advisor_takes_pages_to_scan_over(world: World) -> None:
    lacks_unless(world, "advisor_mode", "6.8")
    world.set("advisor_min_pages_to_scan", 1234)
    world.set("pages_to_scan", 777)
    world.set("advisor_mode", "scan-time")
    assert world.read("pages_to_scan") == 1234
    assert world.write("pages_to_scan", "5") == EINVAL
    world.set("advisor_mode", "scan-time")  # again: nothing
    world.set("advisor_mode", "none")
    assert world.read("pages_to_scan") == 100
    world.set("pages_to_scan", 5)
    world.set("advisor_mode", "none")
    assert world.read("pages_to_scan") == 5


@case("C21")
def test_some_knobs_are_refused_while_pages_are_shared(world: World) -> None:
    world.marked([7] * 10)
    world.merge()
    world.stop()
    other = {"max_page_sharing": "100", "merge_across_nodes": "0"}
    same = {"max_page_sharing": "256", "merge_across_nodes": "1"}
    for name in other:
        if world.has(name):
            assert world.write(name, other[name]) == EBUSY
            assert world.write(name, same[name]) == 0
            assert world.read(name) == int(same[name])
    for name in ("use_zero_pages", "smart_scan"):
        if world.has(name):
            world.set(name, 1)
    world.stop(run=2)
    for name in other:
        if world.has(name):
            world.set(name, other[name])


@case("C21")
def test_they_are_refused_after_an_exit_while_ksmd_is_stopped(world: World) -> None:
    client, _ = world.marked([7] * 10)
    world.merge()
    world.stop()
    client.kill()
    if world.is_kernel:
        assert world.write("max_page_sharing", "100") == EBUSY
    else:
        world.differs("the daemon hears of an exit at once")
        world.await_registered(0)
        assert world.write("max_page_sharing", "100") == 0


@case("C21")
def test_only_a_different_sleep_ends_the_sleep(world: World) -> None:
    world.marked([1, 2, 3])
    world.step()
    now = world.read("sleep_millisecs")
    world.set("sleep_millisecs", now)
    world.set("run", 0)
    world.set("run", 1)
    assert world.read("full_scans") == 1
    world.set("sleep_millisecs", 2 * HOUR_MILLISECS)
    wait_until(lambda: world.read("full_scans") == 2, "the pass")
    world.await_idle()
    assert world.read("full_scans") == 2


@case("C16")
def test_no_pages_to_scan_means_no_progress(world: World) -> None:
    world.marked([1, 2, 3])
    world.set("pages_to_scan", 0)
    world.set("run", 1)
    for _ in range(3):
        world.begin_batch()
        world.await_idle()
    assert world.read("full_scans") == 0
    world.set("pages_to_scan", 100)
    assert world.step().volatile == 3


@case("C16")
def test_nobody_registered_means_no_pass(world: World) -> None:
    world.set("run", 1)
    for _ in range(3):
        world.begin_batch()
        world.await_idle()
    assert world.read("full_scans") == 0
    world.marked([1, 2, 3])  # the first one wakes ksmd
    wait_until(lambda: world.read("full_scans") == 1, "the first pass")
