"""The two-sample divergences as a Pyro ELBO."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from pyro.infer.util import is_validation_enabled, validation_enabled
from torch.distributions import biject_to

from bayesdiv.divergences import TwoSampleDivergence
from bayesdiv.objectives import ObjectiveSettings
from bayesdiv.objectives._sample_spaces import refuse_without_observations
from bayesdiv.objectives._samples import (
    Pair,
    compare,
    effective_size,
    flatten_reference,
    importance_weights,
    posterior_pair,
    predictive_pair,
    sample_settings,
    standardize,
)
from bayesdiv.pyro._objective import DivergenceELBO
from bayesdiv.pyro._sample_sites import (
    Nodes,
    check_reparameterized,
    check_whole_latents,
    codes_of,
    detached,
    latent_part,
    latent_sites,
    outside_codes,
    predictive_rows,
    refuse_log_weights,
    side_by_side,
)
from bayesdiv.pyro._sites import (
    as_term,
    check_match,
    sample_sites,
    scaled,
    unscaled_log_prob,
)

_HOST_ARGUMENTS = tuple(
    name
    for name in inspect.signature(ELBO.__init__).parameters
    if name not in ("self", "num_particles", "vectorize_particles")
)


class SampleObjective(ELBO):
    r"""A divergence D(p‖q) between two samples, as the ``loss`` of :class:`pyro.infer.SVI`.

    ========  ============================================  ===================================
    space     x, the sample of the target p                 y, the sample of the approximation q
    ========  ============================================  ===================================
    "latent"  the posterior's: the guide's draws with       the guide's draws, ``(num_particles,
              importance weights softmax(log p̃ − log q),    dim)``, all sites unconstrained and
              or ``reference`` draws                        laid side by side
    "data"    observed rows ``(n, event)`` of each site     posterior predictive rows, pooled:
                                                            ``(num_particles · n, event)``
    "codes"   the prior's draws of the latent sites in      the guide's draws of them, aggregated
              the data plate                                over the plate: ``(rows, dim)``
    ========  ============================================  ===================================

    - "latent": loss D. The weights approximate the posterior only where the guide covers it, so
      start with ``warmup`` steps of reverse KL; ``effective_size`` after a step says how many
      draws carry them. Parameters of the model get the evidence's gradient (the wake update),
      unless there is a ``reference``, which leaves them alone. Every latent site counts as one
      joint vector: for a latent a datum use "codes" or an f-divergence.
    - "data": loss Σ_sites D − prior_scale · E log p(z), as Pyro's ``EnergyDistance``. Outcomes are
      compared by their marginal law; ``context`` joins covariates to both sides. Likelihoods need
      no density, only reparameterised draws. It does not fit the posterior: without a prior the
      guide shrinks to whatever best predicts. Masks and tensor scales weigh rows.
    - "codes": loss −E log p(x|z) + penalty · n · D, n the plate's full size: a Wasserstein
      autoencoder (Tolstikhin et al. 2018, eq. 4). log q of the codes is never asked for, so the
      encoder may be deterministic. Latent sites outside the plate keep their reverse KL.

    Divergences with inner parameters (learnt slices) keep them between steps and climb once a step.

    Parameters
    ----------
    divergence
        A name, or a :class:`~bayesdiv.divergences.TwoSampleDivergence`.
    num_particles, space, warmup
        See :class:`~bayesdiv.objectives.SampleSettings`.
    rng
        A ``torch.Generator`` or a seed for random projections; None: torch's global generator.
    vectorize_particles
        One run for all particles (default), or a loop.
    **options
        ``standardize``, ``reference``, ``context``, ``prior_scale``, ``penalty``; arguments of
        :class:`pyro.infer.elbo.ELBO`; the rest are parameters of a named divergence.

    Raises
    ------
    ValueError
        At construction: an unknown space, name or option, too few particles. From a step: a guide
        site, or in "data" a likelihood, that is not reparameterised; no latent site in a data
        plate for "codes"; a reference or context of the wrong shape; model and guide that do not
        match; log-weights that are not finite.
    """

    def __init__(
        self,
        divergence: Any,
        *,
        num_particles: int | None = None,
        space: str = "latent",
        warmup: int = 0,
        rng: Any = None,
        vectorize_particles: bool = True,
        **options: Any,
    ) -> None:
        host = {name: options.pop(name) for name in _HOST_ARGUMENTS if name in options}
        self.settings = sample_settings(
            divergence, space=space, num_particles=num_particles, warmup=warmup, **options
        )
        count = self.settings.count
        super().__init__(count, vectorize_particles=vectorize_particles, **host)
        self._warm = DivergenceELBO(
            ObjectiveSettings("reverse_kl", num_particles=count),
            vectorize_particles=vectorize_particles,
            **host,
        )
        self._rng = rng
        self._reference: tuple[torch.Tensor, dict[str, Any]] | None = None
        self.step = 0
        self.inner_state: dict[str, Any] = {}
        self.effective_size: torch.Tensor | None = None

    def differentiable_loss(
        self, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """The loss with its gradient; counts as a step, after which inner state is kept."""
        if self.step < self.settings.warmup:
            self.step += 1
            return self._warm.differentiable_loss(model, guide, *args, **kwargs)
        self.step += 1
        return self._loss(model, guide, args, kwargs, training=True)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss as a number, without gradients and without counting as a step."""
        if self.step < self.settings.warmup:
            return self._warm.loss(model, guide, *args, **kwargs)
        with torch.no_grad():
            return self._loss(model, guide, args, kwargs, training=False).item()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Backpropagate the loss and return it."""
        if self.step < self.settings.warmup:
            self.step += 1
            return self._warm.loss_and_grads(model, guide, *args, **kwargs)
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return loss.item()

    def _loss(
        self, model: Any, guide: Any, args: Any, kwargs: Any, *, training: bool
    ) -> torch.Tensor:
        if self.settings.reference is not None:
            self._prepare_reference(model, guide, args, kwargs)
        traces = list(self._get_traces(model, guide, args, kwargs))
        for _, guide_trace in traces:
            check_reparameterized(guide_trace, self.settings.space)
        if self.settings.space == "latent":
            return self._latent_loss(traces, training=training)
        if self.settings.space == "data":
            return self._data_loss(traces, args, kwargs, training=training)
        return self._codes_loss(model, traces, args, kwargs, training=training)

    def _compare(self, name: str, pair: Pair, *, training: bool) -> torch.Tensor:
        divergence: TwoSampleDivergence = self.settings.divergence
        if isinstance(self._rng, int):
            self._rng = torch.Generator(device=pair.y.device).manual_seed(self._rng)
        state = self.inner_state.get(name)
        if training and state is None and self.settings.has_inner_state:
            state = divergence.init(pair.x, pair.y, rng=self._rng)
        value, state = compare(
            divergence, pair, state=state, rng=(self._rng, self._rng), advance=training
        )
        if training and state is not None:
            self.inner_state[name] = state
        return value

    # Traces

    def _guess_max_plate_nesting(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        # Validation would ask for densities, which likelihoods in "data" and priors in "codes" need
        # not have.
        with validation_enabled(is_validation_enabled() and self.settings.space == "latent"):
            super()._guess_max_plate_nesting(model, guide, args, kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        unwrapped: Any = poutine.unwrap(guide)
        if hasattr(unwrapped, "get_traces"):
            guide(*args, **kwargs)
            _, guide_trace = unwrapped.get_traces()
        else:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        if self.settings.reference is not None:
            return None, guide_trace
        # In "latent" the density only weighs, so that no gradient has to pass through the model.
        source = detached(guide_trace) if self.settings.space == "latent" else guide_trace
        run = poutine.replay(model, trace=source)
        if self.settings.space == "data":
            run = poutine.uncondition(run)
        model_trace = poutine.trace(run).get_trace(*args, **kwargs)
        check_match(latent_part(model_trace), guide_trace)
        return model_trace, guide_trace

    @property
    def _in_one_run(self) -> bool:
        return self.vectorize_particles and self.num_particles > 1

    def _per_particle(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum to ``(particles of one run,)``; a term without the particle axis counts for all."""
        if not self._in_one_run:
            return tensor.sum().reshape(1)
        if tensor.ndim > self.max_plate_nesting:
            raise ValueError(
                f"a log-probability has batch shape {tuple(tensor.shape)}, with more dims than the "
                f"{int(self.max_plate_nesting)} plates (particles included); let the model "
                "broadcast over plates to the left, or pass vectorize_particles=False."
            )
        if tensor.ndim < self.max_plate_nesting:
            return tensor.sum().expand(self.num_particles)
        summed = tensor.reshape(tensor.shape[0], -1).sum(1)
        return summed.expand(self.num_particles)

    def _density(self, sites: Any) -> torch.Tensor:
        """Σ log-probabilities of sites, ``(particles of one run,)``."""
        terms = [
            self._per_particle(as_term(site, scaled(site, unscaled_log_prob(site))).log_prob)
            for site in sites
        ]
        if not terms:
            return torch.zeros(self.num_particles if self._in_one_run else 1)
        return torch.stack(terms).sum(0)

    # "latent"

    def _prepare_reference(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        if self._reference is not None:
            return
        with torch.no_grad(), poutine.block():
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(
                *args, **kwargs
            )
        check_match(model_trace, guide_trace)
        sites = {site["name"]: site for site in latent_sites(model_trace)}
        transforms = {name: biject_to(site["fn"].support) for name, site in sites.items()}
        shapes = {name: tuple(site["value"].shape) for name, site in sites.items()}
        reference = {
            name: torch.as_tensor(value) for name, value in (self.settings.reference or {}).items()
        }
        draws = flatten_reference(
            reference, shapes, lambda name, value: transforms[name].inv(value)
        )
        self._reference = draws, transforms

    def _latent_rows(self, values: Iterable[tuple[Any, torch.Tensor]]) -> torch.Tensor:
        count = self.num_particles if self._in_one_run else 1
        return torch.cat(
            [transform.inv(value).reshape(count, -1) for transform, value in values], dim=1
        )

    def _latent_loss(self, traces: list[Any], *, training: bool) -> torch.Tensor:
        if self._reference is not None:
            draws, transforms = self._reference
            y = torch.cat(
                [
                    self._latent_rows((transforms[n], g.nodes[n]["value"]) for n in transforms)
                    for _, g in traces
                ]
            )
            pair = Pair(draws.to(y), y)
            if self.settings.standardize:
                pair = standardize(pair, pair.x)
            return self._compare("latent", pair, training=training)
        rows, log_joints, log_weights = [], [], []
        for model_trace, guide_trace in traces:
            sites = list(latent_sites(model_trace))
            check_whole_latents(model_trace)
            rows.append(
                self._latent_rows(
                    (biject_to(s["fn"].support), guide_trace.nodes[s["name"]]["value"])
                    for s in sites
                )
            )
            log_joint = self._density(sample_sites(model_trace))
            with torch.no_grad():
                log_q = self._density(sample_sites(guide_trace))
            log_joints.append(log_joint)
            log_weights.append(log_joint.detach() - log_q)
        y, log_joint, log_weight = torch.cat(rows), torch.cat(log_joints), torch.cat(log_weights)
        # −inf is a draw outside the target's support, which weighs nothing.
        if not bool(log_weight.isfinite().any() & (log_weight < torch.inf).all()):
            refuse_log_weights(traces, self.max_plate_nesting if self._in_one_run else None)
        pair = posterior_pair(y, log_weight.to(y.dtype))
        self.effective_size = effective_size(log_weight)
        if self.settings.standardize:
            pair = standardize(pair, pair.y)
        loss = self._compare("latent", pair, training=training)
        if log_joint.requires_grad:
            log_joint = torch.where(log_weight > -torch.inf, log_joint, 0.0)
            wake = -(importance_weights(log_weight) * log_joint).sum()
            loss = loss + (wake - wake.detach())
        return loss

    # "data"

    def _data_loss(
        self, traces: list[Any], args: Any, kwargs: Any, *, training: bool
    ) -> torch.Tensor:
        context = self.settings.context
        if callable(context):
            context = context(*args, **kwargs)
        first = traces[0][0]
        observed = [s["name"] for s in sample_sites(first) if s["infer"].get("was_observed")]
        if not observed:
            refuse_without_observations()
        loss: Any = 0.0
        for name in observed:
            if first.nodes[name]["mask"] is False:
                continue
            rows, predicted, weights = predictive_rows(traces, name, self.num_particles)
            pair = predictive_pair(rows, predicted, weights=weights, context=context, site=name)
            if self.settings.standardize:
                pair = standardize(pair, pair.x, pair.x_weights)
            loss = loss + self._compare(name, pair, training=training)
        if self.settings.prior_scale > 0:
            prior = torch.cat([self._density(latent_sites(m)) for m, _ in traces]).mean()
            loss = loss - self.settings.prior_scale * prior
        return loss

    # "codes"

    def _codes_loss(
        self, model: Any, traces: list[Any], args: Any, kwargs: Any, *, training: bool
    ) -> torch.Tensor:
        found = codes_of(traces[0][0])
        names = found.names
        codes, prior, others = [], [], []
        for model_trace, guide_trace in traces:
            codes.append(side_by_side(model_trace, names))
            if len(names) == 1:
                site = model_trace.nodes[names[0]]
                drawn = Nodes({names[0]: {**site, "value": site["fn"]()}})
                prior.append(side_by_side(drawn, names))
            else:
                prior.append(self._ancestral(model, guide_trace, names, args, kwargs))
            outside = outside_codes(model_trace, guide_trace, found)
            kept = [site for site in sample_sites(model_trace) if site["name"] not in names]
            log_joint = self._density(kept)
            others.append(log_joint - self._density(outside) if outside else log_joint)
        pair = Pair(torch.cat(prior), torch.cat(codes))
        divergence = self._compare("codes", pair, training=training)
        return self.settings.penalty * found.full_size * divergence - torch.cat(others).mean()

    def _ancestral(
        self, model: Any, guide_trace: Any, names: list[str], args: Any, kwargs: Any
    ) -> torch.Tensor:
        """Prior draws of codes that depend on one another, global sites held at the guide's."""
        partial = guide_trace.copy()
        for name in names:
            partial.remove_node(name)
        run = model if not self._in_one_run else self._vectorized_num_particles(model)
        with poutine.block():
            trace = poutine.trace(
                poutine.uncondition(poutine.replay(run, trace=partial))
            ).get_trace(*args, **kwargs)
        return side_by_side(trace, names)
