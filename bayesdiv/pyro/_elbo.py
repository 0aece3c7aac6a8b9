"""The f-divergences and bounds as a Pyro ELBO."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.guide import GuideMessenger
from pyro.util import check_site_shape

from bayesdiv.divergences import ReverseKL
from bayesdiv.objectives import Estimate, ObjectiveSettings, RenyiBound, estimate
from bayesdiv.objectives._normalizer import RunningNormalizer
from bayesdiv.objectives._plates import PlateLayout, SiteTerm
from bayesdiv.pyro._frozen import FrozenGuide, NoPathGradient
from bayesdiv.pyro._graph import graph_nodes, reaches_parameters
from bayesdiv.pyro._log_weights import (
    TraceTerms,
    Unreparameterized,
    check_reparameterized,
    check_scored,
    common_plates,
    guide_terms,
    model_terms,
    sum_everything,
    sum_to_layout,
)
from bayesdiv.pyro._sites import (
    check_match,
    check_sequential_plates,
    describe_non_finite,
    is_delta,
    sample_sites,
)


@dataclass
class _Step:
    """One estimate, the terms that it came from and the state that it leaves behind."""

    estimate: Estimate
    particles: list[list[SiteTerm]]
    normalizer_state: Any


class DivergenceELBO(ELBO):
    r"""D_f(p‖q) of the posterior p and the guide q, or a bound, estimated from the guide's samples.

    A drop-in ``loss`` for :class:`pyro.infer.SVI` and for the module interface. The loss of reverse
    KL is minus the ELBO, that of a bound minus the bound, that of any other divergence its
    self-normalised estimate. Plates that enclose every site are independent problems: the
    divergence is applied to each element and summed, so that they may be subsampled.

    With ``gradient="auto"`` reverse KL has the gradient of Pyro's ``Trace_ELBO``; all others have
    path gradients, or those of plain reparameterisation where the guide or a bound with parameters
    in the model rules paths out. Sites that are not reparameterised get score-function terms with a
    leave-one-out baseline, and total variation only those.

    Parameters of the model get −E[path_weight · ∇ log p]: the ELBO's gradient under reverse KL, the
    evidence's (wake phase) under forward KL; under a bound, the bound's own. Point estimates
    (``Delta`` sites with a parameter) are treated likewise.

    Parameters
    ----------
    settings
        What :func:`objective` was asked for.
    **host_arguments
        Arguments of :class:`pyro.infer.elbo.ELBO`; particles are vectorised by default.

    Raises
    ------
    ValueError
        From a step: a guide site without reparameterisation under "path" or "reparam", model and
        guide that do not match, enumeration, a subsampled plate that does not enclose every site,
        or a loss that is not finite (parameters are left at the last good step).
    """

    def __init__(
        self,
        settings: ObjectiveSettings,
        *,
        vectorize_particles: bool = True,
        **host_arguments: Any,
    ) -> None:
        super().__init__(
            num_particles=settings.count,
            vectorize_particles=vectorize_particles,
            **host_arguments,
        )
        self.settings = settings
        self.step = 0
        self.normalizer_state: Any = (
            settings.normalizer.init() if settings.normalizer.is_stateful else None
        )
        self._frozen = FrozenGuide()

    def state_dict(self) -> dict[str, Any]:
        """The step and the running normaliser, which a resumed run needs beside the parameters."""
        return {"step": self.step, "normalizer_state": self.normalizer_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.step = state["step"]
        self.normalizer_state = state["normalizer_state"]

    # The host's protocol

    def differentiable_loss(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The loss as a scalar tensor with the surrogate's gradient; a step unless ``no_grad``."""
        step = self._estimate(model, guide, args, kwargs)
        if torch.is_grad_enabled():
            self._accept(step, step.estimate.value.item())
        return step.estimate.loss

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, without gradients and without counting as a step."""
        with torch.no_grad():
            return self._estimate(model, guide, args, kwargs).estimate.value.item()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Backpropagate the surrogate and return the loss; the only device synchronisation."""
        step = self._estimate(model, guide, args, kwargs)
        value = step.estimate.value.item()
        self._accept(step, value)
        if step.estimate.surrogate.requires_grad:
            step.estimate.surrogate.backward(retain_graph=self.retain_graph)
        return value

    def estimate(
        self,
        model: Any,
        guide: Any,
        *args: Any,
        num_particles: int = 1000,
        chunk_size: int = 1000,
        **kwargs: Any,
    ) -> Estimate:
        """The estimate with more particles: its ``log_evidence``, ``ess`` and ``pareto_k``.

        At most ``chunk_size`` particles are in memory at once.
        """
        for name, number in (("num_particles", num_particles), ("chunk_size", chunk_size)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number!r}.")
        parts, layout = [], PlateLayout((), 1.0)
        with torch.no_grad():
            for start in range(0, num_particles, chunk_size):
                fresh = self._with_particles(min(chunk_size, num_particles - start))
                gathered, layout = fresh._gather(model, guide, args, kwargs, None, "reparam")
                parts.append(fresh._stack(gathered, layout, "log_weight"))
                self.max_plate_nesting = fresh._nesting_for(self.num_particles)
            return self._evaluate(self.settings.current(self.step), torch.cat(parts), layout.scale)

    def _with_particles(self, num_particles: int) -> DivergenceELBO:
        fresh = copy.copy(self)
        fresh.max_plate_nesting = self._nesting_for(num_particles)
        fresh.num_particles = num_particles
        return fresh

    def _nesting_for(self, num_particles: int) -> float:
        """``max_plate_nesting`` with that many particles: vectorised ones take a dim of it."""
        if not self.vectorize_particles or math.isinf(self.max_plate_nesting):
            return self.max_plate_nesting
        return self.max_plate_nesting + (num_particles > 1) - (self.num_particles > 1)

    # Traces

    def _get_traces(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        if self.num_particles == 1:
            # Nothing to vectorise, so that the depth of plates need not be guessed by another run.
            yield self._get_trace(model, guide, args, kwargs)
        else:
            yield from super()._get_traces(model, guide, args, kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        unwrapped: Any = poutine.unwrap(guide)
        if isinstance(unwrapped, GuideMessenger):
            guide(*args, **kwargs)
            model_trace, guide_trace = unwrapped.get_traces()
        else:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(
                *args, **kwargs
            )
        if is_validation_enabled():
            check_match(model_trace, guide_trace)
        return model_trace, guide_trace

    def _check_shapes(self, trace: Any, terms: list[SiteTerm]) -> None:
        for term in terms:
            shape = tuple(term.log_prob.shape)
            if self._is_vectorized and len(shape) > self.max_plate_nesting:
                raise ValueError(
                    f"site {term.name!r} has a log-probability of shape {shape}, but particles and "
                    f"plates take {self.max_plate_nesting} dims: model and guide must broadcast "
                    "over one more dim on the left; write (x * w).sum(-1) rather than x @ w, or "
                    "pass vectorize_particles=False."
                )
            if is_validation_enabled():
                site: Any = {**trace.nodes[term.name], "log_prob": term.log_prob}
                check_site_shape(site, self.max_plate_nesting)

    @property
    def _is_vectorized(self) -> bool:
        return self.vectorize_particles and self.num_particles > 1

    # One estimate

    def _estimate(self, model: Any, guide: Any, args: Any, kwargs: Any) -> _Step:
        current = self.settings.current(self.step)
        gradient = self.settings.resolve_gradient(current)
        try:
            gathered, layout = self._gather(model, guide, args, kwargs, current, gradient)
        except NoPathGradient:
            gathered, layout = self._gather(model, guide, args, kwargs, current, gradient)
        particles = [terms.inside for terms in gathered]
        has_score = any(terms.score for terms in gathered)
        is_elbo = type(current) is ReverseKL
        if is_elbo and not has_score and not self.settings.normalizer.is_stateful:
            loss = sum_everything(gathered) * (-1.0 / self.num_particles)
            return _Step(Estimate(loss, loss.detach(), loss.detach()), particles, None)
        log_weight = self._stack(gathered, layout, "log_weight")
        log_normalizer, state = self.settings.normalizer(self.normalizer_state, log_weight)
        if not torch.is_grad_enabled():
            result = self._evaluate(current, log_weight, layout.scale)
            return _Step(result, particles, self.normalizer_state)
        log_q = self._stack(gathered, layout, "score") if has_score else None
        if gradient == "score" and log_q is None:
            log_q = torch.zeros_like(log_weight)  # Point estimates only.
        if is_elbo and log_q is not None and self.num_particles == 1:
            # The other estimators have a baseline from the other particles.
            fixed = log_weight.detach()
            loss = (log_weight + fixed * log_q).sum() * -layout.scale
            result = Estimate(loss, fixed.sum() * -layout.scale, fixed, layout.scale)
            return _Step(result, particles, state)
        if log_q is not None and self.settings.gradient == "auto" and not log_weight.requires_grad:
            gradient = "score"
        elif gradient == "path" and not all(terms.has_path for terms in gathered):
            gradient = "reparam"
        result = estimate(
            current,
            log_weight,
            gradient=gradient,
            log_q=log_q,
            log_normalizer=log_normalizer,
            scale=layout.scale,
        )
        return _Step(result, particles, state)

    def _evaluate(self, current: Any, log_weight: torch.Tensor, scale: float) -> Estimate:
        """The value, where no gradient will be asked for."""
        log_normalizer, _ = self.settings.normalizer(self.normalizer_state, log_weight)
        gradient = "path" if current.has_path_gradient else "reparam"
        return estimate(
            current, log_weight, gradient=gradient, log_normalizer=log_normalizer, scale=scale
        )

    def _gather(
        self, model: Any, guide: Any, args: Any, kwargs: Any, current: Any, gradient: str
    ) -> tuple[list[TraceTerms], PlateLayout]:
        """Log-probabilities of each pair of traces, and the plates that all their sites share."""
        linear = self.settings.is_linear
        gathered, layout = [], PlateLayout((), 1.0)
        # Each pair at once: a flow keeps what its density needs for the last sample alone.
        with Unreparameterized() if gradient == "score" else nullcontext():
            for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
                if self.settings.gradient in ("path", "reparam"):
                    check_reparameterized(guide_trace, self.settings.gradient)
                if gradient == "score":
                    check_scored(guide_trace)
                plus = model_terms(model_trace)
                frozen = None
                if gradient == "path" and torch.is_grad_enabled():
                    frozen = self._frozen_log_probs(guide, guide_trace, plus, current, args, kwargs)
                minus, score = guide_terms(guide_trace, gradient, frozen, linear=linear)
                self._check_shapes(model_trace, plus)
                self._check_shapes(guide_trace, minus)
                if not linear:
                    check_sequential_plates(
                        [*sample_sites(model_trace), *sample_sites(guide_trace)]
                    )
                gathered.append(TraceTerms(plus, minus, score, has_path=frozen is not None))
                # The sums of an ELBO need no plates; the baseline of the score function does.
                if not linear or score or not torch.is_grad_enabled():
                    layout = common_plates([*plus, *minus], linear=linear)
        if layout.scale != 1.0 and isinstance(self.settings.normalizer, RunningNormalizer):
            raise ValueError(
                "normalizer='running' keeps log Z of each plate element, but the plates "
                f"{[plate.name for plate in layout.common]} are subsampled and their elements "
                "change; use normalizer='self'."
            )
        return gathered, layout

    def _frozen_log_probs(
        self,
        guide: Any,
        guide_trace: Any,
        plus: list[SiteTerm],
        current: Any,
        args: Any,
        kwargs: Any,
    ) -> dict[str, Any] | None:
        """log q with its parameters held fixed; None where "auto" has to do without."""
        run = self._vectorized_num_particles(guide) if self._is_vectorized else guide
        try:
            if isinstance(current, RenyiBound):
                _check_model_is_fixed(guide_trace, plus)
            return self._frozen.log_probs(run, guide_trace, args, kwargs, guide)
        except NoPathGradient as reason:
            if self.settings.gradient == "path":
                raise ValueError(
                    f"gradient='path' does not exist here: {reason}; use gradient='reparam' or "
                    "'auto'."
                ) from reason
            if reason.is_news:
                raise
            return None

    def _stack(self, gathered: list[TraceTerms], layout: PlateLayout, what: str) -> torch.Tensor:
        """``(num_particles, *common plates)``, without the plates' scale."""
        dim = -int(self.max_plate_nesting) if self._is_vectorized else None
        shape = tuple(plate.size for plate in layout.common)
        if dim is not None:
            shape = (self.num_particles, *shape)
        rows = []
        for terms in gathered:
            if what == "score":
                rows.append(sum_to_layout(terms.score, [], layout, dim, shape))
            else:
                row = sum_to_layout(terms.plus, terms.minus, layout, dim, shape)
                rows.append(row if layout.scale == 1.0 else row / layout.scale)
        if dim is not None:
            return rows[0]
        return rows[0][None] if len(rows) == 1 else torch.stack(rows)

    def _accept(self, step: _Step, value: float) -> None:
        """Count the step, or raise and leave everything at the last good one."""
        if not math.isfinite(value):
            depth = int(self.max_plate_nesting) if self._is_vectorized else None
            raise ValueError(
                f"the loss at step {self.step} is {value}: "
                f"{describe_non_finite(step.particles, depth)}. The parameters are those of the "
                "last good step. Start closer (warmup=, a smaller step size, init_scale), or "
                "constrain the model so that log-probabilities stay finite."
            )
        self.step += 1
        if self.settings.normalizer.is_stateful:
            self.normalizer_state = step.normalizer_state


def _check_model_is_fixed(guide_trace: Any, plus: list[SiteTerm]) -> None:
    """Raise if log p̃ has parameters: a bound's path weights are those of the samples alone."""
    random = (site for site in sample_sites(guide_trace) if not is_delta(site["fn"]))
    noise = graph_nodes(site["value"] for site in random)
    if reaches_parameters([term.log_prob for term in plus], noise):
        raise NoPathGradient(
            "the model has parameters (or the guide point estimates), whose gradient of a bound "
            "needs other weights than that of the samples"
        )
