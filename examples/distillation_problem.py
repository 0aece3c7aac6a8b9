"""Images to distil on, their teachers, and what scores samples of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from bayesdiv.data import Images, load_digits, load_fashion_mnist, load_mnist
from bayesdiv.diagnostics import (
    ClassifierFeatures,
    class_coverage,
    sample_quality,
    train_classifier_features,
)
from bayesdiv.models.diffusion import DenoiserTraining, EDMDenoiser, NoiseSchedule
from bayesdiv.nn.denoisers_torch import DenoisingMLP, DenoisingUNet
from bayesdiv.training import TensorBatches, train

SCHEDULE = NoiseSchedule(0.02, 20.0)
# Frequencies of the classes 0 to 9.
LONG_TAIL = (10.0, 8.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.7)
# Standard deviations of the noise on the images that train the classifier.
_CLASSIFIER_NOISE = (0.0, 0.3, 0.6)
_IMAGE_SIDE = 32


@dataclass(frozen=True)
class TeacherSettings:
    """Network and training of a teacher; "mlp" over flat rows, "unet" over images."""

    network: str = "mlp"
    width: int = 256
    num_steps: int = 4000
    batch_size: int = 256
    learning_rate: float = 1e-3


@dataclass(frozen=True, eq=False)
class ImageProblem:
    """Rows in [−1, 1], those that training sees, and a classifier whose features score samples.

    ``rows`` and ``training`` are ``(n, *event_shape)``; ``labels`` belong to ``rows``.
    """

    name: str
    rows: torch.Tensor
    labels: np.ndarray
    training: torch.Tensor
    features: ClassifierFeatures

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Of one row."""
        return tuple(self.rows.shape[1:])

    def score(self, samples: torch.Tensor) -> dict[str, float]:
        """Every metric of ``samples``, ``(n, *event_shape)``, against all real rows."""
        flat, real = (each.float().cpu().flatten(1).numpy() for each in (samples, self.rows))
        found = sample_quality(real, flat, features=self.features).as_dict()
        coverage = class_coverage(
            self.features.classify(real), self.features.classify(flat), len(LONG_TAIL)
        )
        return {**found, "class_kl": coverage.kl, "smallest_share": coverage.smallest_share}

    def quick_score(self, samples: torch.Tensor) -> dict[str, float]:
        """Two metrics that cost little, for curves."""
        flat, real = (each.float().cpu().flatten(1).numpy() for each in (samples, self.rows))
        labels = (self.features.classify(each) for each in (real, flat))
        return {
            "frechet": self.features.distance(real, flat),
            "class_kl": class_coverage(*labels, len(LONG_TAIL)).kl,
        }


def load_problem(name: str, *, network: str) -> ImageProblem:
    """digits or long_tailed of 8×8 pixels, mnist or fashion_mnist at 32×32; always the same."""
    loaders = {"mnist": load_mnist, "fashion_mnist": load_fashion_mnist}
    if name in loaders:
        training, test = loaders[name]("train"), loaders[name]("test")
        seen, rows = _rows(training, network), _rows(test, network)
        return ImageProblem(name, rows, test.labels, seen, _classifier(seen, training.labels))
    images = load_digits()
    order = np.random.default_rng(0).permutation(len(images))
    if name == "long_tailed":
        order = order[_long_tail(images.labels[order])]
    images = images.take(order)
    rows = _rows(images, network)
    # The classifier is the same for both, so that their distances can be compared.
    everything = load_digits()
    features = _classifier(_rows(everything, network), everything.labels)
    return ImageProblem(name, rows, images.labels, rows[: 2 * len(rows) // 3], features)


def _long_tail(labels: np.ndarray) -> np.ndarray:
    """The rows to keep, without repetition, for classes in the ratio of `LONG_TAIL`."""
    counts = np.bincount(labels)
    scale = (counts / LONG_TAIL).min()
    kept = [
        np.flatnonzero(labels == label)[: int(scale * share)]
        for label, share in enumerate(LONG_TAIL)
    ]
    return np.sort(np.concatenate(kept))


def _rows(images: Images, network: str) -> torch.Tensor:
    rows = 2.0 * torch.as_tensor(images.pixels) - 1.0
    if network == "mlp":
        return rows
    height, width = images.shape
    rows = rows.reshape(-1, 1, height, width)
    if height < _IMAGE_SIDE and height > 8:
        border = (_IMAGE_SIDE - height) // 2
        rows = torch.nn.functional.pad(rows, (border,) * 4, value=-1.0)
    return rows


def _classifier(rows: torch.Tensor, labels: np.ndarray) -> ClassifierFeatures:
    """Trained on noisy images, too, as generated ones are not clean."""
    rng = np.random.default_rng(0)
    flat = rows.flatten(1).numpy()
    noisy = [flat + level * rng.normal(size=flat.shape) for level in _CLASSIFIER_NOISE]
    return train_classifier_features(
        np.concatenate(noisy), np.tile(labels, len(noisy)), num_features=32, max_passes=60
    )


def make_denoiser(problem: ImageProblem, settings: TeacherSettings) -> EDMDenoiser:
    """Untrained, of the data's standard deviation."""
    shape = problem.event_shape
    network: torch.nn.Module
    if settings.network == "mlp":
        network = DenoisingMLP(shape[0], width=settings.width)
    else:
        network = DenoisingUNet((shape[0], shape[1], shape[2]), width=settings.width)
    spread = float(problem.training.std())
    return EDMDenoiser(network, shape, sigma_data=spread, schedule=SCHEDULE)


def train_teacher(
    problem: ImageProblem, settings: TeacherSettings, path: Path, accelerator: Accelerator
) -> None:
    """Write the averaged teacher to ``path``."""
    torch.manual_seed(0)
    denoiser = make_denoiser(problem, settings)
    optimizer = torch.optim.Adam(denoiser.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, settings.num_steps, eta_min=settings.learning_rate / 100.0
    )
    routine = DenoiserTraining(
        denoiser, optimizer, log_sigma_mean=-0.8, ema_decay=0.995, scheduler=schedule
    )
    batches = TensorBatches(problem.training, batch_size=settings.batch_size)
    train(
        routine,
        batches,
        num_steps=settings.num_steps,
        progress_bar=False,
        accelerator=accelerator,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(routine.averaged.state_dict(), path)


def load_teacher(
    problem: ImageProblem, settings: TeacherSettings, path: Path, device: Any
) -> EDMDenoiser:
    """What `train_teacher` wrote, frozen."""
    teacher = make_denoiser(problem, settings)
    teacher.load_state_dict(torch.load(path, weights_only=True))
    return teacher.requires_grad_(requires_grad=False).eval().to(device)
