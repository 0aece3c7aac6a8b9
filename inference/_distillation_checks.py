"""What score distillation asks of its parts before it starts, and of what they return."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from bayesdiv.inference._distillation_settings import DistillationSettings


def require_method(owner: Any, name: str, *methods: str) -> None:
    """Raise unless ``owner`` has the methods."""
    missing = [method for method in methods if not callable(getattr(owner, method, None))]
    if missing:
        raise TypeError(f"{name} must have {', '.join(missing)}, got {type(owner).__name__}.")


def check_parts(
    settings: DistillationSettings,
    *,
    student: Any,
    teacher: Any,
    fake_score: Any,
    fake_optimizer: Any,
    critic: Any,
    critic_optimizer: Any,
    noise: Any,
) -> None:
    """Refuse parts that cannot work together."""
    require_method(student, "student", "sample")
    needed = "denoise" if settings.scaling == "teacher_residual" else "score"
    require_method(teacher, "teacher", needed)
    require_method(fake_score, "fake_score", needed)
    if not hasattr(teacher, "event_shape"):
        raise TypeError(f"teacher must have event_shape, got {type(teacher).__name__}.")
    if fake_optimizer is not None and not isinstance(fake_score, torch.nn.Module):
        raise TypeError(
            "fake_score must be a torch module to be trained by fake_optimizer, got "
            f"{type(fake_score).__name__}."
        )
    if (critic is None) != (critic_optimizer is None):
        raise ValueError("critic and critic_optimizer belong together; got one of them.")
    if critic is None and settings.gan_weight:
        raise ValueError(
            f"gan_weight needs a critic, got gan_weight={settings.gan_weight!r} without one."
        )
    if noise is None and settings.scaling == "teacher_residual":
        raise ValueError(
            "noise must be a schedule with scaling='teacher_residual', got None: without noise "
            "there is nothing to denoise. Pass scaling='score'."
        )
    check_ratio_source(settings, teacher, fake_score, critic)
    check_range(teacher, noise)


def check_ratio_source(
    settings: DistillationSettings, teacher: Any, fake_score: Any, critic: Any
) -> None:
    """Every divergence but reverse KL weighs by p/q, which has to come from somewhere."""
    exact = all(
        hasattr(each, "log_prob") or hasattr(each, "score_and_log_prob")
        for each in (teacher, fake_score)
    )
    if critic is None and not exact and settings.rule.needs_normalizer:
        raise ValueError(
            f"critic is needed for {settings.rule!r}, got None: its weights are a function of "
            "p/q, and teacher and fake_score do not both have log_prob. Pass a critic with its "
            "optimiser, or divergence='reverse_kl', which needs no ratio."
        )
    unknown = not getattr(teacher, "is_normalized", True)
    if unknown and critic is None and settings.rule.needs_normalizer:
        if settings.normalize_ratio:
            return
        warnings.warn(
            f"teacher has an unnormalised density, and {settings.rule!r} with "
            "normalize_ratio=False depends on the unknown constant; pass normalize_ratio=True.",
            RuntimeWarning,
            stacklevel=4,
        )


def check_range(teacher: Any, noise: Any) -> None:
    """Levels must be those that a teacher has learnt."""
    own = getattr(teacher, "schedule", None)
    if noise is None or own is None or not isinstance(teacher, torch.nn.Module):
        return
    if noise.sigma_min < own.sigma_min or noise.sigma_max > own.sigma_max:
        raise ValueError(
            f"noise must be within the teacher's range [{own.sigma_min:g}, {own.sigma_max:g}], got "
            f"[{noise.sigma_min:g}, {noise.sigma_max:g}]."
        )


def freeze(teacher: Any) -> None:
    """Take the teacher's parameters out of differentiation, with a warning if there are any."""
    if not isinstance(teacher, torch.nn.Module):
        return
    if any(parameter.requires_grad for parameter in teacher.parameters()):
        warnings.warn(
            "teacher has parameters that require gradients; they are frozen now. Call "
            "teacher.requires_grad_(False) to say so yourself.",
            RuntimeWarning,
            stacklevel=3,
        )
        teacher.requires_grad_(requires_grad=False)
    teacher.eval()


def check_samples(x: Any, event_shape: tuple[int, ...], count: int) -> None:
    """The student's samples must be rows of the teacher's."""
    if tuple(x.shape) != (count, *event_shape):
        raise ValueError(
            f"student must return samples of shape {(count, *event_shape)}, the teacher's event "
            f"shape behind the batch size, got {tuple(x.shape)}."
        )


def one_logit(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Logits ``(n,)``, or ``(n, heads)``, whose heads are averaged; float32 at least."""
    if logits.ndim not in (1, 2) or len(logits) != count:
        raise ValueError(
            f"critic must return logits of shape ({count},) or ({count}, heads) for {count} noise "
            f"levels, got {tuple(logits.shape)}."
        )
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return wide if wide.ndim == 1 else wide.mean(1)


def split_batch(batch: Any, event_shape: tuple[int, ...], num_parts: int) -> list[torch.Tensor]:
    """Rows of data for each critic step."""
    if not torch.is_tensor(batch) or tuple(batch.shape[1:]) != tuple(event_shape):
        got = tuple(batch.shape) if torch.is_tensor(batch) else type(batch).__name__
        raise ValueError(
            f"batch must be rows of data of shape {tuple(event_shape)} for the critic, got {got}."
        )
    if len(batch) == 0 or len(batch) % num_parts:
        raise ValueError(
            f"batch must have a multiple of num_critic_steps={num_parts} rows, of which each "
            f"critic step sees its own part, got {len(batch)}."
        )
    return list(batch.chunk(num_parts))


def split_condition(
    condition: torch.Tensor | None, batch_size: int, num_parts: int
) -> tuple[tuple[torch.Tensor, ...], list[tuple[torch.Tensor, ...]]]:
    """What the student's step and each critic step hand on: nothing, or their conditions."""
    if condition is None:
        return (), [()] * num_parts
    if len(condition) < batch_size:
        raise ValueError(
            f"condition must have at least batch_size={batch_size} rows, of which the student's "
            f"step sees the first, got {len(condition)}."
        )
    if len(condition) % max(num_parts, 1):
        raise ValueError(
            f"condition must have a multiple of num_critic_steps={num_parts} rows, of which each "
            f"critic step sees its own part, got {len(condition)}."
        )
    parts = condition.chunk(num_parts) if num_parts else ()
    return (condition[:batch_size],), [(part,) for part in parts]
