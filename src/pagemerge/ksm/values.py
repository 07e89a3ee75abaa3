"""What the kernel accepts as a knob's value: its parsers and its refusals, as pure functions.

Both implementations refuse before anything is written, in the same words. The rules are those of
`mm/ksm.c`'s store functions and of kstrtouint, kstrtoint, kstrtoul and kstrtobool.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pagemerge.errors import CommandError, FormatError, RejectedError
from pagemerge.ksm.items import UINT_MAX, ULONG_MAX, Knob, Type
from pagemerge.ksm.knobs import KNOBS, find_knob

__all__ = [
    "Change",
    "KnobValue",
    "known_knob",
    "parse_assignment",
    "parse_knob",
    "parse_shown",
    "plan_changes",
    "render_knob",
]

KnobValue = int | str

_PAGES_TO_SCAN_AFTER_ADVISOR = 100
# The kernel answers EINVAL for a number too large for the type, except where the store function
# hands on what kstrtoul or kstrtoint said.
_RANGE_IS_ERANGE = frozenset({"merge_across_nodes", "max_page_sharing"})
_INTEGER = re.compile(r"([+-]?)([0-9]+)(.*)", re.DOTALL)
_TRUE = ("1", "y", "Y", "t", "T", "on", "oN", "On", "ON")
_FALSE = ("0", "n", "N", "f", "F", "of", "oF", "Of", "OF")


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a set request; `old` is None where the value could not be read."""

    name: str
    old: KnobValue | None
    new: KnobValue


def known_knob(name: str) -> Knob:
    """Find a knob.

    Raises:
        CommandError: there is none of that name.
    """
    knob = find_knob(name)
    if knob is None:
        import difflib  # only for a typing error, and it takes 5 ms to load

        names = [knob.name for knob in KNOBS]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the knobs are {', '.join(names)}"
        raise CommandError(f"there is no knob {name!r}", hint=hint)
    return knob


def parse_assignment(text: str) -> tuple[str, str]:
    """Split NAME=VALUE.

    Raises:
        CommandError: no `=`, or no knob of that name.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandError(f"{text!r} is not NAME=VALUE", hint="for example pages_to_scan=1000")
    return known_knob(name).name, value


def render_knob(value: KnobValue | bool) -> str:
    """Write a value as it is written into the knob's file."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def parse_knob(knob: Knob, text: str) -> KnobValue:
    """Read a value that is to be written, as the kernel would (flags give 0 or 1).

    Raises:
        RejectedError: the kernel would refuse it; `errno` is EINVAL or ERANGE.
    """
    if knob.type is Type.CHOICE:
        word = text.removesuffix("\n")
        if word not in knob.choices:
            raise _refuse(knob, text, errno.EINVAL)
        return word
    if knob.type is Type.BOOL:
        return _parse_bool(knob, text)
    value = _parse_integer(knob, text)
    if not knob.minimum <= value <= knob.maximum:
        why = "too small" if value < knob.minimum else "too large"
        raise _refuse(knob, text, errno.EINVAL, why)
    if knob.name == "advisor_max_cpu":
        value &= UINT_MAX  # as the kernel stores it
    return value


def parse_shown(knob: Knob, text: str, path: str = "") -> KnobValue:
    r"""Read what a knob's file shows; `path` is named in the error.

    >>> parse_shown(known_knob("advisor_mode"), "none [scan-time]\n")
    'scan-time'

    Raises:
        FormatError: it shows something else.
    """
    text = text.strip()
    if knob.type is Type.CHOICE:
        match = re.search(r"\[([^]]*)\]", text)
        return match[1] if match else text
    try:
        return int(text)
    except ValueError as error:
        raise FormatError(f"{path or knob.name}: {text!r} is not a number") from error


def plan_changes(
    values: Mapping[str, KnobValue | bool],
    current: Mapping[str, KnobValue | None],
    pages_shared: int,
) -> list[Change]:
    """Check a whole set request before any of it is written.

    The values are meant to be written in the order given, so that `advisor_mode=none
    pages_to_scan=500` and `run=2 max_page_sharing=10` are right, and the other way round refused.

    Args:
        values: what to set; texts are parsed as the kernel would.
        current: the knobs as they are; None where one can't be read.
        pages_shared: the counter, pages; some knobs can't be changed while it is not 0.

    Raises:
        CommandError: there is no such knob.
        RejectedError: the kernel would refuse one of them (EINVAL, ERANGE, EBUSY).
    """
    after = dict(current)
    changes = []
    for name, value in values.items():
        knob = known_knob(name)
        new = parse_knob(knob, render_knob(value))
        old = after.get(name)
        if name == "pages_to_scan" and after.get("advisor_mode") not in (None, "none"):
            raise RejectedError(
                "pages_to_scan can't be set while advisor_mode is scan-time (EINVAL)",
                hint="the advisor sets it; put advisor_mode=none before it",
                errno=errno.EINVAL,
            )
        if name in ("merge_across_nodes", "max_page_sharing") and new != old and pages_shared:
            raise RejectedError(
                f"{name} can't be changed while pages are shared: "
                f"pages_shared is {pages_shared} (EBUSY)",
                hint=f"unmerge first: run=2 {name}={new}, and then run=1 again "
                "(needs memory for every page that is shared now)",
                errno=errno.EBUSY,
            )
        if name == "run" and new == 2 and old != 2:
            pages_shared = 0
        if name == "advisor_mode" and new != old:
            after["pages_to_scan"] = (
                _PAGES_TO_SCAN_AFTER_ADVISOR
                if new == "none"
                else after.get("advisor_min_pages_to_scan")
            )
        after[name] = new
        changes.append(Change(name, old, new))
    return changes


def _refuse(knob: Knob, text: str, code: int, why: str = "") -> RejectedError:
    name = errno.errorcode[code]
    reason = f": {why}" if why else ""
    return RejectedError(
        f"{knob.name} can't be {text!r}{reason} ({name})",
        hint=f"accepted: {knob.accepted}",
        errno=code,
    )


def _parse_bool(knob: Knob, text: str) -> int:
    for words, value in ((_TRUE, 1), (_FALSE, 0)):
        if text.startswith(words):
            return value
    raise _refuse(knob, text, errno.EINVAL)


def _parse_integer(knob: Knob, text: str) -> int:
    match = _INTEGER.fullmatch(text)
    # kstrtoint alone knows a minus sign; the unsigned ones stop at it
    if match is None or (match[1] == "-" and knob.type is not Type.INT):
        raise _refuse(knob, text, errno.EINVAL, "below 0" if match else "not a whole number")
    value = int(match[1] + match[2])
    too_large = errno.ERANGE if knob.name in _RANGE_IS_ERANGE else errno.EINVAL
    if abs(value) > ULONG_MAX:  # found while the digits are read, before what follows them
        raise _refuse(knob, text, too_large, "too large")
    if match[3] not in ("", "\n"):
        raise _refuse(knob, text, errno.EINVAL, "not a whole number")
    if knob.type is Type.INT and not -(2**31) <= value < 2**31:
        raise _refuse(knob, text, too_large, "too large" if value > 0 else "too small")
    if value > ULONG_MAX or (knob.type is Type.UINT and value > UINT_MAX):
        raise _refuse(knob, text, too_large, "too large")
    return value
