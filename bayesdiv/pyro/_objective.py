"""The f-divergences and bounds as a Pyro ELBO."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.util import check_site_shape

from bayesdiv.objectives import Estimate, ObjectiveSettings, estimate, is_two_sample
from bayesdiv.objectives._normalizer import RunningNormalizer
from bayesdiv.objectives._plates import SiteTerm, find_layout, reduce_to_layout, total
from bayesdiv.pyro._frozen import FrozenGuide, NoPathGradient
from bayesdiv.pyro._sites import (
    as_term,
    check_match,
    check_sequential_plates,
    describe_non_finite,
    masked,
    sample_sites,
    scaled,
    unscaled_log_prob,
)

_HOST_ARGUMENTS = tuple(
    name
    for name in inspect.signature(ELBO.__init__).parameters
    if name not in ("self", "num_particles")
)


def objective(
    divergence: Any,
    *,
    num_particles: int | None = None,
    gradient: str = "auto",
    normalizer: Any = "self",
    warmup: int = 0,
    **arguments: Any,
) -> ELBO:
    r"""An objective by name, as the ``loss`` of :class:`pyro.infer.SVI`.

    Parameters
    ----------
    divergence
        A name from :func:`bayesdiv.objectives.list_objectives`, a divergence, or one of your own.
        f-divergences and bounds act on log p̃(z) − log q(z), see :class:`DivergenceELBO`;
        two-sample divergences on samples, see :class:`SampleObjective` for the space.
    num_particles
        Samples of the guide a step. None: 1 for reverse KL, 16 for others, 64 for samples.
    gradient
        "auto", "path", "reparam" or "score".
    normalizer
        "self", "running", or the known log Z; only for log-weights.
    warmup
        Steps of reverse KL first. Mass-covering divergences need it when started far away.
    **arguments
        Arguments of Pyro's ELBO (``max_plate_nesting``, ``vectorize_particles``, …); all others
        are parameters of the divergence, such as ``order=0.5``. A callable is a schedule: it gets
        the step.

    Raises
    ------
    ValueError
        An unknown name or parameter, or an estimator that the divergence does not have.

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from bayesdiv.pyro import objective
    >>> def model():
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
    >>> guide = pyro.infer.autoguide.AutoNormal(model)
    >>> optimiser = pyro.optim.Adam({"lr": 0.01})
    >>> svi = pyro.infer.SVI(model, guide, optimiser, loss=objective("jensen_shannon"))
    >>> svi.step() >= 0.0
    True
    """
    if is_two_sample(divergence):
        from bayesdiv.pyro._sample_objective import SampleObjective

        return SampleObjective(divergence, num_particles=num_particles, warmup=warmup, **arguments)
    host = {name: arguments.pop(name) for name in _HOST_ARGUMENTS if name in arguments}
    settings = ObjectiveSettings(
        divergence,
        arguments,
        num_particles=num_particles,
        gradient=gradient,
        normalizer=normalizer,
        warmup=warmup,
    )
    return DivergenceELBO(settings, **host)


class DivergenceELBO(ELBO):
    r"""D_f(p‖q) of the posterior p and the guide q, or a bound, estimated from the guide's samples.

    A drop-in ``loss`` for :class:`pyro.infer.SVI` and for the module interface. The loss of reverse
    KL is minus the ELBO, that of a bound minus the bound, that of any other divergence its
    self-normalised estimate. Plates that enclose every site are independent problems: the
    divergence is applied to each element and summed, so that they may be subsampled.

    Parameters of the model get −E[path_weight · ∇ log p]: the ELBO's gradient under reverse KL, the
    evidence's (IWAE, wake phase) under forward KL.

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
        self._reparameterize_whole = False

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
        """The loss as a scalar tensor with the surrogate's gradient."""
        result, _ = self._estimate(model, guide, args, kwargs, training=torch.is_grad_enabled())
        return result.loss

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, without gradients and without counting as a step."""
        with torch.no_grad():
            result, _ = self._estimate(model, guide, args, kwargs, training=False)
        return result.value.item()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Backpropagate the surrogate and return the loss; the only device synchronisation."""
        result, terms = self._estimate(model, guide, args, kwargs, training=True)
        if result.surrogate.requires_grad:
            result.surrogate.backward(retain_graph=self.retain_graph)
        value = result.value.item()
        if not math.isfinite(value):
            self._refuse(value, terms)
        return value

    def estimate(
        self, model: Any, guide: Any, *args: Any, num_particles: int = 1000, **kwargs: Any
    ) -> Estimate:
        """The estimate with more particles: its ``log_evidence``, ``ess`` and ``pareto_k``."""
        fresh = copy.copy(self)
        grows = self.vectorize_particles and num_particles > 1 and self.num_particles == 1
        if grows and math.isfinite(self.max_plate_nesting):
            fresh.max_plate_nesting += 1
        fresh.num_particles = num_particles
        with torch.no_grad():
            return fresh._estimate(model, guide, args, kwargs, training=False)[0]

    # Traces

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        unwrapped = poutine.unwrap(guide)
        if isinstance(unwrapped, Messenger):
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
            site = trace.nodes[term.name]
            site["log_prob"] = term.log_prob
            check_site_shape(site, self.max_plate_nesting)

    @property
    def _particle_dim(self) -> int | None:
        vectorized = self.vectorize_particles and self.num_particles > 1
        return -int(self.max_plate_nesting) if vectorized else None

    # One estimate

    def _estimate(
        self, model: Any, guide: Any, args: Any, kwargs: Any, *, training: bool
    ) -> tuple[Estimate, list[SiteTerm]]:
        current = self.settings.current(self.step)
        gradient = self.settings.resolve_gradient(current)
        if gradient == "path" and self.settings.gradient == "auto" and self._reparameterize_whole:
            gradient = "reparam"
        try:
            gathered = self._gather(model, guide, args, kwargs, current, gradient)
        except NoPathGradient as error:
            if self.settings.gradient == "path":
                raise ValueError(
                    f"gradient='path' needs the density of site {str(error)!r} at a given value, "
                    "but its flow has no inverse; use gradient='reparam' or 'auto'."
                ) from error
            self._reparameterize_whole, gradient = True, "reparam"
            gathered = self._gather(model, guide, args, kwargs, current, gradient)
        log_weight, log_q, scale, terms = gathered
        if log_q is not None and self.settings.gradient == "auto" and not log_weight.requires_grad:
            gradient = "score"
        log_normalizer, state = self.settings.normalizer(self.normalizer_state, log_weight)
        if training:
            self.step += 1
            self.normalizer_state = state
        result = estimate(
            current,
            log_weight,
            gradient=gradient,
            log_q=log_q,
            log_normalizer=log_normalizer,
            scale=scale,
        )
        return result, terms

    def _gather(
        self, model: Any, guide: Any, args: Any, kwargs: Any, current: Any, gradient: str
    ) -> tuple[torch.Tensor, torch.Tensor | None, float, list[SiteTerm]]:
        """log-weights (num_particles, *common plates), log q of score sites, scale and terms."""
        rows, scores, scale, terms = [], [], 1.0, []
        with _Unreparameterized() if gradient == "score" else _Nothing():
            traces = list(self._get_traces(model, guide, args, kwargs))
        run = self._vectorized_num_particles(guide) if self.vectorize_particles else guide
        linear = self.settings.is_linear and self.step >= self.settings.warmup
        for model_trace, guide_trace in traces:
            plus = [
                as_term(site, scaled(site, unscaled_log_prob(site)))
                for site in sample_sites(model_trace)
            ]
            minus, score = self._guide_terms(run, guide, guide_trace, args, kwargs, gradient)
            every = [*plus, *minus]
            if is_validation_enabled():
                self._check_shapes(model_trace, plus)
                self._check_shapes(guide_trace, minus)
            check_sequential_plates([*sample_sites(model_trace)], linear=linear)
            layout = find_layout(every, linear=linear)
            if layout.scale != 1.0 and isinstance(self.settings.normalizer, RunningNormalizer):
                raise ValueError(
                    "normalizer='running' keeps log Z of each plate element, but the plates "
                    f"{[plate.name for plate in layout.common]} are subsampled and their elements "
                    "change; use normalizer='self'."
                )
            dim = self._particle_dim
            shape = (() if dim is None else (self.num_particles,)) + tuple(
                plate.size for plate in layout.common
            )
            parts = [reduce_to_layout(term.log_prob, layout, dim) for term in plus]
            parts += [-reduce_to_layout(term.log_prob, layout, dim) for term in minus]
            like = every[0].log_prob if every else torch.zeros(())
            row = total(parts, shape, like)
            rows.append(row if layout.scale == 1.0 else row / layout.scale)
            if score:
                pieces = [reduce_to_layout(term.log_prob, layout, dim) for term in score]
                scores.append(total(pieces, shape, like))
            scale = layout.scale
            terms = every
        stacked = self._particle_dim is not None
        log_weight = rows[0] if stacked else torch.stack(rows)
        if not scores:
            return log_weight, None, scale, terms
        return log_weight, scores[0] if stacked else torch.stack(scores), scale, terms

    def _guide_terms(
        self, run: Any, guide: Any, guide_trace: Any, args: Any, kwargs: Any, gradient: str
    ) -> tuple[list[SiteTerm], list[SiteTerm]]:
        """Terms of log q in the log-weight, and those of the sites that need the score function."""
        sites = list(sample_sites(guide_trace))
        needs_score = [
            gradient == "score" or not getattr(site["fn"], "has_rsample", False) for site in sites
        ]
        if any(needs_score) and self.settings.gradient in ("path", "reparam"):
            site = next(site for site, needs in zip(sites, needs_score, strict=True) if needs)
            raise ValueError(
                f"guide site {site['name']!r} ({type(site['fn']).__name__}) is not "
                f"reparameterised, so gradient={self.settings.gradient!r} does not exist for it; "
                "use gradient='auto' or 'score'."
            )
        frozen = None
        if gradient == "path" and torch.is_grad_enabled():
            frozen = self._frozen.log_probs(run, guide_trace, args, kwargs, guide)
        inside, score = [], []
        for site, needs in zip(sites, needs_score, strict=True):
            own = None
            if needs or frozen is None:
                own = unscaled_log_prob(site)
            if needs and isinstance(own, torch.Tensor):
                score.append(as_term(site, masked(site, own)))
            if frozen is not None:
                log_prob = frozen[site["name"]]
            else:
                log_prob = own.detach() if gradient == "score" and needs else own
            inside.append(as_term(site, scaled(site, log_prob)))
        return inside, score

    def _refuse(self, value: float, terms: list[SiteTerm]) -> None:
        for parameter in pyro.get_param_store().values():
            leaf = parameter.unconstrained() if hasattr(parameter, "unconstrained") else parameter
            if leaf.grad is not None:
                leaf.grad = None
        where = describe_non_finite(terms, self.num_particles, vectorized=self.vectorize_particles)
        raise ValueError(
            f"the loss at step {self.step - 1} is {value}: {where}. The parameters are those of "
            "the last good step. Start closer (warmup=, a smaller step size, init_scale), or "
            "constrain the model so that log-probabilities stay finite."
        )


class _Unreparameterized(Messenger):
    """Samples latent sites without a path for gradients, for the score function."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or msg["done"]:
            return
        if getattr(msg["fn"], "has_rsample", False):
            with torch.no_grad():
                msg["value"] = msg["fn"].sample(*msg["args"], **msg["kwargs"])


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None
