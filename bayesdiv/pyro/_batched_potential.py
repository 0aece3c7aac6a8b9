"""A Pyro model's potential and gradient for all chains at once, each with its own minibatch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch.distributions import biject_to, constraints

from bayesdiv.pyro._recording import record
from bayesdiv.pyro._sites import sample_sites

# What a model raises that torch.func cannot batch: Python branches on values, in-place writes,
# randomness outside sites.
_DOES_NOT_BATCH = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)
_TRIES = 100

Values = dict[str, torch.Tensor]


class LatentSite(NamedTuple):
    """Where a site lies in the vector, and the map from there to its support."""

    start: int
    stop: int
    shape: torch.Size
    to_support: Any
    is_identity: bool


class SubsampledPlate(NamedTuple):
    """A plate whose indices are drawn anew for every gradient."""

    size: int
    subsample_size: int
    device: torch.device


@dataclass(frozen=True)
class LatentLayout:
    """Unconstrained latent sites, by name, as slices of one vector of length ``dim``."""

    sites: dict[str, LatentSite]
    dim: int

    def unpack(self, position: torch.Tensor) -> Values:
        """Unconstrained values ``{name: (*lead, *shape)}`` of a position ``(*lead, dim)``."""
        lead = position.shape[:-1]
        return {
            name: position[..., site.start : site.stop].reshape(lead + site.shape)
            for name, site in self.sites.items()
        }

    def pack(self, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A position ``(*lead, dim)`` from values ``{name: (*lead, *shape)}``."""
        rows = []
        for name, site in self.sites.items():
            value = values[name]
            lead = value.shape[: value.ndim - len(site.shape)]
            rows.append(value.reshape(lead + (site.stop - site.start,)))
        return torch.cat(rows, dim=-1)

    def constrain(self, position: torch.Tensor) -> Values:
        """As `unpack`, on the support of each site."""
        return {
            name: self.sites[name].to_support(value)
            for name, value in self.unpack(position).items()
        }


class _LogJoint(Messenger):
    """Fixes sites at ``values`` and adds up the log-probabilities of all, scaled and masked."""

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.values = values
        self.terms: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        value = self.values.get(msg["name"])
        if value is not None and msg["value"] is None:
            msg["value"], msg["done"] = value, True

    def _pyro_post_sample(self, msg: Any) -> None:
        infer, mask = msg["infer"], msg["mask"]
        if mask is False or site_is_subsample(msg) or infer.get("_deterministic"):
            return
        fn = _without_validation(msg["fn"])
        log_prob = fn.log_prob(msg["value"], *msg["args"], **msg["kwargs"])
        if isinstance(log_prob, torch.Tensor):
            if isinstance(mask, torch.Tensor):
                log_prob = torch.where(mask, log_prob, log_prob.new_zeros(()))
            scale = msg["scale"]
            if isinstance(scale, torch.Tensor) and scale.ndim > 0:
                log_prob, scale = log_prob * scale, 1.0
            log_prob = log_prob.sum()
            self.terms[msg["name"]] = log_prob if scale == 1.0 else log_prob * scale


def _without_validation(fn: Any) -> Any:
    """``fn``, or a copy that does not look at values if it was made with validation on.

    Priors of a ``PyroSample`` are made with their module, where validation is the default.
    """
    base = getattr(fn, "base_dist", None)
    plain = None if base is None else _without_validation(base)
    if plain is not base or getattr(fn, "_validate_args", False):
        fn = copy.copy(fn)
        fn._validate_args = False
        if plain is not None:
            fn.base_dist = plain
    return fn


class BatchedPotential:
    r"""U(z) = −log p(x, θ(z)) − log|dθ/dz| over rows z, with its gradient.

    Called with positions ``(num_chains, dim)`` and an integer seed; returns potentials
    ``(num_chains,)`` and gradients ``(num_chains, dim)``. Every chain draws the indices of every
    subsampled plate for itself, without replacement; the plates scale log p by size over
    ``subsample_size``, so both are unbiased for the whole data.

    Rows go through ``torch.func.vmap`` where that gives what one by one gives, which the first
    call checks; otherwise one by one. With ``jit_compile`` the operations of one call are recorded
    and replayed without Pyro.

    Raises
    ------
    ValueError
        A latent site is discrete or inside a subsampled plate; no latent sites; randomness outside
        the sites; or ``jit_compile`` for a model whose operations depend on values.
    """

    def __init__(
        self,
        model: Callable,
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        init_strategy: Callable,
        jit_compile: bool = False,
    ) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.init_strategy = init_strategy
        self.jit_compile = jit_compile
        trace = self._initial_trace()
        self.layout, self.plates = _read_model(trace)
        self.like = self._pack_trace(trace)
        self._evaluate: Callable | None = None

    def __call__(self, position: torch.Tensor, rng: int) -> tuple[torch.Tensor, torch.Tensor]:
        indices = self.minibatches(rng, len(position))
        if self._evaluate is None:
            self._evaluate = self._choose(position, indices)
        return self._evaluate(position, *indices)

    def minibatches(self, rng: int, num_chains: int) -> tuple[torch.Tensor, ...]:
        """Indices ``(num_chains, subsample_size)`` of each subsampled plate."""
        if not self.plates:
            return ()
        # On the CPU whatever the device, so that a seed means the same minibatches everywhere.
        generator = torch.Generator().manual_seed(rng)
        return tuple(
            _distinct_indices(generator, num_chains, plate).to(plate.device)
            for plate in self.plates.values()
        )

    def terms(self, row: torch.Tensor, *indices: torch.Tensor) -> dict[str, Any]:
        """Log-probability of each site at one position ``(dim,)``; names of maps in brackets."""
        unconstrained = self.layout.unpack(row)
        values: Values = dict(zip(self.plates, indices, strict=True))
        log_jacobian: dict[str, torch.Tensor] = {}
        for name, value in unconstrained.items():
            site = self.layout.sites[name]
            values[name] = value if site.is_identity else site.to_support(value)
            if not site.is_identity:
                slope = site.to_support.log_abs_det_jacobian(value, values[name])
                log_jacobian[f"{name} (its change of variables)"] = slope.sum()
        messenger = _LogJoint(values)
        with pyro.validation_enabled(is_validate=False), messenger:
            self.model(*self.args, **self.kwargs)
        return messenger.terms | log_jacobian

    def potential(self, row: torch.Tensor, *indices: torch.Tensor) -> torch.Tensor:
        """U at one position ``(dim,)``, with one minibatch, as a scalar."""
        total = sum(self.terms(row, *indices).values())
        return -torch.as_tensor(total, dtype=row.dtype, device=row.device)

    def one_by_one(
        self, position: torch.Tensor, *indices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Potentials and gradients by a loop over the rows."""
        with torch.enable_grad():
            leaf = position.detach().requires_grad_()
            batches = zip(*indices, strict=True) if indices else [()] * len(position)
            rows = [self.potential(row, *i) for row, i in zip(leaf, batches, strict=True)]
            potential = torch.stack(rows)
            (gradient,) = torch.autograd.grad(potential.sum(), leaf)
        return potential.detach(), gradient

    def initial_positions(self, num_chains: int, seed: int) -> torch.Tensor:
        """Starts ``(num_chains, dim)`` where potential and gradient are finite.

        Raises
        ------
        ValueError
            If ``init_strategy`` finds none.
        """
        rows: list[torch.Tensor] = []
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            for attempt in range(_TRIES * num_chains):
                row = self._pack_trace(self._initial_trace())
                found = self.one_by_one(row[None], *self.minibatches(seed + attempt, 1))
                if all(bool(torch.isfinite(part).all()) for part in found):
                    rows.append(row)
                if len(rows) == num_chains:
                    return torch.stack(rows)
        raise ValueError(
            f"init_strategy found {len(rows)} of {num_chains} starts with a finite potential in "
            f"{_TRIES * num_chains} tries; the model's support may depend on its own values, or "
            "pass init_strategy=init_to_value(values=...)."
        )

    def culprit(self, row: torch.Tensor, *indices: torch.Tensor) -> str:
        """Which site first makes the potential or its gradient non-finite, in words."""
        with torch.no_grad():
            for name, term in self.terms(row, *indices).items():
                if not bool(torch.isfinite(torch.as_tensor(term)).all()):
                    return f"the log-probability of site {name!r} is {float(term)}"
        _, gradient = self.one_by_one(row[None], *(index[None] for index in indices))
        for name, part in self.layout.unpack(gradient[0]).items():
            if not bool(torch.isfinite(part).all()):
                return f"the gradient with respect to site {name!r} is not finite"
        return "every site is finite, so the sum or the next position overflows"

    def _initial_trace(self) -> Any:
        with InitMessenger(self.init_strategy):
            trace = poutine.trace(self.model)
            return trace.get_trace(*self.args, **self.kwargs)

    def _pack_trace(self, trace: Any) -> torch.Tensor:
        sites = self.layout.sites
        inverses = {name: site.to_support.inv for name, site in sites.items()}
        return self.layout.pack(
            {
                name: inverse(trace.nodes[name]["value"]).detach()
                for name, inverse in inverses.items()
            }
        )

    def _choose(self, position: torch.Tensor, indices: tuple[torch.Tensor, ...]) -> Callable:
        """The fastest of the ways that agree with one by one."""
        first = tuple(part[:1] for part in (position, *indices))
        if not _agree(self.one_by_one(*first), self.one_by_one(*first)):
            raise ValueError(
                "model gives another potential each time at the same values and minibatch, so it "
                "draws random numbers outside its sites; put modules with dropout into eval mode, "
                "or make what is random a site."
            )
        evaluate = self._batched(position, indices)
        if not self.jit_compile:
            return evaluate
        try:
            recorded = record(evaluate, position, *indices)
            other = 0.9 * position + 0.01
            swapped = tuple(index.flip(-1) for index in indices)
            agrees = _agree(recorded(other, *swapped), evaluate(other, *swapped))
        except _DOES_NOT_BATCH as error:
            raise ValueError(
                "jit_compile=True needs a model whose operations do not depend on values, got "
                f"{type(error).__name__}: {error}; pass jit_compile=False."
            ) from error
        if not agrees:
            raise ValueError(
                "jit_compile=True gives another potential than the model itself, which must "
                "depend on something besides its sites; pass jit_compile=False."
            )
        return recorded

    def _batched(self, position: torch.Tensor, indices: tuple[torch.Tensor, ...]) -> Callable:
        if len(position) == 1:
            return self.one_by_one
        mapped = torch.func.vmap(torch.func.grad_and_value(self.potential))

        def together(
            position: torch.Tensor, *indices: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            # Parameters inside the model must not record what passes through them.
            with torch.no_grad():
                gradient, potential = mapped(position, *indices)
            return potential, gradient

        rows = [part[:2] for part in (position, *indices)]
        try:
            is_equal = _agree(together(*rows), self.one_by_one(*rows))
        except _DOES_NOT_BATCH:
            return self.one_by_one
        return together if is_equal else self.one_by_one


def _agree(left: tuple[torch.Tensor, ...], right: tuple[torch.Tensor, ...]) -> bool:
    """Equal up to the rounding of another order of summation."""
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3 * (1.0 + float(b.abs().max())))
        for a, b in zip(left, right, strict=True)
    )


def _read_model(trace: Any) -> tuple[LatentLayout, dict[str, SubsampledPlate]]:
    """Layout and subsampled plates; raises where minibatch gradients cannot sample the model."""
    plates = {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and site_is_subsample(site):
            size, count = site["fn"].size, site["fn"].subsample_size
            if count is not None and count < size:
                plates[name] = SubsampledPlate(size, count, site["value"].device)
    sites: dict[str, LatentSite] = {}
    start = 0
    latent = {site["name"]: site for site in sample_sites(trace) if not site["is_observed"]}
    if not latent:
        raise ValueError("model has no latent sites, so there is nothing to sample.")
    for name, site in sorted(latent.items()):
        _check_latent(name, site)
        to_support = biject_to(site["fn"].support)
        shape = to_support.inv(site["value"].detach()).shape
        stop = start + shape.numel()
        is_identity = _is_real(site["fn"].support)
        sites[name] = LatentSite(start, stop, shape, to_support, is_identity)
        start = stop
    return LatentLayout(sites, start), plates


def _check_latent(name: str, site: dict[str, Any]) -> None:
    if site["fn"].support.is_discrete:
        raise ValueError(
            f"latent site {name!r} is discrete, and stochastic-gradient samplers need gradients; "
            "marginalise it in the model, or observe it."
        )
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.size < frame.full_size:
            raise ValueError(
                f"latent site {name!r} is inside the subsampled plate {frame.name!r} "
                f"({frame.size} of {frame.full_size}), so every step would be about other data; "
                "marginalise it in the model, or drop subsample_size."
            )


def _is_real(support: Any) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def _distinct_indices(
    generator: torch.Generator, num_chains: int, plate: SubsampledPlate
) -> torch.Tensor:
    """Uniform indices without replacement, ``(num_chains, subsample_size)``.

    Where repetitions are rare, only they are drawn again: a scheme that looks at nothing but
    equality of indices treats all indices alike, hence is uniform.
    """
    size, count = plate.size, plate.subsample_size
    if size < 2000 or count**2 > 4 * size:
        permutations = (torch.randperm(size, generator=generator) for _ in range(num_chains))
        return torch.stack([permutation[:count] for permutation in permutations])
    draws = torch.randint(size, (num_chains, count), generator=generator)
    while True:
        ordered, order = draws.sort(dim=-1, stable=True)
        is_repeated = torch.zeros_like(draws, dtype=torch.bool)
        is_repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
        num_repeated = int(is_repeated.sum())
        if num_repeated == 0:
            return draws
        draws[is_repeated] = torch.randint(size, (num_repeated,), generator=generator)
