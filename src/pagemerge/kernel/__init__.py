"""Linux's own KSM: its knobs and counters, its processes, and merging for running processes."""

from pagemerge.kernel.ksm import KernelKsm
from pagemerge.kernel.requests import (
    Injected,
    advise_region,
    check_memory_merge,
    check_region,
    set_memory_merge,
)

__all__ = [
    "Injected",
    "KernelKsm",
    "advise_region",
    "check_memory_merge",
    "check_region",
    "set_memory_merge",
]
