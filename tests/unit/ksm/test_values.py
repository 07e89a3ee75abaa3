"""What the kernel accepts as a knob's value (ksm's store functions, kstrto*)."""

from __future__ import annotations

import errno
from collections.abc import Mapping

import pytest

from pagemerge.errors import CommandError, FormatError, RejectedError
from pagemerge.ksm import (
    Change,
    KnobValue,
    known_knob,
    parse_assignment,
    parse_knob,
    parse_shown,
    plan_changes,
)


def refusal(name: str, text: str) -> RejectedError:
    with pytest.raises(RejectedError) as caught:
        parse_knob(known_knob(name), text)
    return caught.value


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("run", "2", 2),
        ("run", "+1\n", 1),
        ("pages_to_scan", "4294967295", 2**32 - 1),
        ("max_page_sharing", "0002", 2),
        ("advisor_target_scan_time", "18446744073709551615", 2**64 - 1),
        ("advisor_max_cpu", "4294967296", 0),
        ("use_zero_pages", "on", 1),
        ("use_zero_pages", "off", 0),
        ("use_zero_pages", "0x1", 0),
        ("smart_scan", "18446744073709551616", 1),
        ("advisor_mode", "scan-time\n", "scan-time"),
    ],
)
def test_a_value_is_read_as_the_kernel_reads_it(name: str, text: str, value: KnobValue) -> None:
    assert parse_knob(known_knob(name), text) == value


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("run", "3", errno.EINVAL),
        ("run", "-1", errno.EINVAL),
        ("run", "", errno.EINVAL),
        ("pages_to_scan", "4294967296", errno.EINVAL),
        ("pages_to_scan", "1\n\n", errno.EINVAL),
        ("sleep_millisecs", " 1", errno.EINVAL),
        ("merge_across_nodes", "2", errno.EINVAL),
        ("merge_across_nodes", "18446744073709551616", errno.ERANGE),
        ("max_page_sharing", "1", errno.EINVAL),
        ("max_page_sharing", "2147483648", errno.ERANGE),
        ("max_page_sharing", "-5", errno.EINVAL),
        ("smart_scan", "oh", errno.EINVAL),
        ("advisor_mode", "Scan-Time", errno.EINVAL),
        ("advisor_target_scan_time", "0", errno.EINVAL),
    ],
)
def test_a_bad_value_is_refused_with_the_kernels_number_and_the_range(
    name: str, text: str, code: int
) -> None:
    error = refusal(name, text)
    assert error.errno == code
    assert errno.errorcode[code] in str(error)
    assert known_knob(name).accepted in str(error.hint)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("advisor_mode", "[none] scan-time\n", "none"),
        ("advisor_mode", "none [scan-time]\n", "scan-time"),
        ("run", "6\n", 6),  # memory is being taken off-line
        ("sleep_millisecs", "20\n", 20),
    ],
)
def test_what_a_file_shows_is_read(name: str, text: str, value: KnobValue) -> None:
    assert parse_shown(known_knob(name), text) == value


def test_a_file_that_shows_something_else_is_named() -> None:
    with pytest.raises(FormatError, match="/sys/x"):
        parse_shown(known_knob("run"), "maybe", "/sys/x")


def test_a_misspelt_knob_gets_a_proposal() -> None:
    with pytest.raises(CommandError) as caught:
        parse_assignment("page_to_scan=5")
    assert caught.value.hint == "did you mean pages_to_scan?"


def test_a_value_may_hold_an_equals_sign() -> None:
    assert parse_assignment("run=a=b") == ("run", "a=b")


NOW: Mapping[str, KnobValue | None] = {
    "run": 1,
    "pages_to_scan": 100,
    "max_page_sharing": 256,
    "merge_across_nodes": 1,
    "advisor_mode": "none",
    "advisor_min_pages_to_scan": 500,
}


def test_a_plan_tells_old_and_new() -> None:
    changes = plan_changes({"run": 0, "pages_to_scan": "7"}, NOW, 0)
    assert changes == [Change("run", 1, 0), Change("pages_to_scan", 100, 7)]


def test_one_bad_value_spoils_the_whole_request() -> None:
    with pytest.raises(RejectedError, match="max_page_sharing"):
        plan_changes({"pages_to_scan": 7, "max_page_sharing": 1}, NOW, 0)


@pytest.mark.parametrize("name", ["max_page_sharing", "merge_across_nodes"])
def test_sharing_pages_forbid_what_would_part_them(name: str) -> None:
    with pytest.raises(RejectedError, match=r"pages_shared is 5 \(EBUSY\)") as caught:
        plan_changes({name: 0 if name == "merge_across_nodes" else 9}, NOW, 5)
    assert caught.value.errno == errno.EBUSY
    assert plan_changes({name: NOW[name] or 0}, NOW, 5)  # the value that it has is no change


def test_unmerging_first_makes_it_possible() -> None:
    assert plan_changes({"run": 2, "max_page_sharing": 9}, NOW, 5)
    with pytest.raises(RejectedError):
        plan_changes({"max_page_sharing": 9, "run": 2}, NOW, 5)


def test_unmerging_when_that_was_done_before_does_nothing() -> None:
    with pytest.raises(RejectedError):
        plan_changes({"run": 2, "max_page_sharing": 9}, {**NOW, "run": 2}, 5)


def test_the_advisor_forbids_pages_to_scan() -> None:
    advised = {**NOW, "advisor_mode": "scan-time"}
    with pytest.raises(RejectedError, match="advisor_mode") as caught:
        plan_changes({"pages_to_scan": 5}, advised, 0)
    assert caught.value.errno == errno.EINVAL
    changes = plan_changes({"advisor_mode": "none", "pages_to_scan": 5}, advised, 0)
    assert changes[1] == Change("pages_to_scan", 100, 5)


def test_switching_the_advisor_on_forbids_what_follows() -> None:
    with pytest.raises(RejectedError):
        plan_changes({"advisor_mode": "scan-time", "pages_to_scan": 5}, NOW, 0)


def test_true_and_false_are_one_and_zero() -> None:
    assert plan_changes({"use_zero_pages": True}, NOW, 0) == [Change("use_zero_pages", None, 1)]
