"""One model, one guide, fourteen objectives: what the choice of divergence does to a posterior.

A hierarchical logistic regression of malignancy on six correlated measurements of 569 tumours is
fitted with a mean-field guide, in Pyro and again in NumPyro. Only the objective changes. NUTS says
what the posterior is.

    python examples/compare_objectives.py --preset laptop
"""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from example_options import check_names, choose_device
from rich.console import Console

from bayesdiv.data import load_breast_cancer
from bayesdiv.diagnostics import Comparison, compare
from bayesdiv.divergences import FDivergence

RESULTS = Path(__file__).parent.parent / "results" / "compare_objectives"


def le_cam(u: Any) -> Any:
    """A divergence that the package does not have: ½ ∫ (p − q)² / (p + q) (Le Cam 1986)."""
    return 0.5 * (u - 1.0) ** 2 / (u + 1.0)


OBJECTIVES: dict[str, Any] = {
    "reverse_kl": "reverse_kl",
    "softened_reverse_kl": "softened_reverse_kl",
    "le_cam (our own)": FDivergence.from_generator(le_cam, name="le_cam"),
    "jensen_shannon": "jensen_shannon",
    "squared_hellinger": "squared_hellinger",
    "total_variation": "total_variation",
    "renyi 0.5": {"divergence": "renyi", "order": 0.5},
    "iwae": "iwae",
    "tail_adaptive": "tail_adaptive",
    "jeffreys": "jeffreys",
    "alpha 0.75": {"divergence": "alpha", "order": 0.75},
    "forward_kl": "forward_kl",
    "pearson_chi2": "pearson_chi2",
    "sliced_wasserstein": "sliced_wasserstein",
}
HIGHLIGHTED = ("reverse_kl", "jensen_shannon", "forward_kl")


@dataclass(frozen=True)
class Preset:
    """How much work: steps of each fit, seeds, particles, NUTS draws of each of four chains."""

    num_steps: int
    num_seeds: int
    num_particles: int
    num_reference_draws: int
    num_warmup: int = 500


PRESETS = {
    "quick": Preset(
        num_steps=60, num_seeds=1, num_particles=16, num_reference_draws=100, num_warmup=150
    ),
    "laptop": Preset(num_steps=800, num_seeds=3, num_particles=64, num_reference_draws=2000),
    "gpu": Preset(num_steps=4000, num_seeds=5, num_particles=1024, num_reference_draws=5000),
}


@dataclass(frozen=True)
class Options:
    """Compare objectives on a hierarchical logistic regression."""

    divergence: tuple[str, ...] = ()
    """Only these rows; all by default."""
    preset: Literal["quick", "laptop", "gpu"] = "laptop"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    output: Path | None = None
    """Where results go; results/compare_objectives/<preset> by default."""

    def __post_init__(self) -> None:
        check_names("divergence", self.divergence, list(OBJECTIVES))

    @property
    def objectives(self) -> dict[str, Any]:
        """The rows asked for."""
        return {name: OBJECTIVES[name] for name in self.divergence or OBJECTIVES}

    @property
    def folder(self) -> Path:
        """Where results go."""
        return RESULTS / self.preset if self.output is None else self.output


def sample_reference(options: Options) -> dict[str, np.ndarray]:
    """The posterior by NUTS, four chains in a row: ``{site: (draw, *shape)}``."""
    import jax
    from numpyro.infer import MCMC, NUTS

    from bayesdiv.models.logistic_numpyro import hierarchical_logistic

    data = load_breast_cancer()
    preset = PRESETS[options.preset]
    mcmc = MCMC(
        NUTS(hierarchical_logistic),
        num_warmup=preset.num_warmup,
        num_samples=preset.num_reference_draws,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    key = jax.random.key(options.seed)
    mcmc.run(key, jax.numpy.asarray(data.predictors), jax.numpy.asarray(data.malignant))
    return {name: np.asarray(draws) for name, draws in mcmc.get_samples().items()}


def compare_in_pyro(options: Options, reference: dict[str, np.ndarray]) -> Comparison:
    """Every objective in Pyro."""
    import torch
    from pyro.infer.autoguide import AutoNormal

    from bayesdiv.models.logistic_pyro import hierarchical_logistic

    torch.set_num_threads(1)
    data = load_breast_cancer()
    with torch.device(choose_device(options.device)):
        return _compare(
            hierarchical_logistic,
            AutoNormal,
            options,
            torch.tensor(data.predictors, dtype=torch.float32),
            torch.tensor(data.malignant, dtype=torch.float32),
            reference=reference,
            backend="pyro",
        )


def compare_in_numpyro(options: Options, reference: dict[str, np.ndarray]) -> Comparison:
    """Every objective again, in NumPyro."""
    import jax.numpy as jnp
    from numpyro.infer.autoguide import AutoNormal

    from bayesdiv.models.logistic_numpyro import hierarchical_logistic

    data = load_breast_cancer()
    return _compare(
        hierarchical_logistic,
        AutoNormal,
        options,
        jnp.asarray(data.predictors),
        jnp.asarray(data.malignant),
        reference=reference,
        backend="numpyro",
    )


def _compare(
    model: Any, guide: Any, options: Options, *data: Any, reference: Any, backend: str
) -> Comparison:
    preset = PRESETS[options.preset]
    return compare(
        model,
        guide,
        options.objectives,
        *data,
        reference=reference,
        num_steps=preset.num_steps,
        num_seeds=preset.num_seeds,
        num_particles=preset.num_particles,
        learning_rate=0.05,
        seed=options.seed,
        backend=backend,
        progress_bar=backend == "pyro",
    )


def numpyro_rows(options: Options, reference: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The rows of NumPyro's comparison, which travel between processes."""
    return compare_in_numpyro(options, reference).rows


def main(options: Options) -> None:
    """Reference, both comparisons side by side, then table, figure and files."""
    console = Console(width=max(Console().width, 160))
    start = time.perf_counter()
    with console.status("NUTS, the reference"):
        reference = sample_reference(options)
    # The hosts are independent: two processes keep two cores busy.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        other = pool.submit(numpyro_rows, options, reference)
        comparison = compare_in_pyro(options, reference)
        with console.status("NumPyro, the same again"):
            rows = {"pyro": comparison.rows, "numpyro": other.result()}
    report(options, comparison, rows, time.perf_counter() - start, console)


def report(
    options: Options,
    comparison: Comparison,
    rows: dict[str, list[dict[str, Any]]],
    seconds: float,
    console: Console,
) -> None:
    """Write metrics.json, the figure and the ArviZ files; print the tables."""
    options.folder.mkdir(parents=True, exist_ok=True)
    metrics = {
        "preset": options.preset,
        "seeds": PRESETS[options.preset].num_seeds,
        "seconds": round(seconds, 1),
        "rows": rows,
    }
    text = json.dumps(metrics, indent=1, default=_plain, allow_nan=True)
    (options.folder / "metrics.json").write_text(text + "\n")
    console.print(comparison.table())
    console.print(host_table(rows))
    shown = [name for name in HIGHLIGHTED if name in comparison.labels] or comparison.labels[:1]
    figure = comparison.plot(highlight=shown)
    figure.savefig(options.folder / "posteriors.png", dpi=120)
    comparison.to_arviz(shown[-1]).to_netcdf(options.folder / "posterior.nc")
    console.print(f"{seconds:.0f} s; files in {options.folder}")


def host_table(rows: dict[str, list[dict[str, Any]]]) -> Any:
    """Ratio of sds to NUTS in both hosts."""
    from rich.table import Table

    table = Table(title="sd of the fit / sd of NUTS, mean over sites ± spread over seeds")
    for heading in ("objective", "Pyro", "NumPyro"):
        table.add_column(heading)
    for ours, theirs in zip(rows["pyro"], rows["numpyro"], strict=True):
        table.add_row(
            ours["objective"],
            *(f"{row['sd_ratio']:.3f} ± {row['sd_ratio_spread']:.3f}" for row in (ours, theirs)),
        )
    return table


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


if __name__ == "__main__":
    main(tyro.cli(Options))
