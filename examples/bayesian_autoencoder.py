"""Bayesian autoencoders on few images: which prior over the weights, chosen by which divergence.

An autoencoder whose every weight has a prior is sampled by stochastic-gradient HMC. Its prior is
N(0, 1), N(0, 1/fan-in), centred on weights pre-trained on other images, or tuned so that what it
predicts looks like those images, under any divergence between samples. Scores of test images say
what that is worth, beside a deterministic and a variational autoencoder.

    python examples/bayesian_autoencoder.py --preset laptop
    python examples/bayesian_autoencoder.py --divergence sinkhorn --sizes 100
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyro
import torch
import tyro
from autoencoder_report import Outcome, report
from pyro.infer import MCMC, SVI
from rich.console import Console
from rich.progress import Progress

from bayesdiv.data import ImageSplit, load_digits, load_faces, load_mnist, split_images
from bayesdiv.diagnostics import (
    ClassifierFeatures,
    plug_in_log_likelihood,
    predictions_to_arviz,
    proper_log_likelihood,
    rhat_of_predictions,
    train_classifier_features,
)
from bayesdiv.inference.latent_density import LatentMixture
from bayesdiv.inference.prior_selection import (
    NetworkPriorPredictive,
    PriorPredictiveObjective,
    check_disjoint,
)
from bayesdiv.inference.prior_selection_torch import prior_predictive_distance, select_prior
from bayesdiv.inference.reconstruction_torch import Reconstruction
from bayesdiv.inference.sghmc_pyro import SGHMC
from bayesdiv.models.bayesian_autoencoder_pyro import BayesianAutoencoder
from bayesdiv.models.variational_autoencoder_pyro import VariationalAutoencoder
from bayesdiv.nn import AutoencoderNetwork, MLPAutoencoder, PixelLikelihood, WeightPrior
from bayesdiv.pyro import objective
from bayesdiv.training import TensorBatches, train

RESULTS = Path(__file__).parent.parent / "results" / "bayesian_autoencoder"

# What each divergence needs to know of images of about a hundred pixels; the rest is its default.
DIVERGENCES: dict[str, dict[str, Any]] = {
    "distributional_sliced_wasserstein": {"num_projections": 200, "num_steps": 10},
    "sliced_wasserstein": {"num_projections": 200},
    "max_sliced_wasserstein": {"num_steps": 10},
    "sinkhorn": {},
    "energy_distance": {},
    "mmd": {},
    "jensen_shannon": {},
}
LONGEST = ("N(0, 1)", "distributional_sliced_wasserstein")
CHECKED_STATISTICS = ("kinetic_temperature", "clamped_fraction")
NUM_SHOWN = 12
FIXED = ("autoencoder", "variational", "N(0, 1)", "N(0, 1/fan-in)", "centred")


@dataclass(frozen=True)
class Preset:
    """How much work. Steps are gradient steps of each of two chains in one batch."""

    sizes: tuple[int, ...]
    num_seeds: int
    hidden: tuple[int, ...]
    latent_dim: int
    num_tuning: int
    num_test: int
    num_training_steps: int
    num_tuning_steps: int
    num_draws: int
    num_sampler_steps: int
    step_size: float
    # N(0, 1) lets weights move far: it needs smaller steps, and more of them, for a valid run.
    small_step_size: float
    num_small_steps: int
    num_kept: int = 20


PRESETS = {
    "quick": Preset((50,), 1, (64,), 8, 64, 200, 100, 60, 4, 400, 0.01, 0.003, 400, 10),
    "laptop": Preset(
        sizes=(50, 100, 400),
        num_seeds=3,
        hidden=(128, 128),
        latent_dim=16,
        num_tuning=100,
        num_test=800,
        num_training_steps=1500,
        num_tuning_steps=300,
        num_draws=8,
        num_sampler_steps=4000,
        step_size=0.01,
        small_step_size=0.003,
        num_small_steps=12_000,
    ),
    "gpu": Preset(
        sizes=(200, 500, 1000, 2000),
        num_seeds=3,
        hidden=(),
        latent_dim=50,
        num_tuning=100,
        num_test=10_000,
        num_training_steps=3000,
        num_tuning_steps=2000,
        num_draws=32,
        num_sampler_steps=38_000,
        step_size=0.003,
        small_step_size=0.001,
        num_small_steps=76_000,
        num_kept=32,
    ),
}


@dataclass(frozen=True)
class Options:
    """Choose priors of Bayesian autoencoders by divergences, and score them."""

    divergence: tuple[str, ...] = tuple(DIVERGENCES)
    """Divergences that tune a prior. The first is run for every size, the others for one."""
    preset: Literal["quick", "laptop", "gpu"] = "laptop"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    data: Literal["digits", "mnist", "faces"] | None = None
    """digits by default; mnist on the gpu preset (python -m bayesdiv.data.fetch mnist)."""
    sizes: tuple[int, ...] = ()
    """Training sizes; those of the preset by default."""
    num_seeds: int | None = None
    """Seeds from ``seed`` on; the preset's number by default."""
    tuning: Literal["mixed", "zeros"] = "mixed"
    """Images that the prior is tuned on: like the training images, or zeros while these are not."""
    per: Literal["weight", "layer"] = "weight"
    """One log-variance for each weight, or for each layer."""
    log_variance: float = -5.0
    """Where the log-variances start."""
    rows: tuple[str, ...] = FIXED
    """Rows beside the tuned ones."""
    processes: int = 2
    output: Path | None = None
    """Where results go; results/bayesian_autoencoder/<preset> by default."""

    def __post_init__(self) -> None:
        for name, allowed in (("divergence", DIVERGENCES), ("rows", FIXED)):
            unknown = sorted(set(getattr(self, name)) - set(allowed))
            if unknown:
                raise ValueError(f"{name} must be among {list(allowed)}, got {unknown}.")

    @property
    def work(self) -> Preset:
        """The preset, with the sizes and seeds asked for."""
        preset = PRESETS[self.preset]
        num_seeds = preset.num_seeds if self.num_seeds is None else self.num_seeds
        return replace(preset, sizes=self.sizes or preset.sizes, num_seeds=num_seeds)

    @property
    def folder(self) -> Path:
        """Where results go."""
        return RESULTS / self.preset if self.output is None else self.output

    def sizes_of(self, row: str) -> tuple[int, ...]:
        """Every size for the rows of the comparison, the middle one for further divergences."""
        sizes = self.work.sizes
        return sizes[len(sizes) // 2 :][:1] if row in self.divergence[1:] else sizes


class Experiment:
    """Data, network and scores that all rows of one seed share."""

    def __init__(self, options: Options, seed: int) -> None:
        self.options, self.seed, self.work = options, seed, options.work
        name = options.data or ("mnist" if options.preset == "gpu" else "digits")
        zeros = options.tuning == "zeros"
        images = {"digits": load_digits, "mnist": load_mnist, "faces": load_faces}[name]()
        split: ImageSplit = split_images(
            images,
            num_tuning=self.work.num_tuning,
            num_training=max(self.work.sizes),
            num_test=self.work.num_test,
            tuning_labels=(0,) if zeros else None,
            training_labels=range(1, 10) if zeros else None,
            seed=seed,
        )
        check_disjoint(split.tuning.pixels, split.training.pixels)
        chosen = options.device
        if chosen == "auto":
            chosen = "cuda" if torch.cuda.is_available() else "cpu"
        self.tuning, self.training, self.test = (
            torch.tensor(part.pixels, device=chosen) for part in split
        )
        self.shape, self.likelihood = images.shape, PixelLikelihood()
        self.network = _network(self.work, images.pixels.shape[1])
        self.features: ClassifierFeatures = train_classifier_features(
            split.test.pixels, split.test.labels, seed=seed
        )

    def prior(self, row: str) -> WeightPrior:
        """The prior that a row is named after, or that tuning starts from."""
        if row == "N(0, 1)":
            return WeightPrior.standard(self.network, like=self.tuning)
        if row == "N(0, 1/fan-in)":
            return WeightPrior.fan_in(self.network, like=self.tuning)
        weights = self.trained(self.tuning)
        return WeightPrior.centred(weights, self.options.log_variance, per=self.options.per)

    def trained(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weights of the deterministic autoencoder."""
        routine = Reconstruction(
            self.network, like=images, likelihood=self.likelihood, seed=self.seed
        )
        batches = TensorBatches(images, batch_size=64, seed=self.seed)
        train(routine, batches, num_steps=self.work.num_training_steps, progress_bar=False)
        return routine.weights

    def model(self, prior: WeightPrior, size: int) -> BayesianAutoencoder:
        """The Pyro model for ``size`` images."""
        batch = 64 if size > 64 else None
        return BayesianAutoencoder(self.network, prior, self.likelihood, subsample_size=batch)

    def distance(self, prior: WeightPrior, images: torch.Tensor) -> float:
        """Sliced Wasserstein distance of the prior predictive to ``images``."""
        predictive = NetworkPriorPredictive(self.model(prior, len(images)))
        return prior_predictive_distance(
            predictive, predictive.parameters, images[:200], num_projections=500, seed=self.seed
        )

    def predict(self, prior: WeightPrior) -> torch.Tensor:
        """A few images that a prior predicts, each with weights of its own."""
        predictive = NetworkPriorPredictive(self.model(prior, len(self.tuning)))
        with torch.no_grad():
            rows = predictive(predictive.parameters, self.tuning[:NUM_SHOWN], NUM_SHOWN, self.seed)
        return rows.unflatten(0, (NUM_SHOWN, NUM_SHOWN)).diagonal().T

    def keeps(self, row: str, size: int) -> bool:
        """Whether this run's ArviZ file is the one to write."""
        divergences, sizes = self.options.divergence, self.work.sizes
        is_first = self.seed == self.options.seed and size == sizes[len(sizes) // 2]
        return is_first and row == (divergences or self.options.rows)[0]

    def scores(self, outputs: torch.Tensor, generated: torch.Tensor) -> dict[str, float]:
        """Of test images, from the outputs ``(draw, n, data_dim)`` and generated images."""
        proper = proper_log_likelihood(self.likelihood.log_prob(self.test, outputs))
        plug_in = plug_in_log_likelihood(self.test, outputs, self.likelihood)
        mean = self.likelihood.mean(outputs).mean(0)
        return {
            "plug_in": float(plug_in.mean()),
            "proper": float(proper.mean()),
            "squared_error": float(((mean - self.test) ** 2).mean()),
            "frechet": self.features.distance(self.test, generated),
        }


def _network(work: Preset, data_dim: int) -> AutoencoderNetwork:
    if work.hidden:
        return MLPAutoencoder(data_dim, work.hidden, work.latent_dim)
    from bayesdiv.nn.convolutional_torch import ConvAutoencoder

    return ConvAutoencoder(latent_dim=work.latent_dim)


def deterministic(experiment: Experiment, size: int) -> Outcome:
    """The autoencoder without uncertainty, trained on the same images."""
    start = time.perf_counter()
    images, network = experiment.training[:size], experiment.network
    weights = experiment.trained(images)
    outputs = network(weights, experiment.test)[None]
    mixture = LatentMixture().fit(network.encode(weights, images)[None], seed=experiment.seed)
    codes = mixture.sample(len(experiment.test), experiment.seed).codes
    generated = experiment.likelihood.mean(network.decode(weights, images.new_tensor(codes)))
    scores = experiment.scores(outputs, generated)
    seconds = time.perf_counter() - start
    return Outcome("autoencoder", experiment.seed, size, {**scores, "seconds": seconds})


def variational(experiment: Experiment, size: int) -> Outcome:
    """The variational autoencoder, by reverse KL."""
    start = time.perf_counter()
    pyro.clear_param_store()
    pyro.set_rng_seed(experiment.seed)
    images = experiment.training[:size]
    model = VariationalAutoencoder(
        experiment.network,
        like=images,
        likelihood=experiment.likelihood,
        subsample_size=64 if size > 64 else None,
        seed=experiment.seed,
    )
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-3}), objective("reverse_kl"))
    for _ in range(2 * experiment.work.num_training_steps):
        svi.step(images)
    outputs = model.outputs(experiment.test, num_draws=2 * experiment.work.num_kept)
    scores = experiment.scores(outputs, model.generate(len(experiment.test)))
    seconds = time.perf_counter() - start
    return Outcome("variational", experiment.seed, size, {**scores, "seconds": seconds})


def choose_prior(experiment: Experiment, row: str) -> tuple[WeightPrior, dict[str, float]]:
    """A row's prior, tuned where the row is a divergence, and its distances to images."""
    start = time.perf_counter()
    prior = experiment.prior(row)
    before = experiment.distance(prior, experiment.tuning)
    if row in DIVERGENCES:
        predictive = NetworkPriorPredictive(experiment.model(prior, len(experiment.tuning)))
        selected = select_prior(
            predictive,
            predictive.parameters,
            experiment.tuning,
            PriorPredictiveObjective(row, experiment.work.num_draws, DIVERGENCES[row]),
            num_steps=experiment.work.num_tuning_steps,
            learning_rate={"*.mean": 1e-3, "*.log_variance": 1e-2},
            num_inner_only=experiment.work.num_tuning_steps // 10,
            progress_bar=False,
            seed=experiment.seed,
        )
        prior = predictive.prior(selected.parameters)
    return prior, {
        "distance_before": before,
        "distance_after": experiment.distance(prior, experiment.tuning),
        "distance_held_out": experiment.distance(prior, experiment.test),
        "tuning_seconds": time.perf_counter() - start,
    }


def bayesian(experiment: Experiment, row: str, size: int, prior: WeightPrior) -> Outcome:
    """SGHMC under ``prior``, and what its draws predict."""
    start = time.perf_counter()
    work, network, likelihood = experiment.work, experiment.network, experiment.likelihood
    is_wide = row == "N(0, 1)"
    num_steps = work.num_small_steps if is_wide else work.num_sampler_steps
    images, model = experiment.training[:size], experiment.model(prior, size)
    model.check(images)
    kernel = SGHMC(
        model,
        step_size=work.small_step_size if is_wide else work.step_size,
        num_burn_in=num_steps // 4,
        num_chains=2,
        steps_per_sample=num_steps // (2 * work.num_kept),
        jit_compile=True,
        seed=experiment.seed,
    )
    mcmc = MCMC(kernel, work.num_kept, warmup_steps=work.num_kept, disable_progbar=True)
    mcmc.run(images)
    seconds = time.perf_counter() - start
    by_chain = kernel.get_samples()
    weights = {name: draws.flatten(0, 1) for name, draws in by_chain.items()}
    statistics = kernel.diagnostics()["sample_stats"]
    with torch.no_grad():
        outputs = network(weights, experiment.test)
        # A mixture for each of a few draws: codes of different draws share no coordinates.
        few = {name: draws[:: work.num_kept // 5] for name, draws in weights.items()}
        codes = network.encode(few, images)
        mixture = LatentMixture(codes="paired", num_components=10).fit(codes)
        drawn = mixture.sample(len(experiment.test), experiment.seed)
        paired = {name: value[drawn.draws] for name, value in few.items()}
        generated = likelihood.mean(network.decode(paired, images.new_tensor(drawn.codes)[:, None]))
        generated = generated[:, 0]
        reconstructed = likelihood.mean(outputs[:, :NUM_SHOWN])
        predictions = reconstructed.unflatten(0, next(iter(by_chain.values())).shape[:2])
    means = {name: statistics[name].mean().item() for name in CHECKED_STATISTICS}
    rhat = np.nanmedian(rhat_of_predictions(predictions))
    more = {"rhat": float(rhat), "spread_ratio": mixture.spread_ratio, "seconds": seconds}
    shown = {
        "test": experiment.test[:NUM_SHOWN],
        "reconstruction": reconstructed.mean(0),
        "uncertainty": reconstructed.std(0),
        "generated": generated[:NUM_SHOWN],
        "prior_predictive": experiment.predict(prior),
    }
    if experiment.keeps(row, size):
        container = predictions_to_arviz(
            predictions,
            log_likelihood=model.log_likelihood(by_chain, images),
            prior_predictive=experiment.predict(prior)[None],
            sample_stats={name: value.T for name, value in statistics.items()},
            observed_data=images,
            attrs={"row": row, "training_images": size},
        )
        container.to_netcdf(experiment.options.folder / "posterior.nc")
    scores = experiment.scores(outputs, generated)
    return Outcome(row, experiment.seed, size, {**scores, **means, **more}, _arrays(shown))


def _arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def run_row(options: Options, seed: int, row: str) -> list[Outcome]:
    """A row of the table for one seed, every size: what a process does at a time."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "kinetic temperature")
    experiment = Experiment(options, seed)
    sizes = options.sizes_of(row)
    if row == "autoencoder":
        return [deterministic(experiment, size) for size in sizes]
    if row == "variational":
        return [variational(experiment, size) for size in sizes]
    prior, distances = choose_prior(experiment, row)
    outcomes = [bayesian(experiment, row, size, prior) for size in sizes]
    return [replace(found, metrics={**found.metrics, **distances}) for found in outcomes]


def main(options: Options) -> None:
    """Every row of every seed, then table, figures and files."""
    console = Console(width=max(Console().width, 170))
    start = time.perf_counter()
    options.folder.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seed, options.seed + options.work.num_seeds)
    rows = [*options.rows, *options.divergence]
    # The longest first, so that no process is left with one at the end.
    tasks = [(seed, row) for row in sorted(rows, key=LONGEST.__contains__)[::-1] for seed in seeds]
    outcomes: list[Outcome] = []
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(options.processes, mp_context=spawn) as pool,
        Progress(console=console) as progress,
    ):
        bar = progress.add_task("rows and seeds", total=len(tasks))
        running = [pool.submit(run_row, options, seed, row) for seed, row in tasks]
        for finished in as_completed(running):
            outcomes += finished.result()
            progress.advance(bar)
    report(
        outcomes,
        rows,
        options.folder,
        {
            "preset": options.preset,
            "seeds": len(seeds),
            "tuning": options.tuning,
            "per": options.per,
            "log_variance": options.log_variance,
            "seconds": round(time.perf_counter() - start, 1),
        },
        console,
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
