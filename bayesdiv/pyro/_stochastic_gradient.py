"""Stochastic-gradient samplers as a kernel for ``pyro.infer.MCMC``."""

from __future__ import annotations

import multiprocessing
from collections import OrderedDict
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from pyro.infer.autoguide.initialization import init_to_uniform
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel

from bayesdiv.pyro._batched_potential import BatchedPotential, Values
from bayesdiv.pyro._chain_record import (
    ChainRecord,
    read_record,
    warn_clamped,
    warn_temperature,
    write_record,
)
from bayesdiv.pyro._non_finite import find_failure


class StochasticGradientKernel(MCMCKernel):
    r"""A sampler on minibatch gradients, under ``pyro.infer.MCMC``, for any Pyro model.

    The target is exp(−U) with U(z) = −log p(x, θ(z)) − log|dθ/dz| over the unconstrained latent
    sites z. A ``pyro.plate`` with ``subsample_size`` is drawn anew, for every chain, at every
    gradient step; its scale makes U unbiased. One iteration of MCMC is ``steps_per_sample``
    gradient steps, in its warm-up as in its sampling, and its last position is the draw. So
    ``MCMC(kernel, num_samples=1000, warmup_steps=2000)`` with ``steps_per_sample=5`` takes 10 000
    gradient steps that are dropped, among them those in which ``dynamics`` adapts, and keeps every
    fifth of 5000 more.

    With ``num_chains`` above 1 the chains are rows of one position, moved together, and every site
    of a draw has a leading axis of chains; the kernel's own ``get_samples`` and
    ``bayesdiv.diagnostics.to_arviz(mcmc)`` put chains in front of draws. The ``num_chains`` of MCMC
    stays 1 then; more of them are processes with such a batch each.

    Parameters
    ----------
    model
        Pyro model. Everything random in it must be a site.
    dynamics
        Anything with ``init(position, rng) -> state`` and
        ``step(state, potential_and_gradient) -> (state, info)``, both named tuples, such as
        `bayesdiv.inference.sghmc.SGHMCDynamics`.
    num_chains
        Chains in one batch.
    steps_per_sample
        Gradient steps from one draw to the next.
    collect_after
        Gradient steps before the first may be kept; None for the ``num_burn_in`` of ``dynamics``.
        MCMC's ``warmup_steps`` must cover it.
    init_strategy
        Where to start, as in ``pyro.infer.NUTS``.
    seed
        Of everything that the kernel draws; None takes it from Pyro's generator, which
        ``pyro.set_rng_seed`` sets. The k-th run of one kernel adds k.
    jit_compile
        Whether to record the operations of one gradient and replay them without Pyro. For models
        whose operations do not depend on the values of their sites.
    checkpoint
        A file. It is written every ``checkpoint_every`` iterations and at the end; a kernel that
        finds it goes on from there, and MCMC returns what it would have returned uninterrupted.
    checkpoint_every
        Iterations between writes.

    Raises
    ------
    TypeError
        ``dynamics`` lacks ``init`` or ``step``.
    ValueError
        A count below its minimum; sampling would start before burn-in ended; a model with discrete
        latent sites, or with latent sites inside a subsampled plate; a checkpoint of another run.
    NonFinitePotentialError
        While sampling, if the potential or its gradient is not finite.

    Warns
    -----
    UserWarning
        If more than 5 % of the coordinates have no injected noise after burn-in, or the kinetic
        temperature over all draws is outside [0.8, 1.25].
    """

    def __init__(
        self,
        model: Callable,
        dynamics: Any,
        *,
        num_chains: int = 1,
        steps_per_sample: int = 1,
        collect_after: int | None = None,
        init_strategy: Callable = init_to_uniform,
        seed: int | None = None,
        jit_compile: bool = False,
        checkpoint: str | PathLike | None = None,
        checkpoint_every: int = 100,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be callable, got {type(model).__name__}.")
        if not (hasattr(dynamics, "init") and hasattr(dynamics, "step")):
            raise TypeError(
                "dynamics must have init and step, such as SGHMCDynamics(step_size=0.01), got "
                f"{type(dynamics).__name__}."
            )
        _check_count("num_chains", num_chains, 1)
        _check_count("steps_per_sample", steps_per_sample, 1)
        _check_count("checkpoint_every", checkpoint_every, 1)
        if collect_after is not None:
            _check_count("collect_after", collect_after, 0)
        if seed is not None:
            _check_count("seed", seed, 0)
        self.model, self.dynamics = model, dynamics
        self.num_chains, self.steps_per_sample = num_chains, steps_per_sample
        self.collect_after = collect_after
        self.init_strategy, self.seed, self.jit_compile = init_strategy, seed, jit_compile
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.checkpoint_every = checkpoint_every
        self.transforms: dict[str, Any] | None = None
        self.state: Any = None
        self._potential: BatchedPotential | None = None
        self._initial_params: Values | None = None
        self._latest: Values = {}
        self._info: dict[str, torch.Tensor] = {}
        self._loaded: dict[str, Any] | None = None
        self._record = ChainRecord()
        self._num_runs = 0
        self._path: Path | None = None
        self._warmup_steps = self._iteration = self._num_restored = 0

    # The protocol of MCMCKernel.

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Read the model, check the schedule, and start or go on from a checkpoint."""
        run = self._run_number()
        seed = _draw_seed() if self.seed is None else self.seed + run
        potential = BatchedPotential(
            self.model,
            args,
            kwargs,
            init_strategy=self.init_strategy,
            jit_compile=self.jit_compile,
        )
        self._potential, self._warmup_steps, self._iteration = potential, warmup_steps, 0
        self.dynamics = self._prepare(
            num_warmup=warmup_steps * self.steps_per_sample,
            is_subsampled=bool(potential.plates),
        )
        # MCMC with several processes calls setup(0) in their parent, for the transforms alone.
        if warmup_steps > 0:
            self._check_schedule(warmup_steps)
        sites = potential.layout.sites
        self.transforms = {name: site.to_support.inv for name, site in sites.items()}
        self._path = self.checkpoint
        if self._path is not None and run > 0:
            self._path = self._path.with_name(f"{self._path.name}.{run}")
        saved, self._loaded = self._loaded, None
        if saved is None and self._path is not None and self._path.exists():
            saved = read_record(self._path)
        if saved is None:
            position = self._start(seed)
            self.state = self.dynamics.init(position, seed)
            self._record, self._num_restored = ChainRecord(), 0
        else:
            self._restore(saved)
        self._initial_params = None
        self._latest = self._as_params(self.state.position)

    @property
    def initial_params(self) -> Values:
        """Unconstrained values where the chains are, with a leading axis of chains if several."""
        return self._latest

    @initial_params.setter
    def initial_params(self, params: Mapping[str, torch.Tensor]) -> None:
        self._initial_params = dict(params)

    def sample(self, params: Values) -> Values:
        """``steps_per_sample`` gradient steps from ``params``; see ``MCMCKernel``."""
        if self._potential is None:
            raise ValueError("the kernel has no model yet: call setup, or run it with MCMC.")
        if self._iteration == 0:
            self._check_schedule(self._warmup_steps)
        self._iteration += 1
        is_kept = self._iteration > self._warmup_steps
        if self._iteration <= self._num_restored:
            if is_kept:
                position = self._record.positions[self._iteration - self._warmup_steps - 1]
                self._latest = self._as_params(position)
            return self._latest
        if params is not self._latest:
            self.state = self.state._replace(position=self._as_position(params))
        self.state, info = self._advance(self.state)
        self._latest = self._as_params(self.state.position)
        self._info = info._asdict()
        if is_kept:
            self._record.add(self.state.position, self._info)
        if self._path is not None and self._iteration % self.checkpoint_every == 0:
            write_record(self._path, self.state_dict())
        if is_kept and len(self._record) == 1:
            warn_clamped(self._info)
        return self._latest

    def logging(self) -> OrderedDict[str, str]:
        """What the progress bar shows: means over chains."""
        return OrderedDict(
            (name.replace("_", " "), f"{self._info[name].mean().item():.3g}")
            for name in ("potential", "kinetic_temperature")
            if name in self._info
        )

    def diagnostics(self) -> dict[str, Any]:
        """``sample_stats``, each ``(draw, num_chains)``, and an empty list of divergences."""
        stats = self._record.statistics()
        if self._path is not None and self._iteration > self._num_restored:
            write_record(self._path, self.state_dict())
        warn_temperature(stats, self.steps_per_sample)
        step_size = getattr(self.dynamics, "step_size", None)
        if step_size is not None and stats:
            stats["step_size"] = torch.full_like(next(iter(stats.values())), float(step_size))
        return {"divergences": [], "sample_stats": stats}

    # What a person may ask of the kernel.

    def get_samples(self, *, group_by_chain: bool = False) -> Values:
        """Draws so far, after an error too, on the supports of their sites.

        ``{site: (chain * draw, *shape)}``, as ``pyro.infer.Predictive`` takes them, or
        ``{site: (chain, draw, *shape)}`` with ``group_by_chain``.
        """
        if self._potential is None or len(self._record) == 0:
            return {}
        positions = torch.stack(self._record.positions, dim=1)
        if not group_by_chain:
            positions = positions.flatten(0, 1)
        return self._potential.layout.constrain(positions)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers that `load_state_dict` and ``torch.save`` take."""
        if self.state is None:
            raise ValueError("the kernel has no state yet: run it with MCMC first.")
        return {
            "settings": self._settings(),
            "iteration": max(self._iteration, self._num_restored),
            "state": dict(self.state._asdict()),
            **self._record.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Have the next run go on from there; MCMC then returns the draws before it as well."""
        self._loaded = dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled and mapped functions do not pickle; setup makes them again.
        return {**self.__dict__, "_potential": None}

    # Parts.

    def _prepare(self, *, num_warmup: int, is_subsampled: bool) -> Any:
        """The dynamics for this model and ``num_warmup`` gradient steps of warm-up."""
        return self.dynamics

    def _check_schedule(self, warmup_steps: int) -> None:
        """Raise if draws would be kept before adaptation has ended."""
        num_burn_in = getattr(self.dynamics, "num_burn_in", 0) or 0
        first = num_burn_in if self.collect_after is None else self.collect_after
        if first < num_burn_in:
            raise ValueError(
                f"collect_after must not come before burn-in ends, got collect_after={first} with "
                f"num_burn_in={num_burn_in} gradient steps; raise collect_after."
            )
        if warmup_steps * self.steps_per_sample < first:
            name = "num_burn_in" if self.collect_after is None else "collect_after"
            raise ValueError(
                f"sampling would start before burn-in ended: MCMC's warmup_steps={warmup_steps} "
                f"of steps_per_sample={self.steps_per_sample} gradient steps are fewer than "
                f"{name}={first}; pass warmup_steps={-(-first // self.steps_per_sample)} or more."
            )

    def _run_number(self) -> int:
        """Which run of this kernel this is; the chain's number in a process of MCMC."""
        run, self._num_runs = self._num_runs, self._num_runs + 1
        name = multiprocessing.current_process().name
        return int(name) if multiprocessing.parent_process() and name.isdigit() else run

    def _start(self, seed: int) -> torch.Tensor:
        assert self._potential is not None
        if self._initial_params is not None:
            return self._as_position(self._initial_params)
        return self._potential.initial_positions(self.num_chains, seed)

    def _as_params(self, position: torch.Tensor) -> Values:
        assert self._potential is not None
        row = position if self.num_chains > 1 else position[0]
        return self._potential.layout.unpack(row)

    def _as_position(self, params: Mapping[str, torch.Tensor]) -> torch.Tensor:
        assert self._potential is not None
        sites = self._potential.layout.sites
        if set(params) != set(sites):
            raise ValueError(
                f"initial_params must have the sites {sorted(sites)}, got {sorted(params)}."
            )
        values = {}
        for name, site in sites.items():
            value = params[name].detach()
            wide = (self.num_chains, *site.shape)
            if value.shape not in (site.shape, wide):
                raise ValueError(
                    f"initial_params[{name!r}] must have the unconstrained shape "
                    f"{tuple(site.shape)} or {tuple(wide)}, got {tuple(value.shape)}."
                )
            values[name] = value.expand(wide)
        return self._potential.layout.pack(values)

    def _advance(self, state: Any) -> tuple[Any, Any]:
        """``steps_per_sample`` steps; looks at the device once."""
        assert self._potential is not None
        before = state
        total: Any = 0.0
        for _ in range(self.steps_per_sample):
            state, info = self.dynamics.step(state, self._potential)
            total = total + info.potential
        # A gradient that is not finite has moved the position; infinite potentials stay in the sum.
        if not bool((torch.isfinite(total) & torch.isfinite(state.position).all(-1)).all()):
            self.state, error = find_failure(
                self.dynamics, before, self._potential, self.steps_per_sample
            )
            raise error
        return state, info

    def _settings(self) -> dict[str, Any]:
        assert self._potential is not None
        sites = self._potential.layout.sites
        return {
            "dynamics": repr(self.dynamics),
            "num_chains": self.num_chains,
            "steps_per_sample": self.steps_per_sample,
            "warmup_steps": self._warmup_steps,
            "sites": {name: list(site.shape) for name, site in sites.items()},
        }

    def _restore(self, saved: Mapping[str, Any]) -> None:
        assert self._potential is not None
        for name, value in self._settings().items():
            if saved["settings"].get(name) != value:
                raise ValueError(
                    f"the checkpoint is of another run: its {name} was "
                    f"{saved['settings'].get(name)!r}, now {value!r}; remove the file, or restore "
                    "the setting."
                )
        like = self._potential.like
        fields = {
            name: value.to(like.device) if isinstance(value, torch.Tensor) else value
            for name, value in saved["state"].items()
        }
        template = self.dynamics.init(like.expand(self.num_chains, -1), 0)
        self.state = type(template)(**fields)
        self._num_restored = saved["iteration"]
        self._record = ChainRecord.from_state_dict(saved, like.device)


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def _draw_seed() -> int:
    return int(torch.randint(2**62, ()))
