r"""Diffusion teachers: a learnt denoiser of any network, its training, and one-step generators.

With x_σ = x + σ ε, a denoiser D(x_σ, σ) = E[x | x_σ] gives the score of the diffused law,
∇ log p_σ(x_σ) = (D(x_σ, σ) − x_σ)/σ² (Tweedie). What distillation needs of a teacher is
``denoise``, ``score`` and ``event_shape``; `bayesdiv.models.analytic_diffusion` has exact ones and
`bayesdiv.models.diffusion_pyro` a teacher as a Pyro model. Each takes a condition c, a label or an
embedding for every row, as a last argument: D(x_σ, σ, c) = E[x | x_σ, c].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bayesdiv.models.diffusion_samplers import sample_diffusion
from bayesdiv.nn.conditions_torch import drop_condition, given, null_rows, split_pair
from bayesdiv.nn.noise_levels_torch import NoiseSchedule, denoising_loss, expand_sigma

__all__ = [
    "DenoiserTraining",
    "EDMDenoiser",
    "GuidedDenoiser",
    "NoiseSchedule",
    "OneStepGenerator",
]


class EDMDenoiser(nn.Module):
    r"""A network made a denoiser at every noise level by preconditioning.

    .. math::

        D(x, σ) = \frac{σ_d^2}{σ^2 + σ_d^2}\, x + \frac{σ σ_d}{\sqrt{σ^2 + σ_d^2}}\,
                  F\big(x/\sqrt{σ^2 + σ_d^2},\ \tfrac14 \log σ\big)

    Parameters
    ----------
    network
        F, called as ``network(x, noise)``, or with the condition behind where there is one; see
        `bayesdiv.nn.denoisers_torch`.
    event_shape
        Of one row of data.
    sigma_data
        σ_d, standard deviation of the data.
    schedule
        Range of noise levels, and the steps of the samplers.

    Raises
    ------
    ValueError
        An empty shape, ``sigma_data`` not positive; a row of another shape, a level that is not
        within the schedule's range, or a condition that has not an entry for each row.

    References
    ----------
    Karras et al. (2022), Elucidating the design space of diffusion-based generative models,
    table 1.

    Examples
    --------
    >>> from bayesdiv.nn.denoisers_torch import DenoisingMLP
    >>> teacher = EDMDenoiser(DenoisingMLP(2, width=16), (2,), schedule=NoiseSchedule(0.02, 20.0))
    >>> teacher.score(torch.zeros(5, 2), 1.0).shape, teacher.sample(3).shape
    (torch.Size([5, 2]), torch.Size([3, 2]))
    """

    def __init__(
        self,
        network: nn.Module,
        event_shape: tuple[int, ...],
        *,
        sigma_data: float = 0.5,
        schedule: NoiseSchedule | None = None,
    ) -> None:
        super().__init__()
        if not event_shape or any(size < 1 for size in event_shape):
            raise ValueError(f"event_shape must have positive sizes, got {tuple(event_shape)!r}.")
        if not 0.0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data must be positive and finite, got {sigma_data!r}.")
        self.network = network
        self.event_shape = tuple(event_shape)
        self.sigma_data = sigma_data
        self.schedule = NoiseSchedule() if schedule is None else schedule

    def forward(
        self, x: torch.Tensor, sigma: Any, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The same as `denoise`."""
        return self.denoise(x, sigma, condition)

    def denoise(
        self, x: torch.Tensor, sigma: Any, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """E[x | x_σ, c], ``(n, *event_shape)``; ``sigma`` is a number or ``(n,)``."""
        wide = self._checked(x, sigma)
        total = (wide**2 + self.sigma_data**2).sqrt()
        inner = self.network(x / total, self._noise(wide), *given(condition, len(x)))
        skip, out = (self.sigma_data / total) ** 2, wide * self.sigma_data / total
        return skip * x + out * inner

    def score(
        self, x: torch.Tensor, sigma: Any, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """∇ log p_σ(x | c), ``(n, *event_shape)``."""
        return (self.denoise(x, sigma, condition) - x) / expand_sigma(sigma, x) ** 2

    def features(
        self, x: torch.Tensor, sigma: Any, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The network's inner activations at noisy rows, ``(n, num_features)``, for a critic."""
        wide = self._checked(x, sigma)
        network: Any = self.network
        scaled = x / (wide**2 + self.sigma_data**2).sqrt()
        return network.features(scaled, self._noise(wide), *given(condition, len(x)))

    def sample(
        self,
        count: int,
        condition: torch.Tensor | None = None,
        *,
        num_steps: int = 18,
        churn: float = 0.0,
    ) -> torch.Tensor:
        """``count`` samples in ``2 · num_steps − 1`` passes; see `sample_diffusion`."""
        like = next(self.parameters())
        return sample_diffusion(self, count, condition, num_steps=num_steps, churn=churn, like=like)

    def _noise(self, wide: torch.Tensor) -> torch.Tensor:
        return 0.25 * wide.flatten().log()

    def _checked(self, x: torch.Tensor, sigma: Any) -> torch.Tensor:
        if tuple(x.shape[1:]) != self.event_shape:
            raise ValueError(
                f"x must have shape (n, {', '.join(map(str, self.event_shape))}), got "
                f"{tuple(x.shape)}."
            )
        wide = expand_sigma(sigma, x)
        low, high = self.schedule.sigma_min, self.schedule.sigma_max
        if wide.device.type == "cpu" and len(wide):
            least, most = float(wide.min()), float(wide.max())
            # Samplers with churn go a little beyond σ_max, single precision beyond both.
            if least < low * (1.0 - 1e-5) or most > 1.5 * high:
                raise ValueError(
                    f"sigma must be within the teacher's range [{low:g}, {high:g}], got levels "
                    f"from {least:g} to {most:g}."
                )
        return wide


class GuidedDenoiser(nn.Module):
    r"""A conditional teacher that overstates its condition: classifier-free guidance.

    .. math:: D_γ(x, σ, c) = D(x, σ, c) + (γ - 1)\,(D(x, σ, c) - D(x, σ, ∅))

    has the score of p_σ(x | c)^γ p_σ(x)^{1−γ} at each level; these are in general not the levels of
    any one law. In distillation it is the teacher only: fake score and student learn the student's
    law, and start from the bare teacher, which also has the features for a critic.

    Parameters
    ----------
    teacher
        An object with ``denoise(x, sigma, condition)``, ``event_shape`` and ``schedule``, such as
        an `EDMDenoiser` trained with ``condition_dropout``. Frozen in place if a module.
    guidance
        γ. At 1 the teacher as it is, in one pass; at 0 the one without a condition.
    null_condition
        ∅, what the teacher takes for no condition: a label, or an embedding of one row's shape.

    Raises
    ------
    TypeError
        A teacher without what is asked of it.
    ValueError
        ``guidance`` negative or not finite; no condition given, or one unlike ``null_condition``.

    References
    ----------
    Ho and Salimans (2022), Classifier-free diffusion guidance, equation 6, whose w is γ − 1.
    """

    def __init__(self, teacher: Any, guidance: float, null_condition: Any) -> None:
        super().__init__()
        needed = ("denoise", "event_shape", "schedule")
        missing = [name for name in needed if not hasattr(teacher, name)]
        if missing:
            raise TypeError(
                f"teacher must have {', '.join(missing)}, got {type(teacher).__name__}."
            )
        if not 0.0 <= guidance < math.inf:
            raise ValueError(f"guidance must be finite and at least 0, got {guidance!r}.")
        self.teacher = teacher
        self.guidance = float(guidance)
        self.event_shape = tuple(teacher.event_shape)
        self.schedule = teacher.schedule
        null = torch.as_tensor(null_condition).detach()
        self.register_buffer("null_condition", null, persistent=False)
        self.requires_grad_(requires_grad=False).eval()

    def denoise(
        self, x: torch.Tensor, sigma: Any, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """D_γ, ``(n, *event_shape)``; two passes of the teacher."""
        if condition is None:
            raise ValueError("condition must be given to a guided teacher, got None.")
        (known,) = given(condition, len(x))
        null = null_rows(self.get_buffer("null_condition"), known)
        found = self.teacher.denoise(x, sigma, known)
        if self.guidance == 1.0:
            return found
        return found + (self.guidance - 1.0) * (found - self.teacher.denoise(x, sigma, null))

    def score(
        self, x: torch.Tensor, sigma: Any, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """γ ∇ log p_σ(x | c) + (1 − γ) ∇ log p_σ(x), ``(n, *event_shape)``."""
        return (self.denoise(x, sigma, condition) - x) / expand_sigma(sigma, x) ** 2

    def sample(
        self,
        count: int,
        condition: torch.Tensor | None = None,
        *,
        num_steps: int = 18,
        churn: float = 0.0,
    ) -> torch.Tensor:
        """``count`` samples in ``4 · num_steps − 2`` passes; see `sample_diffusion`."""
        like = next(self.parameters(), None)
        return sample_diffusion(self, count, condition, num_steps=num_steps, churn=churn, like=like)


class DenoiserTraining:
    r"""Trains a denoiser on rows of data; a routine for `bayesdiv.training.train`.

    .. math:: E_{\log σ ∼ N(m, s^2)}\big[(σ^{-2} + σ_d^{-2})\,|D(x + σε, σ) - x|^2/\mathrm{dim}\big]

    Parameters
    ----------
    denoiser
        `EDMDenoiser`.
    optimizer
        Of its parameters.
    log_sigma_mean, log_sigma_std
        m and s; levels are cut to the schedule's range.
    ema_decay
        Of the average of the parameters, kept in ``averaged``, which is what to use afterwards.
    scheduler
        A ``torch.optim.lr_scheduler`` that is stepped after every step; None leaves the rate alone.
    condition_dropout, null_condition
        Share of the conditions that are made the null one, a label or an embedding of one row's
        shape, so that `GuidedDenoiser` has a denoiser without a condition as well.

    Raises
    ------
    ValueError
        ``ema_decay`` or ``condition_dropout`` outside [0, 1), or ``log_sigma_std`` not positive; a
        dropout without ``null_condition``, or from a step without a condition; a batch that is not
        rows or a pair of rows and as many conditions.

    References
    ----------
    Karras et al. (2022), §5; Ho and Salimans (2022), algorithm 1.
    """

    def __init__(
        self,
        denoiser: EDMDenoiser,
        optimizer: torch.optim.Optimizer,
        *,
        log_sigma_mean: float = -1.2,
        log_sigma_std: float = 1.2,
        ema_decay: float = 0.99,
        scheduler: Any = None,
        condition_dropout: float = 0.0,
        null_condition: Any = None,
    ) -> None:
        if not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay!r}.")
        if not 0.0 < log_sigma_std < math.inf:
            raise ValueError(f"log_sigma_std must be positive and finite, got {log_sigma_std!r}.")
        if not 0.0 <= condition_dropout < 1.0:
            raise ValueError(f"condition_dropout must be in [0, 1), got {condition_dropout!r}.")
        if condition_dropout and null_condition is None:
            raise ValueError(
                "condition_dropout needs null_condition, what the network takes for no condition, "
                "got None; a network with num_classes takes the label num_classes."
            )
        self.denoiser, self.optimizer, self.scheduler = denoiser, optimizer, scheduler
        self.log_sigma_mean, self.log_sigma_std = log_sigma_mean, log_sigma_std
        self.ema_decay = ema_decay
        self.condition_dropout, self.null_condition = condition_dropout, null_condition
        self.averaged = copy.deepcopy(denoiser).requires_grad_(requires_grad=False).eval()
        self.num_steps = 0
        self._accelerator: Any = None

    def prepare(self, accelerator: Any) -> None:
        """Move to the accelerator's device, and take its mixed precision."""
        self._accelerator = accelerator
        self.denoiser.to(accelerator.device)
        self.averaged.to(accelerator.device)

    def step(self, batch: Any) -> dict[str, torch.Tensor]:
        """One optimiser step on rows, ``(n, *event_shape)``, or a pair ``(rows, condition)``."""
        rows, condition = split_pair(batch)
        if not torch.is_tensor(rows):
            raise ValueError(f"batch must have rows to train on, got {type(rows).__name__}.")
        if self.condition_dropout:
            if condition is None:
                raise ValueError(
                    "condition_dropout needs a batch that is a pair (rows, condition), got rows."
                )
            condition = drop_condition(condition, self.condition_dropout, self.null_condition)
        draws = torch.randn(len(rows), dtype=rows.dtype, device=rows.device)
        sigma = (self.log_sigma_mean + self.log_sigma_std * draws).exp()
        schedule = self.denoiser.schedule
        sigma = sigma.clamp(schedule.sigma_min, schedule.sigma_max)
        if self._accelerator is None:
            loss = denoising_loss(self.denoiser, rows, sigma, condition)
        else:
            with self._accelerator.autocast():
                loss = denoising_loss(self.denoiser, rows, sigma, condition)
        self.optimizer.zero_grad()
        loss.backward()
        if self._accelerator is not None and self._accelerator.num_processes > 1:
            for parameter in self.denoiser.parameters():
                parameter.grad = self._accelerator.reduce(parameter.grad, reduction="mean")
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        self.num_steps += 1
        self._average()
        return {"loss": loss.detach()}

    def _average(self) -> None:
        # The average of few steps is not dragged down by its start.
        decay = min(self.ema_decay, self.num_steps / (10.0 + self.num_steps))
        with torch.no_grad():
            for mean, now in zip(
                self.averaged.parameters(), self.denoiser.parameters(), strict=True
            ):
                mean.lerp_(now, 1.0 - decay)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next step depends on, random states aside."""
        state = {
            "denoiser": self.denoiser.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "num_steps": self.num_steps,
        }
        if self.scheduler is not None:
            state["scheduler"] = self.scheduler.state_dict()
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.denoiser.load_state_dict(state["denoiser"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.num_steps = state["num_steps"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(copy.deepcopy(state["scheduler"]))


class OneStepGenerator(nn.Module):
    r"""A denoiser as a generator in one pass: x = D(σ z, σ), z ∼ N(0, I), at the largest σ.

    Started from a teacher's weights it is the usual student of a distillation, an implicit guide:
    it can be sampled and differentiated but has no density.

    Parameters
    ----------
    denoiser
        Copied, so that the teacher stays as it is.
    sigma
        The level; None for the schedule's largest.
    """

    def __init__(self, denoiser: EDMDenoiser, *, sigma: float | None = None) -> None:
        super().__init__()
        self.denoiser = copy.deepcopy(denoiser).requires_grad_().train()
        self.sigma = denoiser.schedule.sigma_max if sigma is None else sigma
        self.event_shape = denoiser.event_shape

    def forward(self, z: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Samples from noise ``z``, ``(n, *event_shape)``."""
        return self.denoiser.denoise(self.sigma * z, self.sigma, *given(condition, len(z)))

    def sample(self, count: int, condition: torch.Tensor | None = None) -> torch.Tensor:
        """``count`` samples from torch's global generator, differentiable in the parameters."""
        like = next(self.parameters())
        z = torch.randn(count, *self.event_shape, dtype=like.dtype, device=like.device)
        return self(z, condition)
