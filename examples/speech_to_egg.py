"""Draw the electroglottogram from speech: adversarial variational inference with an implicit prior.

The prior of the codes is the law that an autoencoder of EGG gives them; it can be drawn from and
has no density. What does matching it buy, under which divergence, beside plain regression? Every
instant of glottal closure comes with a standard deviation.

    python examples/speech_to_egg.py --preset laptop
    python examples/speech_to_egg.py --divergence jeffreys wasserstein --conditions shift
    python examples/speech_to_egg.py --wav recording.wav
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from example_options import check_names, choose_device
from processes import cpu_seconds, executor
from rich.console import Console
from rich.progress import Progress
from speech_egg_experiment import Experiment, Outcome
from speech_egg_figures import draw_recording
from speech_egg_presets import (
    PRESETS,
    STOCHASTIC,
    ZERO_FREQUENCY,
    Preset,
    is_learnable,
    variants_of,
)
from speech_egg_problem import CONDITIONS, RATE, draw_with_spread
from speech_egg_report import report, write_wav

from bayesdiv.data.voice import read_speech
from bayesdiv.divergences import list_divergences

RESULTS = Path(__file__).parent.parent / "results" / "speech_to_egg"


@dataclass(frozen=True)
class Options:
    """Learn to draw EGG from simulated speech, or draw that of a recording."""

    divergence: tuple[str, ...] = (
        "softened_reverse_kl",
        "reverse_kl",
        "jensen_shannon",
        "squared_hellinger",
        "forward_kl",
        "sliced_wasserstein",
        "mmd",
    )
    """Of codes and prior: f-divergences through a critic, or divergences of two samples."""
    preset: Literal["quick", "laptop", "gpu"] = "laptop"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    num_seeds: int | None = None
    """Seeds from ``seed`` on; the preset's number by default."""
    conditions: tuple[str, ...] = ()
    """clean, noise, shift; the preset's by default."""
    wav: Path | None = None
    """Draw the EGG of this speech instead; beside it come WAV, table of instants and figure."""
    processes: int = 2
    """0 runs everything in this one."""
    output: Path | None = None
    """Where results go; results/speech_to_egg/<preset> by default."""

    def __post_init__(self) -> None:
        known = [name for name in list_divergences() if is_learnable(name)]
        for name, allowed in (("divergence", known), ("conditions", list(CONDITIONS))):
            check_names(name, getattr(self, name), allowed)

    @property
    def work(self) -> Preset:
        """The preset, with the seeds and conditions asked for."""
        preset = PRESETS[self.preset]
        num_seeds = preset.num_seeds if self.num_seeds is None else self.num_seeds
        return replace(preset, num_seeds=num_seeds, conditions=self.conditions or preset.conditions)

    @property
    def folder(self) -> Path:
        """Where results go."""
        return RESULTS / self.preset if self.output is None else self.output

    @property
    def hardware(self) -> str:
        """cpu or cuda."""
        return choose_device(self.device)


def run(
    options: Options, condition: str, seed: int, rows: Sequence[str]
) -> tuple[list[Outcome], dict[str, Any]]:
    """A process's work at a time: some variants of one condition and seed."""
    torch.set_num_threads(1)
    experiment = Experiment(options.work, condition, seed, options.hardware)
    scores = {"condition": condition, "seed": seed, **experiment.autoencoder_scores()}
    return [experiment.run(row) for row in rows], scores


def learn(options: Options, console: Console) -> None:
    """Every condition, seed and variant, then tables, figures and files."""
    start = time.perf_counter()
    seeds = range(options.seed, options.seed + options.work.num_seeds)
    tasks = [
        (condition, seed, [*variants_of(condition, options.divergence), ZERO_FREQUENCY])
        for condition in options.work.conditions
        for seed in seeds
    ]
    outcomes: list[Outcome] = []
    autoencoders: list[dict[str, Any]] = []
    with executor(options.processes) as pool, Progress(console=console) as progress:
        bar = progress.add_task("conditions and seeds", total=len(tasks))
        for finished in as_completed([pool.submit(run, options, *task) for task in tasks]):
            found, scores = finished.result()
            outcomes += found
            autoencoders.append(scores)
            progress.advance(bar)
    order = list(CONDITIONS)
    outcomes.sort(key=lambda each: (order.index(each.condition), each.seed))
    autoencoders.sort(key=lambda each: (order.index(each["condition"]), each["seed"]))
    device = options.hardware
    settings = {
        "preset": options.preset,
        "seeds": options.work.num_seeds,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": cpu_seconds(),
    }
    report(outcomes, autoencoders, options.folder, settings, console)


def draw_recorded(options: Options, path: Path, console: Console) -> None:
    """The EGG of a recording, by a network that has learnt from simulated voices only."""
    speech = read_speech(path, RATE)
    work = options.work
    experiment = Experiment(work, "recordings", options.seed, options.hardware)
    outcome = experiment.run(STOCHASTIC)
    network, _ = experiment.variant(STOCHASTIC)
    assert outcome.state is not None
    network.load_state_dict(outcome.state)
    network.eval()
    drawn = draw_with_spread(
        network.draw,
        speech,
        stride=work.test_stride,
        noises=experiment.noises(network),
        context=work.context,
        device=options.hardware,
    )
    assert drawn.deviation is not None
    # How far deviations fall short on speakers that the network has not heard.
    deviation = outcome.final["timing_scale"] * drawn.deviation
    stem = options.folder / path.stem
    write_wav(stem.with_name(f"{path.stem}_egg.wav"), drawn.egg)
    table = np.column_stack([drawn.closures / RATE, deviation / RATE * 1000.0])
    np.savetxt(
        stem.with_name(f"{path.stem}_instants.csv"),
        table,
        delimiter=",",
        fmt="%.6f",
        header="closure_seconds,standard_deviation_ms",
        comments="",
    )
    draw_recording(
        speech, drawn.egg, drawn.closures, deviation, stem.with_name(f"{path.stem}_egg.png")
    )
    periods = np.diff(drawn.closures) / RATE
    voiced = periods[(periods > 0.002) & (periods < 0.05)]
    pitch = 1.0 / float(np.median(voiced)) if len(voiced) else float("nan")
    console.print(
        f"{path.name}: {len(speech) / RATE:.2f} s, {len(drawn.closures)} closures, median "
        f"frequency {pitch:.0f} Hz, median standard deviation "
        f"{np.nanmedian(deviation) / RATE * 1000.0:.2f} ms; files in {options.folder}"
    )


def main(options: Options) -> None:
    """Learn and compare, or draw one recording."""
    console = Console(width=max(Console().width, 190))
    # Small arrays gain nothing from more, and lose where cores are shared.
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.wav is not None:
        draw_recorded(options, options.wav, console)
    else:
        learn(options, console)


if __name__ == "__main__":
    main(tyro.cli(Options))
