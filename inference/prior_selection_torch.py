"""Choose a prior by what it predicts, in torch: one routine, run by `bayesdiv.training.train`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bayesdiv._loop import check_step_count
from bayesdiv._random import next_rng
from bayesdiv.divergences import get_divergence
from bayesdiv.inference._nested_tensors import filled, leaves_of
from bayesdiv.inference.prior_selection import (
    PriorPredictiveObjective,
    Sampler,
    SelectedPrior,
    as_objective,
    check_parameters,
    learning_rates,
)
from bayesdiv.training import EarlyStopping, TensorBatches, train

__all__ = ["PriorSelection", "prior_predictive_distance", "select_prior"]


class PriorSelection:
    """Adam on hyper-parameters of a prior, down D(data‖prior predictive).

    A routine of `bayesdiv.training.train`: every step draws predictions for the batch, lets the
    divergence's adversary improve, and moves the hyper-parameters.

    Parameters
    ----------
    sample
        The prior predictive; see `bayesdiv.inference.prior_selection.Sampler`.
    parameters
        Where the hyper-parameters start, tensors by name; they are copied.
    objective
        A `PriorPredictiveObjective`, or the name or object of a divergence.
    learning_rate
        A number, or numbers by name or pattern: ``{"*.mean": 1e-3, "*.log_variance": 1e-2}``.
    num_inner_only
        First steps, in which only the adversary learns; 0 where there is none.
    schedule
        Multiplies the learning rates: a function of the number of moves made.
    seed
        Of the predictions and of the divergence's own draws.

    Attributes
    ----------
    parameters : dict
        The hyper-parameters as they are now.
    num_steps : int
        Steps made.

    References
    ----------
    Tran et al. (2021), Model selection for Bayesian autoencoders, algorithm 1.
    """

    def __init__(
        self,
        sample: Sampler,
        parameters: Mapping[str, torch.Tensor],
        objective: Any = "distributional_sliced_wasserstein",
        *,
        learning_rate: float | Mapping[str, float] = 1e-3,
        num_inner_only: int = 50,
        schedule: Callable[[int], float] | None = None,
        seed: int = 0,
    ) -> None:
        check_parameters(parameters)
        check_step_count("num_inner_only", num_inner_only, 0)
        self.objective: PriorPredictiveObjective = as_objective(objective)
        self.num_steps = 0
        self._sample = sample
        self._leaves = {
            name: value.detach().clone().requires_grad_() for name, value in parameters.items()
        }
        self._rates = learning_rates(learning_rate, list(parameters))
        self._num_inner_only = num_inner_only if self.objective.learns else 0
        self._schedule = schedule or (lambda step: 1.0)
        self._optimizer = torch.optim.Adam(
            [{"params": [leaf], "lr": self._rates[name]} for name, leaf in self._leaves.items()]
        )
        self._inner: Any = None
        self._inner_leaves: list[torch.Tensor] | None = None
        self._rng = seed
        self._accelerator: Any = None

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        return {name: leaf.detach().clone() for name, leaf in self._leaves.items()}

    def prepare(self, accelerator: Any) -> None:
        """Move the hyper-parameters to the accelerator's device."""
        self._accelerator = accelerator
        for leaf in self._leaves.values():
            leaf.data = leaf.data.to(accelerator.device)

    def step(self, batch: Any) -> dict[str, torch.Tensor]:
        """One step on ``batch``, ``(rows, ...)``, or a tuple whose first entry that is.

        Returns "loss", the divergence between the batch and fresh predictions, and
        "gradient_norm", 0 while only the adversary learns.
        """
        batch = batch[0] if isinstance(batch, list | tuple) else batch
        objective, moves = self.objective, self.num_steps - self._num_inner_only
        self._rng, *rngs = next_rng(self._rng, batch, 4)
        if self._accelerator is not None and self._accelerator.process_index > 0:
            # Processes see other data, and must draw other predictions.
            rngs = [next_rng(rng, batch, self._accelerator.process_index)[-1] for rng in rngs]
        with torch.set_grad_enabled(moves >= 0):
            predicted = self._sample(self._leaves, batch, objective.num_draws, rngs[0])
            _check_predicted(predicted, needs_gradient=moves >= 0)
            if objective.learns:
                self._ready_inner(batch, predicted, rngs[1])
                self._inner = objective.inner_step(self._inner, batch, predicted, rngs[2])
            loss = objective.value(self._inner, batch, predicted, rngs[3])
        gradient_norm = self._move(loss, moves) if moves >= 0 else torch.zeros_like(loss)
        self.num_steps += 1
        return {"loss": loss.detach(), "gradient_norm": gradient_norm}

    def _move(self, loss: torch.Tensor, moves: int) -> torch.Tensor:
        leaves = list(self._leaves.values())
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        for (name, leaf), gradient in zip(self._leaves.items(), gradients, strict=True):
            if gradient is None:
                raise ValueError(
                    f"parameters[{name!r}] has no influence on what sample returns; use it there "
                    "with rsample, or leave it out."
                )
            if self._accelerator is not None and self._accelerator.num_processes > 1:
                gradient = self._accelerator.reduce(gradient, reduction="mean")
            leaf.grad = gradient
        for group, rate in zip(self._optimizer.param_groups, self._rates.values(), strict=True):
            group["lr"] = rate * float(self._schedule(moves))
        self._optimizer.step()
        return torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(leaf.grad) for leaf in leaves])
        )

    def _ready_inner(self, batch: torch.Tensor, predicted: torch.Tensor, rng: int) -> None:
        if self._inner is not None:
            return
        self._inner = self.objective.init(batch, predicted.detach(), rng)
        if self._inner_leaves is not None:
            like = predicted.device
            leaves = iter([leaf.to(like) for leaf in self._inner_leaves])
            self._inner, self._inner_leaves = filled(self._inner, leaves), None

    def state_dict(self) -> dict[str, Any]:
        """Hyper-parameters, Adam's moments, the adversary, and where the draws are."""
        pending = self._inner_leaves
        return {
            "parameters": {name: leaf.detach() for name, leaf in self._leaves.items()},
            "optimizer": self._optimizer.state_dict(),
            "inner": pending if self._inner is None else leaves_of(self._inner),
            "num_steps": self.num_steps,
            "rng": self._rng,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises
        ------
        ValueError
            If names or shapes of the hyper-parameters differ.
        """
        found = {name: tuple(value.shape) for name, value in state["parameters"].items()}
        expected = {name: tuple(leaf.shape) for name, leaf in self._leaves.items()}
        if found != expected:
            raise ValueError(
                f"state must have the hyper-parameters {expected}, got {found}; it is of another "
                "model."
            )
        with torch.no_grad():
            for name, leaf in self._leaves.items():
                leaf.copy_(state["parameters"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self._inner, self._inner_leaves = None, state["inner"]
        self.num_steps, self._rng = state["num_steps"], state["rng"]


def _check_predicted(predicted: Any, *, needs_gradient: bool) -> None:
    if not torch.is_tensor(predicted) or not predicted.is_floating_point():
        raise TypeError(f"sample must return a floating tensor, got {type(predicted).__name__}.")
    if needs_gradient and not predicted.requires_grad:
        raise ValueError(
            "sample must return rows that are differentiable in parameters, got a constant; draw "
            "with rsample, and do not detach."
        )


def select_prior(
    sample: Sampler,
    parameters: Mapping[str, torch.Tensor],
    data: torch.Tensor,
    objective: Any = "distributional_sliced_wasserstein",
    *,
    num_steps: int = 300,
    batch_size: int = 64,
    learning_rate: float | Mapping[str, float] = 1e-3,
    num_inner_only: int = 50,
    schedule: Callable[[int], float] | None = None,
    early_stopping: EarlyStopping | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    resume: bool = True,
    log_every: int = 10,
    progress_bar: bool = True,
    accelerator: Any = None,
    seed: int = 0,
) -> SelectedPrior:
    """Hyper-parameters whose prior predictive looks like ``data``.

    Parameters
    ----------
    sample, parameters, objective, learning_rate, num_inner_only, schedule
        See `PriorSelection`.
    data
        The tuning set, ``(n, ...)``, disjoint from what the prior will be used for: see
        `bayesdiv.inference.prior_selection.check_disjoint`.
    num_steps
        Those of ``num_inner_only`` included.
    batch_size
        Rows a step, in a new order every pass.
    early_stopping, checkpoint, checkpoint_every, resume, log_every, progress_bar, accelerator
        See `bayesdiv.training.train`.
    seed
        Of the order, the predictions and the divergence's own draws.
    """
    routine = PriorSelection(
        sample,
        parameters,
        objective,
        learning_rate=learning_rate,
        num_inner_only=num_inner_only,
        schedule=schedule,
        seed=seed,
    )
    result = train(
        routine,
        TensorBatches(data, batch_size=batch_size, seed=seed),
        num_steps=num_steps,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
        log_every=log_every,
        early_stopping=early_stopping,
        progress_bar=progress_bar,
        title="prior",
        accelerator=accelerator,
    )
    return SelectedPrior(
        routine.parameters, result.history, result.num_steps, result.stopped, result.seconds
    )


def prior_predictive_distance(
    sample: Sampler,
    parameters: Mapping[str, torch.Tensor],
    data: torch.Tensor,
    divergence: Any = "sliced_wasserstein",
    *,
    num_draws: int = 8,
    seed: int = 0,
    **settings: Any,
) -> float:
    """D(data‖prior predictive) of fresh draws, for reports; the same seed gives the same draws.

    ``data`` has shape ``(n, ...)``; ``settings`` are those of a named divergence.
    """
    objective = PriorPredictiveObjective(get_divergence(divergence, **settings), num_draws)
    first, second = next_rng(seed, data, 1)
    with torch.no_grad():
        predicted = sample(parameters, data, num_draws, first)
        return float(objective.from_scratch(data, predicted, second))
