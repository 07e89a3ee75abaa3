"""Whom calls are injected into, before anything is stopped."""

from __future__ import annotations

import os

import pytest

from pagemerge.errors import NotSupportedError, RejectedError
from pagemerge.kernel import advise_region
from pagemerge.kernel.injecting import call_numbers, inject_calls


def test_each_architecture_has_its_own_numbers() -> None:
    assert call_numbers("x86_64") == (157, 28)
    assert call_numbers("aarch64") == (167, 233)


def test_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(NotSupportedError, match="on riscv64: only on x86_64 and aarch64") as caught:
        call_numbers("riscv64")
    assert caught.value.hint is not None


def test_this_process_cannot_stop_itself() -> None:
    with pytest.raises(RejectedError, match="is this one"):
        inject_calls(os.getpid(), [])


@pytest.mark.parametrize(("start", "end"), [(1, 4096), (0, 4095), (8192, 4096), (4096, 4096)])
def test_what_is_not_whole_pages_is_refused(start: int, end: int) -> None:
    with pytest.raises(RejectedError, match="is not whole pages"):
        advise_region(1, start, end, on=True)
