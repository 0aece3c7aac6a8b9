r"""Score distillation: a sampler fitted to a teacher by any f-divergence, at many noise levels.

With q the law of the student's samples x = G_θ(z), p the teacher's, p_σ and q_σ what noise of
level σ makes of them, and l = log p_σ/q_σ,

.. math::

    ∇_θ D_f(p_σ‖q_σ) = -E\big[\mathrm{path\_weight}(l(x_σ))\,
        (∇\log p_σ - ∇\log q_σ)(x_σ)^\top\, ∂_θ G_θ(z)\big], \qquad x_σ = G_θ(z) + σ ε,

in which neither weight nor scores are differentiated. Reverse KL has weight 1: variational score
distillation, or distribution matching.

===================  =========================================  ==================================
part                 an implicit guide (one-step generator)     an explicit guide of a posterior
===================  =========================================  ==================================
teacher              a diffusion: ``denoise`` or ``score``      unnormalised log-density and score
``fake_score``       a denoiser, trained on student's samples   the guide's own density
ratio                a critic's logit, or exact densities       exact, up to the evidence
noise                a schedule of levels                       None: no noise
===================  =========================================  ==================================

Given conditions c, all of it is of p_σ(x | c) and q_σ(x | c), averaged over the c of the batch.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch.nn.functional import softplus

from bayesdiv.inference._distillation_checks import (
    check_parts,
    check_samples,
    freeze,
    one_logit,
    split_batch,
    split_condition,
)
from bayesdiv.inference._distillation_report import NoiseReport, WeightHistory, reports_to_arviz
from bayesdiv.inference._distillation_settings import DistillationSettings
from bayesdiv.inference._distillation_state import DistillationState
from bayesdiv.inference._ratio_weights import bin_of_level, effective_sample_size, ratio_weights
from bayesdiv.nn.conditions_torch import split_pair
from bayesdiv.nn.noise_levels_torch import NoiseSchedule, denoising_loss, expand_sigma
from bayesdiv.objectives import DensityRatio

__all__ = ["DistillationSettings", "NoiseReport", "ScoreDistillation", "reports_to_arviz"]

# The teacher's residual vanishes with the noise.
_LEAST_RESIDUAL = 1e-6
# Standard deviation of the noise in the approximate R1 penalty.
_R1_NOISE = 0.1


class ScoreDistillation(DistillationState):
    r"""Fits a student to a teacher; a routine for `bayesdiv.training.train`.

    A step is ``num_critic_steps`` updates of fake score and critic, then one of the student. The
    critic tells data from the student's samples, so that the ratio is data over student while the
    scores are teacher over student, as published. Where the batch brings a condition, every part is
    called with it as a last argument, and else without.

    Parameters
    ----------
    student
        An object with ``sample(count)``, or ``sample(count, condition)``, of shape
        ``(count, *event_shape)`` and differentiable in the parameters of ``student_optimizer``.
    student_optimizer
        A ``torch.optim`` optimiser.
    teacher
        An object with ``event_shape`` and ``denoise(x, sigma)`` or ``score(x, sigma)``, as
        ``scaling`` asks; with ``log_prob(x, sigma)`` the ratio may be exact. Frozen if a module.
    fake_score
        The same of the student's law: a denoiser that ``fake_optimizer`` trains, or something
        exact, such as an explicit guide.
    fake_optimizer
        Of the denoiser's parameters; None if there is nothing to train.
    critic, critic_optimizer
        A module ``critic(x, sigma)`` with logits ``(n,)`` or ``(n, heads)``. Without one the ratio
        is exact where both sides have ``log_prob``.
    ratio
        `bayesdiv.objectives.DensityRatio`: the critic's loss and the clamp of its logit.
    noise
        Levels, uniform in the schedule's u; None for no noise at all.
    settings
        `DistillationSettings`.

    Raises
    ------
    ValueError
        A divergence without a source of its ratio, noise beyond the teacher's range, GAN term
        without critic, and from a step: samples, logits, data or conditions of wrong shapes.
    TypeError
        A part without what is asked of it.
    FloatingPointError
        With ``debug=True``, a ratio or score that is not finite.

    Warns
    -----
    RuntimeWarning
        A teacher that is not frozen; an unnormalised teacher whose constant matters; once each:
        rows left out because they were not finite, steps skipped because the weights collapsed.

    References
    ----------
    Xu, Nie and Vahdat (2025), f-distill, equations 5 to 8; Wang et al. (2023), ProlificDreamer; Yin
    et al. (2024), DMD2.
    """

    def __init__(
        self,
        student: Any,
        student_optimizer: torch.optim.Optimizer,
        teacher: Any,
        fake_score: Any,
        *,
        fake_optimizer: torch.optim.Optimizer | None = None,
        critic: Any = None,
        critic_optimizer: torch.optim.Optimizer | None = None,
        ratio: DensityRatio | None = None,
        noise: NoiseSchedule | None = None,
        settings: DistillationSettings | None = None,
    ) -> None:
        self.settings = DistillationSettings() if settings is None else settings
        check_parts(
            self.settings,
            student=student,
            teacher=teacher,
            fake_score=fake_score,
            fake_optimizer=fake_optimizer,
            critic=critic,
            critic_optimizer=critic_optimizer,
            noise=noise,
        )
        freeze(teacher)
        self.student, self.teacher = student, teacher
        self.fake_score, self.critic, self.noise = fake_score, critic, noise
        self.ratio = DensityRatio(classes="balanced") if ratio is None else ratio
        super().__init__(
            {
                "student": student_optimizer,
                "fake_score": fake_optimizer,
                "critic": critic_optimizer,
            },
            num_bins=self.settings.num_bins,
            ema_decay=self.settings.ema_decay,
        )
        self._history = WeightHistory()
        self._warned: set[str] = set()

    # The routine's protocol

    def step(self, batch: Any = None) -> dict[str, torch.Tensor]:
        """Critic steps, then a student step.

        ``batch`` is rows of data, ``(num_critic_steps · m, *event_shape)``, for the critic, and is
        not looked at without one. With conditions it is a pair of rows, or None without a critic,
        and as many labels or embeddings: each critic step draws samples of its own part's, the
        student's step of the first ``batch_size``. Metrics: ``weight_max`` and ``weight_ess`` of
        the batch's weights, ``log_ratio`` its mean, ``clipped`` the share at a clamp or clip,
        ``dropped`` and ``skipped`` counts of rows and steps, ``gradient`` the root mean square of
        what reaches the samples; ``fake_loss``, ``critic_loss`` and ``critic_accuracy`` of the last
        critic step.
        """
        rows, condition = split_pair(batch)
        if condition is not None:
            # Labels stay whole.
            kind = self._like.dtype if condition.is_floating_point() else condition.dtype
            condition = condition.to(self._like.device, kind)
        count = self.settings.num_critic_steps if len(self._optimizers) > 1 else 0
        own, conditions = split_condition(condition, self.settings.batch_size, count)
        parts: list[Any] = [None] * count
        if self.critic is not None:
            parts = split_batch(rows, tuple(self.teacher.event_shape), count)
        found: dict[str, torch.Tensor] = {}
        for part, its in zip(parts, conditions, strict=True):
            found = self._critic_step(part, *its)
        found = {**found, **self._student_step(*own)}
        self.num_steps += 1
        return found

    def report(self) -> NoiseReport:
        """The weights of the last 50 steps by noise level; reads from the device."""
        num_bins = self.settings.num_bins
        edges = np.full(num_bins + 1, np.nan)
        if self.noise is not None:
            edges = np.geomspace(self.noise.sigma_min, self.noise.sigma_max, num_bins + 1)
        return self._history.report(edges, self._log_means)

    # The critic's turn

    def _critic_step(
        self, rows: torch.Tensor | None, *condition: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        known = [len(each) for each in (rows, *condition) if each is not None]
        count = known[0] if known else self.settings.batch_size
        with torch.no_grad(), self._autocast():
            x = self.student.sample(count, *condition)
        check_samples(x, tuple(self.teacher.event_shape), count)
        x, found = x.to(self._like.dtype), {}
        if "fake_score" in self._optimizers:
            with self._autocast():
                loss = denoising_loss(self.fake_score, x, self._levels(count), *condition)
            self._descend("fake_score", loss)
            found["fake_loss"] = loss.detach()
        if rows is not None:
            found.update(self._train_critic(rows.to(self._like), x, *condition))
        return found

    def _train_critic(
        self, rows: torch.Tensor, x: torch.Tensor, *condition: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        real, real_level = self._diffuse(rows)
        fake, fake_level = self._diffuse(x)
        with self._autocast():
            real_logits = one_logit(self.critic(real, real_level, *condition), len(real))
            fake_logits = one_logit(self.critic(fake, fake_level, *condition), len(fake))
            loss = self.ratio.loss(real_logits, fake_logits)
            if self.settings.r1_weight:
                near = real + _R1_NOISE * torch.randn_like(real)
                moved = one_logit(self.critic(near, real_level, *condition), len(real))
                loss = loss + self.settings.r1_weight * ((real_logits - moved) ** 2).mean()
        self._descend("critic", loss)
        right = torch.cat([real_logits > 0, fake_logits < 0])
        self._history.add_critic(right, self._bins(torch.cat([real_level, fake_level])))
        return {"critic_loss": loss.detach(), "critic_accuracy": right.float().mean()}

    # The student's turn

    def _student_step(self, *condition: torch.Tensor) -> dict[str, torch.Tensor]:
        settings, count = self.settings, self.settings.batch_size
        with self._autocast():
            x = self.student.sample(count, *condition)
        check_samples(x, tuple(self.teacher.event_shape), count)
        clean = x.detach().to(self._like.dtype)
        noisy, level = self._diffuse(clean)
        direction, log_p_q = self._direction(clean, noisy, level, *condition)
        log_ratio, clipped, pull = self._log_ratio(noisy, level, log_p_q, *condition)
        keep = log_ratio.isfinite() & direction.flatten(1).isfinite().all(1)
        log_ratio = torch.where(keep, log_ratio, torch.zeros_like(log_ratio))
        weights, log_means, bins = self._weights(log_ratio, level, keep)
        wide = expand_sigma(weights, direction, may_be_zero=True)
        rows = expand_sigma(keep.to(direction.dtype), direction, may_be_zero=True) > 0.0
        # ∂L/∂x: the samples move against it.
        slope = torch.where(rows, -wide * direction, torch.zeros_like(direction)) / count
        if pull is not None:
            slope = slope + settings.gan_weight * torch.where(rows, pull, torch.zeros_like(pull))
        ess, dropped = effective_sample_size(weights), (~keep).sum()
        # The step's one reading of the device.
        ess_now, dropped_now = torch.stack([ess, dropped.to(ess.dtype)]).tolist()
        skip = self._verdict(ess_now, int(dropped_now))
        self._log_means = log_means
        if not skip and x.requires_grad:
            self._descend("student", (slope.to(x.dtype) * x).sum())
            self._average()
        self._history.add(log_ratio, weights, bins)
        return {
            "weight_max": weights.max(),
            "weight_ess": ess,
            "log_ratio": log_ratio.mean(),
            "clipped": clipped,
            "dropped": dropped.to(ess.dtype),
            "skipped": ess.new_tensor(float(skip)),
            "gradient": (slope**2).mean().sqrt() * count,
        }

    def _direction(
        self,
        clean: torch.Tensor,
        noisy: torch.Tensor,
        level: torch.Tensor,
        *condition: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scaled difference of scores, teacher less student, and log p/q where it comes along."""
        with torch.no_grad(), self._autocast():
            if self.settings.scaling == "teacher_residual":
                target = self.teacher.denoise(noisy, level, *condition).to(clean.dtype)
                own = self.fake_score.denoise(noisy, level, *condition).to(clean.dtype)
                residual = (clean - target).abs().flatten(1).mean(1) + _LEAST_RESIDUAL
                return (target - own) / (expand_sigma(residual, clean) * clean[0].numel()), None
            found, logs = [], []
            for part in (self.teacher, self.fake_score):
                if hasattr(part, "score_and_log_prob"):
                    score, log_prob = part.score_and_log_prob(noisy, level, *condition)
                    logs.append(log_prob)
                else:
                    score = part.score(noisy, level, *condition)
                found.append(score.to(clean.dtype))
            return found[0] - found[1], logs[0] - logs[1] if len(logs) == 2 else None

    def _log_ratio(
        self,
        noisy: torch.Tensor,
        level: torch.Tensor,
        log_p_q: torch.Tensor | None,
        *condition: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """l, the share of it that was bounded, and the GAN term's slope in the noisy rows."""
        settings, pull = self.settings, None
        if self.critic is not None:
            with torch.set_grad_enabled(settings.gan_weight > 0.0), self._autocast():
                moved = noisy.requires_grad_(settings.gan_weight > 0.0)
                logits = one_logit(self.critic(moved, level, *condition), len(noisy))
                if settings.gan_weight:
                    (pull,) = torch.autograd.grad(softplus(-logits).mean(), moved)
            read = self.ratio.log_ratio(logits.detach())
            log_ratio, share = read.log_ratio, read.saturated
        elif not settings.weighted or not settings.rule.needs_normalizer:
            # Constant weights look at no ratio.
            log_ratio = noisy.new_zeros(len(noisy)) if log_p_q is None else log_p_q
            share = log_ratio.new_zeros(())
        else:
            log_ratio, share = log_p_q, noisy.new_zeros(())
            if log_ratio is None:
                with torch.no_grad():
                    log_p = self.teacher.log_prob(noisy, level, *condition)
                    log_ratio = log_p - self.fake_score.log_prob(noisy, level, *condition)
        clip = settings.clip_for(exact=self.critic is None)
        if clip is not None:
            low, high = (float(np.log(bound)) for bound in clip)
            outside = (log_ratio <= low) | (log_ratio >= high)
            share, log_ratio = outside.to(log_ratio.dtype).mean(), log_ratio.clamp(low, high)
        return log_ratio.to(self._log_means.dtype), share, pull

    def _weights(
        self, log_ratio: torch.Tensor, level: torch.Tensor, keep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        settings, bins = self.settings, self._bins(level).to(log_ratio.dtype)
        if not settings.weighted:
            return keep.to(log_ratio.dtype), self._log_means, bins
        found = ratio_weights(
            settings.rule,
            log_ratio,
            bins,
            self._log_means,
            keep=keep,
            decay=settings.ratio_decay,
            normalize_ratio=settings.normalize_ratio,
            normalize_weight=settings.normalize_weight,
        )
        return found.weights, found.log_means, bins

    def _verdict(self, ess: float, dropped: int) -> bool:
        """Whether to skip the step; speaks up once."""
        if dropped:
            message = (
                f"{dropped} of {self.settings.batch_size} rows had a ratio or score that is not "
                f"finite at step {self.num_steps + 1}"
            )
            if self.settings.debug:
                raise FloatingPointError(f"{message}; look at teacher, fake_score and critic.")
            self._warn(
                "dropped",
                f"{message}, and were left out; the metric 'dropped' counts them from now on. Pass "
                "debug=True to stop there.",
            )
        collapsed = ess < min(self.settings.min_ess, float(self.settings.batch_size))
        if collapsed or not ess > 0.0:
            self._warn(
                "collapsed",
                f"the weights collapsed at step {self.num_steps + 1}: {ess:.2f} of "
                f"{self.settings.batch_size} rows are effective, and the step is skipped; the "
                "metric 'skipped' counts such steps from now on. Start nearer to the teacher, "
                "enlarge the batch, or take a divergence with bounded weights.",
            )
            return True
        return False

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, RuntimeWarning, stacklevel=5)

    # Small parts

    def _levels(self, count: int) -> torch.Tensor:
        if self.noise is None:
            return self._like.new_zeros(count)
        return self.noise.draw(count, self._like)

    def _bins(self, level: torch.Tensor) -> torch.Tensor:
        noise = self.noise
        if noise is None:
            return torch.zeros_like(level)
        return bin_of_level(level, noise.sigma_min, noise.sigma_max, self.settings.num_bins)

    def _diffuse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x + σ ε and σ, ``(n,)``."""
        level = self._levels(len(x))
        if self.noise is None:
            return x, level
        return x + expand_sigma(level, x) * torch.randn_like(x), level
