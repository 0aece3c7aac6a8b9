r"""Adversarial variational inference: a Pyro model and guide of which either may lack a density.

With observations x in a plate, codes z of each row, a prior p*(z) and a guide q(z|x),

.. math::

    \min_{q, θ}\; E\big[-\log p_θ(x|z)\big] + λ\, D(p^*, q), \qquad z ∼ q(z|x),

where D compares samples: an f-divergence through a critic whose logit is l ≈ log p*/q, or a
divergence of two samples such as sliced Wasserstein. Densities of prior and guide are never asked
for, so that the prior may be a pool of codes and the guide a deterministic network.

=============  ================================================  ================================
match          what the critic tells apart                       for
=============  ================================================  ================================
"aggregate"    p*(z) and q(z) = E_x q(z|x)                       adversarial autoencoders
"conditional"  p*(z|c) and q(z|c), beside a context c            pairs; explicit densities
"paired"       nothing: D is E|z − z*|², z* the row's own        feature distillation
=============  ================================================  ================================

For a point-mass guide the information term I(x; z) of the evidence bound is infinite and left out:
"aggregate" has the form of a bound and is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from bayesdiv.inference._adversarial_critic import (
    BatchNormLogitCritic,
    CodeCritic,
    check_critic,
)
from bayesdiv.inference._adversarial_matches import ADVERSARIAL_BETAS, Compared, Match, make_match
from bayesdiv.inference._adversarial_probe import CodeProbe, ProbeSettings, probe_codes
from bayesdiv.inference._adversarial_settings import (
    AdversarialSettings,
    check_arguments,
    resolve_divergence,
)
from bayesdiv.inference._adversarial_sites import (
    Batch,
    Call,
    Layout,
    call_of,
    find_sites,
    parameters_of,
    trace_pair,
)
from bayesdiv.inference._adversarial_state import (
    ParameterState,
    all_finite,
    apply_gradients,
    check_influence,
    evaluating,
    gradients_of,
    modules_of,
)
from bayesdiv.pyro._frozen import NoPathGradient

__all__ = [
    "AdversarialInference",
    "AdversarialReport",
    "AdversarialSettings",
    "BatchNormLogitCritic",
    "CodeCritic",
    "CodeProbe",
    "ProbeSettings",
    "probe_codes",
]


class AdversarialReport(NamedTuple):
    """What was matched how, and how the critic fares.

    ``access`` is "learned", "exact", "samples" or "paired". ``critic_loss`` is the mean of the last
    hundred steps that were looked at, NaN before or without a critic; at 2 log 2 ≈ 1.38629 the
    critic says nothing, and ``is_dead`` says whether a fresh one did. ``probe`` is the last one.
    """

    num_steps: int
    match: str
    access: str
    divergence: Any
    critic_loss: float
    is_dead: bool
    probe: CodeProbe | None


class _Setup(NamedTuple):
    """What the first batch shows; ``guide`` and ``both`` are parameters."""

    layout: Layout
    match: str
    compare: Match
    state: ParameterState
    guide: list[torch.Tensor]
    both: list[torch.Tensor]


class AdversarialInference:
    r"""Fits a Pyro model and guide by matching codes to the prior; a routine of `training.train`.

    Model and guide are called with the same arguments: the entries of a batch that is a tuple or
    list, keywords if it is a mapping. Latent sites in the data's plate are its codes. Those without
    a density in model or guide (an `EmpiricalPrior`, a ``Delta``, a ``log_prob`` that raises
    NotImplementedError) are matched by samples; other latent sites keep log q − log p. If all codes
    have densities, all are matched.

    The gradient of an f-divergence D_f(p*‖q) with respect to the guide is the layer's path
    gradient, −E_q[path_weight(l) ∇_z l ∂z/∂φ]. Hence softened reverse KL is the non-saturating
    loss E_q softplus(−l), Jensen–Shannon half the saturating one, −½ E_q softplus(l), and reverse
    KL −E_q l. The prior is not trained by it.

    With explicit densities and ``match=None`` or "conditional" l is exact, a row at a time, and
    there is no critic: with reverse KL and weight 1 the loss is minus the evidence bound, that of
    ``bayesdiv.pyro.objective("reverse_kl")`` per row of data.

    Parameters
    ----------
    model, guide
        Pyro's; modules, methods of modules, or functions that register theirs by ``pyro.module``.
        Guide sites are reparameterised or ``Delta``.
    divergence
        By name or object: an f-divergence with a path gradient, or one of two samples; None is
        "softened_reverse_kl", the published loss.
    match
        See above. None: exact where every code has densities and the divergence is an
        f-divergence, otherwise "aggregate". For "paired" the model draws the row's own code, such
        as ``Delta(encoder(x))``; for "conditional" it draws codes that go with their rows.
    weight
        λ, of D. At 0 the guide is fitted by reconstruction alone and the critic only watches.
    context
        For "conditional" without densities: a function of the batch's arguments that returns what
        the critic sees beside each code, ``(rows, ...)``.
    critic
        "spectral_norm" (`CodeCritic`), "batch_norm_logit" (`BatchNormLogitCritic`, which cannot
        learn), or a module from rows ``(n, dim)`` to logits ``(n,)``.
    sites
        Names of the matched codes, if not those above.
    modules
        Modules that model or guide use as functions, if neither they nor their methods are passed:
        their buffers are kept in checkpoints, and they are put in evaluation mode for probes.
    settings
        `AdversarialSettings`.

    Raises
    ------
    ValueError
        Arguments that do not go together; from a step: codes outside the data's plate, a guide
        without parameters or with those of an earlier program, fewer than two rows, a guide site
        without reparameterisation, pooled draws with "paired", "conditional" without context or
        densities.
    TypeError
        A critic, context or divergence of another kind.
    FloatingPointError
        A loss or gradient that is not finite, naming which; the parameters are those of the last
        good step.

    Warns
    -----
    RuntimeWarning
        Once, if the critic's loss is not below 2 log 2, that of chance, over a hundred steps while
        a fresh critic tells codes apart, and if no parameter of the model has any influence; from
        `probe`, codes that are separable.

    References
    ----------
    Prathosh et al. (2019), Adversarial approximate inference for speech to electroglottograph
    conversion, §II; Makhzani et al. (2016), Adversarial autoencoders; Mescheder, Nowozin and Geiger
    (2017), Adversarial variational Bayes, §3; Tolstikhin et al. (2018), equation 4.

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from bayesdiv.pyro import EmpiricalPrior
    >>> from bayesdiv.training import TensorBatches, train
    >>> pool, encoder, decoder = torch.randn(500, 2), torch.nn.Linear(3, 2), torch.nn.Linear(2, 3)
    >>> def model(x):
    ...     pyro.module("decoder", decoder)
    ...     with pyro.plate("rows", len(x)):
    ...         z = pyro.sample("z", EmpiricalPrior(pool))
    ...         pyro.sample("x", dist.Normal(decoder(z), 0.1).to_event(1), obs=x)
    >>> def guide(x):
    ...     pyro.module("encoder", encoder)
    ...     with pyro.plate("rows", len(x)):
    ...         pyro.sample("z", dist.Delta(encoder(x), event_dim=1))
    >>> routine = AdversarialInference(model, guide, divergence="jensen_shannon")
    >>> batches = TensorBatches(torch.randn(100, 3), batch_size=50)
    >>> train(routine, batches, num_steps=4, progress_bar=False).stopped
    'completed'
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *,
        divergence: Any = None,
        match: str | None = None,
        weight: float = 1.0,
        context: Callable[..., torch.Tensor] | None = None,
        critic: Any = "spectral_norm",
        sites: Collection[str] | None = None,
        modules: Iterable[torch.nn.Module] = (),
        settings: AdversarialSettings | None = None,
    ) -> None:
        self.settings = AdversarialSettings() if settings is None else settings
        check_arguments(match, weight, context, self.settings)
        check_critic(critic)
        self.divergence = resolve_divergence(divergence, match)
        self.model, self.guide, self.weight = model, guide, float(weight)
        self.num_steps = 0
        self._options = {"match": match, "context": context, "critic": critic}
        self._sites = sites
        self._modules = modules_of([model, guide, *modules])
        self._setup: _Setup | None = None
        self._pending: Mapping[str, Any] | None = None
        self._last_probe: CodeProbe | None = None

    # The routine's protocol

    def prepare(self, accelerator: Any) -> None:
        """Move modules to the accelerator's device; there is one process."""
        if accelerator.num_processes > 1:
            raise ValueError(
                "adversarial inference runs in one process, got an accelerator with "
                f"{accelerator.num_processes}."
            )
        for module in self._modules:
            module.to(accelerator.device)

    def step(self, batch: Any) -> dict[str, torch.Tensor]:
        """The critic's steps, then one of guide and model.

        Metrics, each a mean over rows: ``loss`` = ``reconstruction`` + weight · ``divergence``; the
        divergence is the critic's own estimate where there is one, then with ``critic_loss`` and
        ``implied_jensen_shannon``, which is log 2 − critic_loss/2.
        """
        call = call_of(batch)
        rows, setup = self._trace(call)
        try:
            error, found = self._evaluate(rows, setup)
        except NoPathGradient:
            # Looking for a path gradient has used up what flows keep for their last sample.
            error, found = self._evaluate(self._trace(call)[0], setup)
        self._move(setup, error, found)
        self.num_steps += 1
        value, error = found.value.detach(), error.detach()
        return {
            "loss": error + self.weight * value,
            "reconstruction": error,
            "divergence": value,
            **found.metrics,
        }

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next step depends on, random states aside."""
        if self._setup is None:
            return dict(self._pending or {"num_steps": 0, "networks": None, "match": None})
        return {
            "num_steps": self.num_steps,
            "networks": self._setup.state.state_dict(),
            "match": self._setup.compare.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; before the first step, once that sees a batch."""
        if self._setup is None:
            self._pending = None if state["networks"] is None else state
            return
        self.num_steps = state["num_steps"]
        self._setup.state.load_state_dict(state["networks"])
        self._setup.compare.load_state_dict(state["match"])

    def report(self) -> AdversarialReport:
        """The critic as it was at the last look, and the last probe."""
        if self._setup is None:
            raise ValueError("report needs at least one step, got none.")
        watch = getattr(self._setup.compare, "watch", None)
        return AdversarialReport(
            self.num_steps,
            self._setup.match,
            self._setup.compare.access,
            self.divergence,
            math.nan if watch is None else watch.mean_loss,
            watch is not None and watch.is_dead,
            self._last_probe,
        )

    # Looking at codes

    def draw(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the prior and codes of ``batch``, each ``(rows, dim)``, in evaluation mode.

        A context stands before the codes, and ``dim`` is that of both together.
        """
        call = call_of(batch)
        with torch.no_grad(), evaluating(self._modules):
            traces = trace_pair(self.model, self.guide, call)
            rows = self._rows(call, traces, find_sites(*traces, self._sites))
            return rows.beside(rows.draw_prior()), rows.beside(rows.codes)

    def probe(self, *batches: Any, settings: ProbeSettings | None = None) -> CodeProbe:
        """What a fresh critic says of held-out batches; warns if codes are separable."""
        if not batches:
            raise ValueError("probe needs at least one batch of rows that were not trained on.")
        drawn = [self.draw(batch) for batch in batches]
        prior, codes = (torch.cat(each) for each in zip(*drawn, strict=True))
        self._last_probe = probe_codes(prior, codes, settings or self.settings.probe)
        return self._last_probe.warn()

    # The first batch

    def _trace(self, call: Call) -> tuple[Batch, _Setup]:
        if self._setup is None and self._pending is not None:
            # A run that goes on must draw what it would have drawn without the interruption.
            with torch.random.fork_rng():
                self._setup = self._start(call, trace_pair(self.model, self.guide, call))
            state, self._pending = self._pending, None
            self.load_state_dict(state)
        traces = trace_pair(self.model, self.guide, call)
        if self._setup is None:
            self._setup = self._start(call, traces)
        return self._rows(call, traces, self._setup.layout), self._setup

    def _rows(self, call: Call, traces: tuple[Any, Any], layout: Layout) -> Batch:
        return Batch(self.model, call, traces, layout, self._options["context"])

    def _start(self, call: Call, traces: tuple[Any, Any]) -> _Setup:
        layout, settings = find_sites(*traces, self._sites), self.settings
        rows = self._rows(call, traces, layout)
        match, compare = make_match(
            rows, self.guide, divergence=self.divergence, settings=settings, **self._options
        )
        model, guide = (parameters_of(trace) for trace in traces)
        if not guide:
            raise ValueError(
                "the guide has no parameters that Pyro knows of; make it a PyroModule, or call "
                "pyro.module(name, network) in it."
            )
        both = {**guide, **model}
        optimizers = {"both": torch.optim.Adam(both.values(), lr=settings.reconstruction_rate)}
        default = "joint" if compare.access in ("exact", "paired") else "separate"
        if (settings.updates or default) == "separate" and self.weight:
            optimizers["guide"] = torch.optim.Adam(
                guide.values(), lr=self.weight * settings.encoder_rate, betas=ADVERSARIAL_BETAS
            )
        state = ParameterState(both, optimizers, self._modules)
        return _Setup(layout, match, compare, state, list(guide.values()), list(both.values()))

    # One step

    def _evaluate(self, rows: Batch, setup: _Setup) -> tuple[torch.Tensor, Compared]:
        if len(rows.codes) < 2:
            raise ValueError(
                f"a batch must have at least 2 rows that are not masked, got {len(rows.codes)}."
            )
        error = rows.reconstruction()
        # Before the critic sees them.
        if not all_finite([rows.codes, error]):
            self._refuse("reconstruction" if all_finite([rows.codes]) else "guide's codes", error)
        return error, setup.compare(rows)

    def _move(self, setup: _Setup, error: torch.Tensor, found: Compared) -> None:
        optimizers = setup.state.optimizers
        pull: list[Any] = []
        loss = error
        if "guide" in optimizers:
            pull = gradients_of(found.surrogate, setup.guide, keep=True)
        elif self.weight:
            loss = error + self.weight * found.surrogate
        gradients = gradients_of(loss, setup.both)
        if self.num_steps == 0 and (pull or loss.requires_grad):
            check_influence(pull, gradients, len(setup.guide))
        if not all_finite([found.value, *pull, *gradients]):
            what = "gradient" if all_finite([found.value]) else "divergence"
            self._refuse(what, found.value)
        settings, decay = self.settings, self.settings.decay(self.num_steps)
        if pull:
            optimizers["guide"].param_groups[0]["lr"] = self.weight * settings.encoder_rate * decay
            apply_gradients(optimizers["guide"], setup.guide, pull)
        optimizers["both"].param_groups[0]["lr"] = settings.reconstruction_rate * decay
        apply_gradients(optimizers["both"], setup.both, gradients)

    def _refuse(self, what: str, value: torch.Tensor) -> None:
        raise FloatingPointError(
            f"the {what} became not finite at step {self.num_steps + 1} (value "
            f"{float(value.detach())}); the parameters are those of the last good step. Lower the "
            "learning rates, or look at the rows of that batch."
        )
