"""How much work each preset of speech to EGG is, and which variants a condition has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bayesdiv.divergences import FDivergence, get_divergence

REGRESSION, DEAD, NORMAL, STOCHASTIC, ZERO_FREQUENCY = (
    "regression",
    "dead critic",
    "normal prior, ELBO",
    "stochastic guide",
    "zero-frequency filter",
)
# The published loss, and that of rows which are not about the divergence.
PUBLISHED = "softened_reverse_kl"
# Rows whose closures get standard deviations: the divergences differ in them by nothing of note.
TIMED = (REGRESSION, PUBLISHED, NORMAL, STOCHASTIC)


@dataclass(frozen=True)
class Preset:
    """How much work. Steps are minibatches; ``num_draws`` are of the guide, for uncertainty."""

    num_seeds: int
    conditions: tuple[str, ...] = ("clean", "noise", "shift")
    num_training: int = 60
    num_test: int = 16
    seconds: float = 2.5
    stride: int = 8
    test_stride: int = 8
    batch_size: int = 256
    # The published 100 numbers are more than a window of EGG has, and a critic finds those that no
    # window uses.
    code_size: int = 24
    num_autoencoder_steps: int = 750
    num_steps: int = 1300
    encoder_rate: float = 4e-4
    num_draws: int = 8
    num_probed: int = 2048
    context: int = 0
    convolutional: bool = False
    mixed_precision: str = "no"


PRESETS = {
    "quick": Preset(
        num_seeds=1,
        conditions=("clean",),
        num_training=8,
        num_test=2,
        seconds=1.2,
        stride=16,
        test_stride=16,
        batch_size=128,
        code_size=12,
        num_autoencoder_steps=100,
        num_steps=100,
        num_draws=3,
        num_probed=512,
    ),
    "laptop": Preset(num_seeds=3),
    "gpu": Preset(
        num_seeds=3,
        num_training=2400,
        num_test=64,
        seconds=3.0,
        stride=2,
        batch_size=4096,
        num_autoencoder_steps=5000,
        num_steps=20_000,
        num_draws=32,
        context=300,
        convolutional=True,
    ),
}


def variants_of(condition: str, divergences: Sequence[str]) -> list[str]:
    """Every divergence where nothing is hard; the published loss beside its baselines elsewhere."""
    main = [name for name in divergences if name == PUBLISHED] or list(divergences[:1])
    if condition == "clean":
        return [REGRESSION, *divergences, DEAD, NORMAL, STOCHASTIC]
    if condition == "recordings":
        return [STOCHASTIC]
    # Noise is what uncertainty is for, and a shift what an informative prior may help against.
    return [REGRESSION, *main, STOCHASTIC if condition == "noise" else NORMAL]


def is_learnable(name: str) -> bool:
    """Whether codes can be matched under the divergence: through a critic or by samples."""
    divergence = get_divergence(name)
    return not isinstance(divergence, FDivergence) or divergence.has_path_gradient
