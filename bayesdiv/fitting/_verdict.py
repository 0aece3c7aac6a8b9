"""A plain verdict on a fit, and what to try next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Verdict:
    """Whether a fit can be used, with its evidence.

    ``agreement`` is the largest difference of a mean between restarts, in posterior standard
    deviations; NaN with one restart.
    """

    converged: bool
    pareto_k: float
    ess_fraction: float
    agreement: float
    log_evidence: float
    advice: tuple[str, ...]

    @property
    def trustworthy(self) -> bool:
        """Converged, with restarts that agree and weights that importance sampling can correct."""
        agree = not self.agreement > 0.1
        return self.converged and agree and self.pareto_k < 0.7

    def __str__(self) -> str:
        state = "converged" if self.converged else "NOT converged"
        agreement = (
            "one restart"
            if np.isnan(self.agreement)
            else f"restarts agree to {self.agreement:.3f} sd"
        )
        lines = [
            f"{state}; {agreement}; Pareto k {self.pareto_k:.2f}, "
            f"ESS {100.0 * self.ess_fraction:.0f} %; log evidence {self.log_evidence:.2f} nats.",
            *self.advice,
        ]
        return "\n".join(lines)


def judge(
    *,
    converged: bool,
    pareto_k: float,
    ess_fraction: float,
    agreement: float,
    log_evidence: float,
    guide: str,
    objective: str,
    failures: tuple[str, ...] = (),
) -> Verdict:
    """The verdict from a fit's diagnostics; ``guide`` and ``objective`` say what was tried.

    ``failures`` are the messages of windows of steps that were taken back.
    """
    advice = []
    if not converged:
        advice.append("Not converged: call resume(), or raise max_steps.")
        advice.extend(f"Steps were taken back: {failure}" for failure in failures)
    if agreement > 0.1:
        advice.append(
            "Restarts disagree: there may be several modes; compare their evidence, or use more "
            "num_restarts."
        )
    if pareto_k > 0.7:
        richer = {"mean_field": "guide='full_rank'", "full_rank": "guide='flow'"}.get(guide)
        covering = "objective='jensen_shannon'" if objective == "reverse_kl" else None
        options = [option for option in (richer, covering) if option]
        advice.append(
            f"Pareto k {pareto_k:.2f} > 0.7: the guide misses part of the posterior, and "
            "importance weights cannot repair it. Try "
            + ", ".join([*options, "a reparameterised model, or NUTS."])
        )
    elif pareto_k > 0.5:
        advice.append(
            "Pareto k between 0.5 and 0.7: use psis_resample() for moments and intervals."
        )
    return Verdict(converged, pareto_k, ess_fraction, agreement, log_evidence, tuple(advice))
