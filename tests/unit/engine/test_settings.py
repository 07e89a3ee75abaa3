from __future__ import annotations

import pytest

from pagemerge.engine.settings import Settings
from pagemerge.errors import CommandError, RejectedError


def test_one_bad_value_changes_none() -> None:
    settings = Settings()
    before = settings.values()
    with pytest.raises(RejectedError, match="max_page_sharing"):
        settings.apply({"pages_to_scan": "7", "max_page_sharing": "1"}, 0)
    with pytest.raises(CommandError):
        settings.apply({"pages_to_scan": "7", "no_such_knob": "1"}, 0)
    assert settings.values() == before


def test_only_what_changed_is_named() -> None:
    settings = Settings()
    settings.apply({"sleep_millisecs": "5"}, 0)
    assert settings.apply({"sleep_millisecs": "5", "smart_scan": "0"}, 0) == {"smart_scan"}


def test_sharing_knobs_are_busy_while_pages_are_shared() -> None:
    settings = Settings()
    with pytest.raises(RejectedError, match="EBUSY"):
        settings.apply({"max_page_sharing": "10"}, 5)
    assert settings.apply({"run": "2", "max_page_sharing": "10"}, 5) == {"run", "max_page_sharing"}


def test_the_advisor_takes_pages_to_scan_and_gives_100_back() -> None:
    settings = Settings()
    settings.apply({"advisor_mode": "scan-time"}, 0)
    assert settings.pages_to_scan == 500
    with pytest.raises(RejectedError, match="advisor_mode"):
        settings.apply({"pages_to_scan": "7"}, 0)
    settings.apply({"advisor_mode": "none"}, 0)
    assert settings.pages_to_scan == 100
