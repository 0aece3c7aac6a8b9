"""Diagnostics: ArviZ, smoothed weights, accuracy, comparison of objectives, glottal instants."""

from bayesdiv.diagnostics._accuracy import PosteriorAccuracy, compare_posteriors
from bayesdiv.diagnostics._arviz import to_arviz
from bayesdiv.diagnostics._compare import compare
from bayesdiv.diagnostics._comparison import Comparison
from bayesdiv.diagnostics._frechet import (
    ClassifierFeatures,
    frechet_distance,
    train_classifier_features,
)
from bayesdiv.diagnostics._predictions import predictions_to_arviz
from bayesdiv.diagnostics._predictive import (
    plug_in_log_likelihood,
    proper_log_likelihood,
    rhat_of_predictions,
)
from bayesdiv.diagnostics._psis import SmoothedWeights, describe_k, psis, psis_resample
from bayesdiv.diagnostics._sample_quality import (
    ClassCoverage,
    PrecisionRecall,
    SampleQuality,
    class_coverage,
    precision_recall,
    sample_quality,
)
from bayesdiv.diagnostics.epochs import (
    EpochMetrics,
    GlottalInstants,
    GlottalQuotients,
    ZeroFrequencyEpochs,
    average_epoch_metrics,
    detect_glottal_instants,
    epoch_metrics,
    glottal_quotients,
    harmonics_to_noise_ratio,
    mean_pitch_period,
    voiced_mask,
    zero_frequency_epochs,
)

__all__ = [
    "ClassCoverage",
    "ClassifierFeatures",
    "Comparison",
    "EpochMetrics",
    "GlottalInstants",
    "GlottalQuotients",
    "PosteriorAccuracy",
    "PrecisionRecall",
    "SampleQuality",
    "SmoothedWeights",
    "ZeroFrequencyEpochs",
    "average_epoch_metrics",
    "class_coverage",
    "compare",
    "compare_posteriors",
    "describe_k",
    "detect_glottal_instants",
    "epoch_metrics",
    "frechet_distance",
    "glottal_quotients",
    "harmonics_to_noise_ratio",
    "mean_pitch_period",
    "plug_in_log_likelihood",
    "precision_recall",
    "predictions_to_arviz",
    "proper_log_likelihood",
    "psis",
    "psis_resample",
    "rhat_of_predictions",
    "sample_quality",
    "to_arviz",
    "train_classifier_features",
    "voiced_mask",
    "zero_frequency_epochs",
]
