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
from autoencoder_experiment import NUM_SHOWN, PRESETS, Experiment, Preset
from autoencoder_report import Outcome, report
from example_options import check_names
from pyro.infer import MCMC, SVI
from pyro.infer.autoguide.initialization import init_to_sample
from rich.console import Console
from rich.progress import Progress

from bayesdiv.diagnostics import (
    predictions_to_arviz,
    rhat_of_predictions,
)
from bayesdiv.inference.latent_density import LatentMixture
from bayesdiv.inference.prior_selection import (
    NetworkPriorPredictive,
    PriorPredictiveObjective,
)
from bayesdiv.inference.prior_selection_torch import select_prior
from bayesdiv.inference.sghmc_pyro import SGHMC
from bayesdiv.models.variational_autoencoder_pyro import VariationalAutoencoder
from bayesdiv.nn import WeightPrior
from bayesdiv.pyro import objective

RESULTS = Path(__file__).parent.parent / "results" / "bayesian_autoencoder"

# What each divergence needs to know of images of about a hundred pixels; the rest is its default.
DIVERGENCES: dict[str, dict[str, Any]] = {
    "distributional_sliced_wasserstein": {"num_projections": 200, "num_steps": 10},
    "sliced_wasserstein": {"num_projections": 200},
    "max_sliced_wasserstein": {"num_steps": 10},
    "sinkhorn": {"epsilon": 1.0},
    "energy_distance": {},
    "mmd": {},
    "jensen_shannon": {},
}
LONGEST = ("N(0, 1)", "distributional_sliced_wasserstein")
CHECKED_STATISTICS = ("kinetic_temperature", "clamped_fraction")
# The published baseline matches sigmoids to pixels, though the likelihood's mean is another; the
# second row matches means.
DETERMINISTIC = {"autoencoder": "sigmoid", "autoencoder (mean)": "mean"}
FIXED = (*DETERMINISTIC, "variational", "N(0, 1)", "N(0, 1/fan-in)", "centred")


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
            check_names(name, getattr(self, name), allowed)

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

    def experiment(self, seed: int) -> Experiment:
        """Data, network and scores of one seed."""
        return Experiment(
            self.work,
            seed,
            data=self.data or ("mnist" if self.preset == "gpu" else "digits"),
            tuning=self.tuning,
            device=self.device,
            per=self.per,
            log_variance=self.log_variance,
        )

    def keeps(self, row: str, seed: int, size: int) -> bool:
        """Whether that run's ArviZ file is the one to write."""
        sizes = self.work.sizes
        is_first = seed == self.seed and size == sizes[len(sizes) // 2]
        return is_first and row == (self.divergence or self.rows)[0]

    def sizes_of(self, row: str) -> tuple[int, ...]:
        """Every size for the rows of the comparison, the middle one for further divergences."""
        sizes = self.work.sizes
        return sizes[len(sizes) // 2 :][:1] if row in self.divergence[1:] else sizes


def deterministic(experiment: Experiment, row: str, size: int) -> Outcome:
    """The autoencoder without uncertainty, trained on the same images."""
    start = time.perf_counter()
    images, network = experiment.training[:size], experiment.network
    weights = experiment.trained(images, DETERMINISTIC[row])
    outputs = network(weights, experiment.test)[None]
    mixture = LatentMixture().fit(network.encode(weights, images)[None], seed=experiment.seed)
    codes = mixture.sample(len(experiment.test), experiment.seed).codes
    generated = experiment.likelihood.mean(network.decode(weights, images.new_tensor(codes)))
    scores = experiment.scores(outputs, generated)
    seconds = time.perf_counter() - start
    return Outcome(row, experiment.seed, size, {**scores, "seconds": seconds})


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
    before, own = experiment.distance(prior, experiment.tuning), {}
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
        loss = selected.history["loss"][experiment.work.num_tuning_steps // 10 :]
        few = max(1, len(loss) // 20)
        own = {"own_before": float(loss[:few].mean()), "own_after": float(loss[-few:].mean())}
    return prior, {
        **own,
        "distance_before": before,
        "distance_after": experiment.distance(prior, experiment.tuning),
        "distance_held_out": experiment.distance(prior, experiment.test),
        "tuning_seconds": time.perf_counter() - start,
    }


def bayesian(
    experiment: Experiment, row: str, size: int, prior: WeightPrior, file: Path | None
) -> Outcome:
    """SGHMC under ``prior``, and what its draws predict; an ArviZ file of it if asked for."""
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
        # A uniform start would leave the scales inflated by gradients far outside the prior.
        init_strategy=init_to_sample,
        jit_compile=True,
        seed=experiment.seed,
    )
    mcmc = MCMC(kernel, work.num_kept, warmup_steps=work.num_kept, disable_progbar=True)
    mcmc.run(images)
    seconds = time.perf_counter() - start
    by_chain = kernel.get_samples(group_by_chain=True)
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
    if file is not None:
        container = predictions_to_arviz(
            predictions,
            log_likelihood=model.log_likelihood(by_chain, images),
            prior_predictive=experiment.predict(prior)[None],
            sample_stats={name: value.T for name, value in statistics.items()},
            observed_data=images,
            attrs={"row": row, "training_images": size},
        )
        container.to_netcdf(file)
    scores = experiment.scores(outputs, generated)
    return Outcome(row, experiment.seed, size, {**scores, **means, **more}, _arrays(shown))


def _arrays(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def run_row(options: Options, seed: int, row: str) -> list[Outcome]:
    """A row of the table for one seed, every size: what a process does at a time."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "kinetic temperature")
    experiment = options.experiment(seed)
    sizes = options.sizes_of(row)
    if row in DETERMINISTIC:
        return [deterministic(experiment, row, size) for size in sizes]
    if row == "variational":
        return [variational(experiment, size) for size in sizes]
    prior, distances = choose_prior(experiment, row)
    outcomes = []
    for size in sizes:
        file = options.folder / "posterior.nc" if options.keeps(row, seed, size) else None
        outcomes.append(bayesian(experiment, row, size, prior, file))
    return [replace(found, metrics={**found.metrics, **distances}) for found in outcomes]


def main(options: Options) -> None:
    """Every row of every seed, then table, figures and files."""
    console = Console(width=max(Console().width, 210))
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
