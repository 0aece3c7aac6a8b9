"""The ArviZ container of a model whose parameters mean nothing but in what they predict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayesdiv.diagnostics._container import build_container
from bayesdiv.diagnostics._groups import Groups, as_numpy


def predictions_to_arviz(
    predictions: Any,
    *,
    log_likelihood: Any = None,
    prior_predictive: Any = None,
    sample_stats: Mapping[str, Any] | None = None,
    observed_data: Any = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Predictions at probe inputs as the posterior, in an ``InferenceData`` or ``DataTree``.

    Weights of a network have symmetries, so that R-hat and effective sample sizes of them say
    nothing; those of predictions do, and ``arviz.summary`` and ``arviz.loo`` run on the result.

    Parameters
    ----------
    predictions
        ``(chain, draw, probe, *rest)`` of torch, JAX or NumPy: ``posterior["prediction"]``.
    log_likelihood
        Of the training data, ``(chain, draw, n)`` in nats: ``log_likelihood["observation"]``.
    prior_predictive
        Rows drawn from the prior predictive, ``(chain, draw, *rest)``:
        ``prior_predictive["observation"]``.
    sample_stats
        The sampler's, ``(chain, draw)`` each, by name.
    observed_data
        The training data, ``(n, *rest)``: ``observed_data["observation"]``.
    attrs
        Kept beside the posterior.

    Raises
    ------
    ValueError
        If an array lacks the axes ``(chain, draw)``, or they differ from those of ``predictions``.
    """
    posterior = as_numpy(predictions)
    groups: dict[str, dict[str, Any]] = {"posterior": {"prediction": posterior}}
    lead = posterior.shape[:2]
    if posterior.ndim < 3:
        raise ValueError(
            f"predictions must have shape (chain, draw, probe, ...), got {posterior.shape}."
        )
    stats = {name: as_numpy(value) for name, value in (sample_stats or {}).items()}
    same = dict(stats)
    if log_likelihood is not None:
        same["log_likelihood"] = as_numpy(log_likelihood)
        groups["log_likelihood"] = {"observation": same["log_likelihood"]}
    for name, value in same.items():
        if value.shape[:2] != lead:
            raise ValueError(
                f"{name} must start with the axes (chain, draw) = {lead} of predictions, got shape "
                f"{value.shape}."
            )
    if stats:
        groups["sample_stats"] = stats
    if prior_predictive is not None:
        rows = as_numpy(prior_predictive)
        if rows.ndim < 2:
            raise ValueError(
                f"prior_predictive must have shape (chain, draw, ...), got {rows.shape}."
            )
        groups["prior_predictive"] = {"observation": rows}
    if observed_data is not None:
        groups["observed_data"] = {"observation": as_numpy(observed_data)}
    return build_container(Groups(groups, {"prediction": ["probe"]}, attrs=dict(attrs or {})))
