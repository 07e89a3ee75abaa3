"""The table of knobs and counters says what is known of the kernel, once."""

from __future__ import annotations

import re

import pytest

from pagemerge.ksm import COUNTERS, EVENTS, KNOBS, PROCESS_ITEMS, Knob, Type, find_knob, parse_knob


def test_no_name_is_there_twice() -> None:
    names = [item.name for item in (*KNOBS, *COUNTERS)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_each_default_is_accepted(knob: Knob) -> None:
    assert parse_knob(knob, str(knob.default)) == knob.default


@pytest.mark.parametrize("item", [*KNOBS, *COUNTERS, *PROCESS_ITEMS], ids=lambda item: item.name)
def test_each_item_says_what_it_means_and_which_kernel_brought_it(item: Knob) -> None:
    assert item.meaning
    assert not item.meaning.endswith(".")
    assert item.since is None or re.fullmatch(r"\d+\.\d+(\.\d+)?", item.since)


def test_what_the_kernel_lacks_is_marked_as_the_engines_own() -> None:
    own = {counter.name for counter in COUNTERS if counter.engine_only}
    assert own >= {"pool_bytes", "metadata_bytes", "merges_left_for_vmas"}
    assert "pages_sharing" not in own


def test_the_nine_events_have_their_fields() -> None:
    assert len(EVENTS) == 9
    fields = {event.name: [field.name for field in event.fields] for event in EVENTS}
    assert fields["ksm_merge_with_ksm_page"] == ["ksm_page", "pfn", "rmap_item", "mm", "err"]
    types = {field.name: field.type for event in EVENTS for field in event.fields}
    assert (types["scan_time"], types["pages_to_scan"], types["mm"]) == (
        "s64",
        "unsigned long",
        "void*",
    )


def test_an_unknown_knob_is_none() -> None:
    assert find_knob("max_kernel_pages") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("run", "0, 1 or 2"),
        ("merge_across_nodes", "0 or 1"),
        ("max_page_sharing", "a whole number from 2 to 2147483647"),
        ("advisor_mode", "none or scan-time"),
        ("smart_scan", "0 or 1 (also y/n, t/f, on/off)"),
    ],
)
def test_the_accepted_range_is_said_in_words(name: str, words: str) -> None:
    knob = find_knob(name)
    assert knob is not None
    assert knob.accepted == words


def test_a_choice_has_its_words() -> None:
    assert all(knob.choices for knob in KNOBS if knob.type is Type.CHOICE)
