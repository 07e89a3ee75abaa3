"""The kernel itself as the oracle of what a knob accepts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pagemerge.errors import RejectedError
from pagemerge.ksm import KNOBS, Knob, Type, parse_knob, parse_shown
from tests.support.kernel_ksm import KernelKsmControl
from tests.support.knob_texts import TEXTS, WORDS

KSM = Path("/sys/kernel/mm/ksm")


def kernel_says(knob: Knob, text: str) -> tuple[int, object]:
    """Write it: (errno or 0, what the file shows then)."""
    path = KSM / knob.name
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        return error.errno or 0, None
    finally:
        os.close(fd)
    return 0, parse_shown(knob, path.read_text())


def we_say(knob: Knob, text: str) -> tuple[int, object]:
    try:
        return 0, parse_knob(knob, text)
    except RejectedError as error:
        return error.errno or 0, None


@pytest.mark.ksm
@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_the_kernel_accepts_and_refuses_what_we_say(
    kernel_ksm: KernelKsmControl, knob: Knob
) -> None:
    if not kernel_ksm.has(knob.name):
        pytest.skip(f"this kernel has no {knob.name}")
    texts = [text for text in (*TEXTS, *WORDS) if text]  # an empty write never reaches it
    if knob.name == "run":  # the machine's KSM is to stay stopped
        texts = [text for text in texts if we_say(knob, text)[1] != 1]
    got = {text: kernel_says(knob, text) for text in texts}
    assert {text: we_say(knob, text) for text in texts} == got
    if knob.type is not Type.CHOICE:
        assert {code for code, _ in got.values()} <= {0, errno.EINVAL, errno.ERANGE}
