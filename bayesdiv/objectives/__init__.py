"""Objectives: from log-weights or samples to a surrogate, a value and diagnostics."""

from bayesdiv.objectives._bounds import RenyiBound, TailAdaptive, importance_weighted
from bayesdiv.objectives._estimate import Estimate, estimate
from bayesdiv.objectives._learned_ratio import LearnedRatio
from bayesdiv.objectives._normalizer import (
    GivenNormalizer,
    RunningNormalizer,
    RunningNormalizerState,
    SelfNormalizer,
)
from bayesdiv.objectives._pareto import pareto_k
from bayesdiv.objectives._registry import get_objective, is_two_sample, list_objectives
from bayesdiv.objectives._samples import SampleSettings, sample_settings
from bayesdiv.objectives._schedules import LinearSchedule, linear_schedule
from bayesdiv.objectives._settings import ObjectiveSettings
from bayesdiv.objectives.density_ratio import (
    Calibration,
    ClampedRatio,
    DensityRatio,
    RatioCritic,
    RatioProbe,
)

__all__ = [
    "Calibration",
    "ClampedRatio",
    "DensityRatio",
    "Estimate",
    "GivenNormalizer",
    "LearnedRatio",
    "LinearSchedule",
    "ObjectiveSettings",
    "RatioCritic",
    "RatioProbe",
    "RenyiBound",
    "RunningNormalizer",
    "RunningNormalizerState",
    "SampleSettings",
    "SelfNormalizer",
    "TailAdaptive",
    "estimate",
    "get_objective",
    "importance_weighted",
    "is_two_sample",
    "linear_schedule",
    "list_objectives",
    "pareto_k",
    "sample_settings",
]
