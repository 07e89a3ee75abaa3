"""How much merging would save, where, and at what price, before it is switched on.

>>> from pagemerge.insight import estimate, find_targets
>>> estimate(find_targets(pids=[4242])).pages_sharing  # doctest: +SKIP
"""

from pagemerge.insight.advise import Advice, AdvisedRegion, advise
from pagemerge.insight.apply import Applied, AppliedRegion, apply_advice
from pagemerge.insight.estimate import EstimateOptions, estimate
from pagemerge.insight.model import EngineCost, KsmdCost
from pagemerge.insight.results import (
    Estimate,
    Interval,
    Matrix,
    ProcessEstimate,
    RegionEstimate,
    TopContent,
)
from pagemerge.insight.snippets import LANGUAGES, render_snippet
from pagemerge.insight.targets import Target, Targets, find_targets

__all__ = [
    "LANGUAGES",
    "Advice",
    "AdvisedRegion",
    "Applied",
    "AppliedRegion",
    "EngineCost",
    "Estimate",
    "EstimateOptions",
    "Interval",
    "KsmdCost",
    "Matrix",
    "ProcessEstimate",
    "RegionEstimate",
    "Target",
    "Targets",
    "TopContent",
    "advise",
    "apply_advice",
    "estimate",
    "find_targets",
    "render_snippet",
]
