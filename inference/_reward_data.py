"""The two classes that a reward model learns to tell apart, drawn alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from bayesdiv.inference._imitation_checks import require

# What makes a critic's work trivial where it differs between the samplers of the classes.
_SAMPLING = ("max_length", "end", "temperature", "top_k", "top_p")
_SOURCES = {
    "init_sft": ("student", "initial"),
    "init_demo": ("demonstrations", "initial"),
    "sft_demo": ("demonstrations", "student"),
}


class Classes(NamedTuple):
    """Rows ``(n, time)`` each, prompts in front, and the prompts or None."""

    positives: torch.Tensor
    negatives: torch.Tensor
    prompts: torch.Tensor | None


def draw_classes(
    kind: str,
    *,
    initial: Any,
    student: Any,
    demonstrations: torch.Tensor | None,
    num_samples: int,
    seed: int,
) -> Classes:
    """As many rows of either class, from policies or demonstrations."""
    given = {"initial": initial, "student": student, "demonstrations": demonstrations}
    sources = _SOURCES[kind]
    for name in sources:
        if given[name] is None:
            raise ValueError(f"{name} is needed for kind={kind!r}, got None.")
    policies = {name: given[name] for name in sources if name != "demonstrations"}
    for name, policy in policies.items():
        require(policy, name, "sample")
    if kind == "init_sft":
        check_same_sampling(initial=initial, student=student)
    prompts = getattr(next(iter(policies.values())), "prompts", None)
    if prompts is not None and prompts.ndim == 1:
        # One prompt before all rows tells nothing apart.
        prompts = None
    num_prompts = 1 if prompts is None else len(prompts)
    count = max(2, num_samples // num_prompts)
    if demonstrations is not None and "demonstrations" in sources:
        _check_demonstrations(demonstrations, prompts, next(iter(policies.values())))
        count = len(demonstrations)
    rows = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name in sources:
            if name == "demonstrations":
                tokens = given[name]
            else:
                with torch.no_grad():
                    tokens = given[name].sample((count,))
            joint = joined(tokens, prompts)
            rows.append(joint.reshape(-1, joint.shape[-1]))
    return Classes(rows[0], rows[1], prompts)


def joined(tokens: torch.Tensor, prompts: torch.Tensor | None) -> torch.Tensor:
    """Each response after its prompt: ``(…, prompts, time)`` after ``(prompts, prompt_length)``."""
    if prompts is None:
        return tokens
    if tokens.ndim < 2 or tokens.shape[-2] != len(prompts):
        raise ValueError(
            f"tokens must have shape (..., {len(prompts)}, max_length), one response to each "
            f"prompt, got {tuple(tokens.shape)}."
        )
    return torch.cat([prompts.expand(*tokens.shape[:-1], prompts.shape[-1]), tokens], dim=-1)


def split(rows: torch.Tensor, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to train on and rows to hold out, at least two of them."""
    count = max(2, round(share * len(rows)))
    if len(rows) - count < 2:
        raise ValueError(
            f"each class must have enough rows to train on 2 and hold out {count}, got {len(rows)}."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    order = order.to(rows.device)
    return rows[order[count:]], rows[order[:count]]


def check_same_sampling(**policies: Any) -> None:
    """Refuse two policies that declare different settings of sampling, or other prompts."""
    (first, one), (second, other) = policies.items()
    for setting in _SAMPLING:
        values = getattr(one, setting, None), getattr(other, setting, None)
        if values[0] != values[1]:
            raise ValueError(
                f"{first} and {second} must be sampled alike, or the difference alone tells them "
                f"apart, got {setting} = {values[0]!r} and {values[1]!r}."
            )
    prompts, others = getattr(one, "prompts", None), getattr(other, "prompts", None)
    if prompts is None and others is None:
        return
    if prompts is None or others is None or not torch.equal(prompts, others):
        raise ValueError(f"{first} and {second} must have the same prompts.")


def _check_demonstrations(
    demonstrations: torch.Tensor, prompts: torch.Tensor | None, policy: Any
) -> None:
    expected = 2 if prompts is None else 3
    if demonstrations.ndim != expected or len(demonstrations) == 0:
        shape = "(n, max_length)" if prompts is None else "(n, prompts, max_length)"
        raise ValueError(
            f"demonstrations must have shape {shape}, n at least 1, got "
            f"{tuple(demonstrations.shape)}."
        )
    length = getattr(policy, "max_length", demonstrations.shape[-1])
    if demonstrations.shape[-1] != length:
        raise ValueError(
            f"demonstrations must have the policy's max_length, {length}, got "
            f"{demonstrations.shape[-1]}; see prepare_demonstrations."
        )
