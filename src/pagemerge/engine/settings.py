"""The engine's knobs: the kernel's names, parsers and refusals, and defaults of its own."""

from __future__ import annotations

from collections.abc import Mapping

from pagemerge.ksm import KNOBS, KnobValue, plan_changes

__all__ = ["ENGINE_DEFAULTS", "SCANNER_KNOBS", "Settings"]

# A daemon was started to merge, and a look costs it little: it need not be as shy as the kernel's.
ENGINE_DEFAULTS: Mapping[str, KnobValue] = {"run": 1, "pages_to_scan": 5000}

# What the C core must know.
SCANNER_KNOBS = frozenset(
    {
        "max_page_sharing",
        "merge_across_nodes",
        "smart_scan",
        "stable_node_chains_prune_millisecs",
        "use_zero_pages",
    }
)

_ADVISOR_OFF_PAGES = 100  # what the kernel sets pages_to_scan to


class Settings:
    """The values, as attributes by the knobs' names."""

    run: int
    pages_to_scan: int
    sleep_millisecs: int
    merge_across_nodes: int
    max_page_sharing: int
    use_zero_pages: int
    smart_scan: int
    stable_node_chains_prune_millisecs: int
    advisor_mode: str
    advisor_max_cpu: int
    advisor_min_pages_to_scan: int
    advisor_max_pages_to_scan: int
    advisor_target_scan_time: int

    def __init__(self) -> None:
        """Start from the defaults."""
        for knob in KNOBS:
            setattr(self, knob.name, ENGINE_DEFAULTS.get(knob.name, knob.default))

    def values(self) -> dict[str, KnobValue]:
        """Give all of them by name."""
        return {knob.name: getattr(self, knob.name) for knob in KNOBS}

    def apply(self, texts: Mapping[str, str], pages_shared: int) -> set[str]:
        """Set several knobs, in the order given, all or none; the names of those that changed.

        Args:
            texts: what the kernel's files would take.
            pages_shared: the counter, pages: some knobs can't change while it is not 0.

        Raises:
            CommandError: there is no such knob.
            RejectedError: the kernel would refuse a value.
        """
        before = self.values()
        for change in plan_changes(texts, before, pages_shared):
            if change.name == "advisor_mode" and change.new != self.advisor_mode:
                self.pages_to_scan = (
                    _ADVISOR_OFF_PAGES if change.new == "none" else self.advisor_min_pages_to_scan
                )
            setattr(self, change.name, change.new)
        return {name for name, value in self.values().items() if value != before[name]}

    def advise_pages_to_scan(self, pages: int) -> None:
        """Take the advisor's word."""
        self.pages_to_scan = pages
