"""What a policy over sequences has become: its divergences from a target, and its diversity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from bayesdiv.diagnostics._container import build_container
from bayesdiv.diagnostics._groups import Groups
from bayesdiv.divergences import FDivergence, JensenShannon, TotalVariation
from bayesdiv.inference.sequence_diversity import distinct_ngrams, self_bleu

__all__ = ["TargetSample", "draw_from_target", "evaluate_policy", "runs_to_arviz"]

Statistics = Mapping[str, Callable[[torch.Tensor], torch.Tensor]]


class TargetSample(NamedTuple):
    """Sequences from the target, and what is known of its normaliser.

    Parameters
    ----------
    value
        ``(n, max_length)``.
    log_target
        log P at each, ``(n,)``.
    log_normalizer
        log Z.
    standard_error
        Of log Z.
    """

    value: torch.Tensor
    log_target: torch.Tensor
    log_normalizer: float
    standard_error: float


@torch.no_grad()
def draw_from_target(
    target: Any,
    num_samples: int = 4000,
    *,
    proposal: Any = None,
    num_proposed: int = 200_000,
    chunk_size: int = 20_000,
) -> TargetSample:
    """Sequences from a target by resampling those of a proposal, the target's base by default.

    For a pointwise constraint it is rejection, and exact; else the bias is of the order of one over
    the effective sample size of the proposed.

    Raises
    ------
    RuntimeError
        If no proposed sequence has P > 0.
    """
    proposal = target.base if proposal is None else proposal
    rows, log_targets, log_weights = [], [], []
    for start in range(0, num_proposed, chunk_size):
        value = proposal.sample((min(chunk_size, num_proposed - start),))
        log_target = target.log_prob(value)
        weight = (log_target - proposal.log_prob(value)).double()
        # Many tokens cost memory; only those that can be drawn are kept.
        kept = weight > -math.inf
        rows.append(value[kept])
        log_targets.append(log_target[kept])
        log_weights.append(weight[kept])
    log_weight = torch.cat(log_weights)
    if not len(log_weight):
        raise RuntimeError(
            f"the target has no mass on any of {num_proposed} proposed sequences; raise "
            "num_proposed, or pass a proposal nearer to it."
        )
    log_z = float(log_weight.logsumexp(0) - math.log(num_proposed))
    ratio = (log_weight - log_z).exp()
    second = float((ratio**2).sum() / num_proposed)
    order = torch.multinomial(
        ratio / ratio.sum(),
        num_samples,
        # Equal weights: each sequence is drawn once while there are any left.
        replacement=bool(ratio.max() > 1.001 * ratio.min()) or len(ratio) < num_samples,
    )
    return TargetSample(
        torch.cat(rows)[order],
        torch.cat(log_targets)[order],
        log_z,
        math.sqrt(max(second - 1.0, 0.0) / num_proposed),
    )


@torch.no_grad()
def evaluate_policy(
    target: Any,
    policy: Any,
    sample: TargetSample,
    *,
    num_samples: int = 4000,
    statistics: Statistics | None = None,
    num_texts: int = 300,
) -> dict[str, float]:
    r"""Divergences from the target, entropy, distance from the base, diversity, moments.

    With samples of both sides, D_f(p‖π) = E_p[f'(u)] − E_π[pseudo_reward(log u)] at u = p/π; the
    two KL divergences are the means of ±log u alone. Reverse KL is infinite where π has mass and
    the target none.

    Parameters
    ----------
    target, policy
        As `bayesdiv.inference.f_dpg.FDPG` takes them; the target's ``base`` is what ``base_kl``,
        KL(π‖a), is measured from.
    sample
        From `draw_from_target`.
    num_samples
        Of the policy.
    statistics
        Functions of sequences, whose means under the policy are reported.
    num_texts
        Sequences that ``self_bleu_5`` compares.

    Returns
    -------
    dict
        ``forward_kl``, ``reverse_kl``, ``base_kl`` and ``entropy`` in nats, ``total_variation``,
        ``jensen_shannon`` (at most log 2), ``distinct_1``, ``distinct_2``, ``self_bleu_5``,
        ``unique`` (the share of different sequences), and the statistics.
    """
    value = policy.sample((num_samples,))
    log_policy = policy.log_prob(value).double()
    ours = target.log_prob(value).double() - log_policy - sample.log_normalizer
    at_target = policy.log_prob(sample.value).double()
    theirs = sample.log_target.double() - at_target - sample.log_normalizer
    found = {"forward_kl": theirs.mean().item(), "reverse_kl": -ours.mean().item()}
    bounded: dict[str, FDivergence] = {
        "total_variation": TotalVariation(),
        "jensen_shannon": JensenShannon(),
    }
    for name, member in bounded.items():
        found[name] = (member.derivative(theirs).mean() - member.pseudo_reward(ours).mean()).item()
    found["entropy"] = -log_policy.mean().item()
    found["base_kl"] = (log_policy - target.base.log_prob(value).double()).mean().item()
    texts = _as_lists(value, policy)
    found["distinct_1"] = distinct_ngrams(texts, 1)
    found["distinct_2"] = distinct_ngrams(texts, 2)
    found["self_bleu_5"] = self_bleu(texts[:num_texts], 5)
    found["unique"] = len({tuple(text) for text in texts}) / len(texts)
    for name, function in (statistics or {}).items():
        found[name] = function(value).double().mean().item()
    return found


def _as_lists(value: torch.Tensor, policy: Any) -> list[list[int]]:
    """Rows as lists, without the end and what follows it."""
    end = getattr(policy, "end", None)
    rows = value.tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def runs_to_arviz(
    histories: Sequence[Mapping[str, Any]],
    moments: Sequence[str],
    *,
    thin: int = 1,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Runs with different seeds as chains: moments by step as draws, the rest ``sample_stats``.

    R-hat and effective sample sizes of the later steps then say whether the runs have come to the
    same moments.

    Parameters
    ----------
    histories
        ``TrainingResult.history`` of each run, equally long.
    moments
        Names of those metrics that are moments of features.
    thin
        Keep every so many steps.
    attrs
        Kept beside the posterior.

    Raises
    ------
    ValueError
        No runs, runs of different lengths or metrics, or a moment that is no metric.
    """
    if not histories:
        raise ValueError("histories must hold at least one run, got none.")
    names, lengths = set(histories[0]), {len(next(iter(run.values()))) for run in histories}
    if len(lengths) > 1 or any(set(run) != names for run in histories):
        raise ValueError(
            f"histories must have the same metrics and numbers of steps, got lengths "
            f"{sorted(lengths)} and metrics {[sorted(run) for run in histories]}."
        )
    missing = sorted(set(moments) - names)
    if missing or not moments:
        raise ValueError(
            f"moments must be among the metrics {sorted(names)}, at least one, got {list(moments)}."
        )
    stacked = {
        name: np.stack([np.asarray(run[name])[::thin] for run in histories]) for name in names
    }
    posterior = {name: stacked.pop(name) for name in moments}
    groups = Groups(
        {"posterior": posterior, "sample_stats": dict(sorted(stacked.items()))},
        attrs=dict(attrs or {}),
    )
    return build_container(groups)
