"""Figures of the example of score distillation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distillation_experiment import Outcome
from distillation_mixtures import line_teacher, modes_teacher, plane_teacher
from matplotlib.figure import Figure

from bayesdiv.models.analytic_diffusion import gaussian_diffusion

_COLUMNS = 20
_CURVES = (("frechet", "Fréchet distance"), ("class_kl", "KL of class histograms, nats"))


def draw_line(outcomes: Sequence[Outcome], path: Path) -> None:
    """Densities of the mixture and of every student of one seed, a panel a start."""
    starts = list(dict.fromkeys(each.row.split(" from ")[1] for each in outcomes))
    figure = Figure(figsize=(5.0 * len(starts), 3.2), layout="constrained")
    grid = torch.linspace(-5.0, 6.0, 600, dtype=torch.float64)[:, None]
    for axis, start in zip(figure.subplots(1, len(starts), squeeze=False)[0], starts, strict=True):
        axis.fill_between(
            grid[:, 0], line_teacher().log_prob(grid).exp(), color="0.85", label="mixture"
        )
        for each in outcomes:
            divergence, mine = each.row.split(" from ")
            if mine == start and each.seed == outcomes[0].seed:
                location, scale = (
                    torch.tensor([each.final[f"parameter_{k}"]], dtype=torch.float64)
                    for k in (0, 1)
                )
                law = gaussian_diffusion(location, scale)
                axis.plot(grid[:, 0], law.log_prob(grid).exp(), label=divergence.replace("_", " "))
        axis.set_title(f"start: {start}")
        axis.set_ylim(0.0, 0.85)
        axis.set_xlabel("x")
    figure.axes[0].set_ylabel("density")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=90)


def draw_plane(outcomes: Sequence[Outcome], path: Path) -> None:
    """Contours of the mixture, and each student's two-standard-deviation ellipses, all seeds."""
    rows = list(dict.fromkeys(each.row for each in outcomes))
    figure = Figure(figsize=(2.6 * len(rows), 2.8), layout="constrained")
    side = torch.linspace(-4.0, 4.0, 120, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    density = plane_teacher().log_prob(points).exp().reshape(120, 120).T
    angles = np.linspace(0.0, 2.0 * np.pi, 100)
    circle = 2.0 * np.stack([np.cos(angles), np.sin(angles)])
    for axis, row in zip(figure.subplots(1, len(rows), squeeze=False)[0], rows, strict=True):
        axis.contour(side, side, density, levels=6, colors="0.6", linewidths=0.8)
        for each in outcomes:
            if each.row == row:
                values = np.array([each.final[f"parameter_{k}"] for k in range(6)])
                ellipse = values[:2, None] + values[2:].reshape(2, 2) @ circle
                axis.plot(*ellipse, color="C3", linewidth=1.2)
        axis.set_title(row.replace("_", " "), fontsize=9)
        axis.set_aspect("equal")
    figure.savefig(path, dpi=90)


def draw_modes(outcomes: Sequence[Outcome], path: Path) -> None:
    """Samples of each student of one seed, over the centres of the modes."""
    shown = [each for each in outcomes if each.seed == outcomes[0].seed]
    figure = Figure(figsize=(2.6 * len(shown), 2.8), layout="constrained")
    centres = modes_teacher("cpu").means
    for axis, each in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        axis.scatter(*centres.T, s=40, facecolors="none", edgecolors="0.6")
        samples: Any = each.samples
        axis.scatter(*samples.T, s=2, color="C3")
        axis.set_title(f"{each.row.replace('_', ' ')}: {each.final['modes']:.0f}", fontsize=9)
        axis.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    figure.savefig(path, dpi=90)


def draw_images(outcomes: Sequence[Outcome], path: Path) -> None:
    """Two lines of images a row of the table, those of one seed."""
    shown = [each for each in outcomes if each.seed == outcomes[0].seed]
    figure = Figure(figsize=(8.5, 0.95 * len(shown)), layout="constrained")
    for axis, each in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        # A border, or neighbours run into each other.
        images: Any = np.pad(each.images, ((0, 0), (1, 1), (1, 1)))
        lines = [images[start : start + _COLUMNS] for start in (0, _COLUMNS)]
        strips = [np.concatenate(list(line), axis=1) for line in lines if len(line) == _COLUMNS]
        axis.imshow(np.concatenate(strips), cmap="gray", vmin=-1.0, vmax=1.0)
        axis.set_title(each.row.replace("_", " "), fontsize=8, loc="left", pad=2)
        axis.set_axis_off()
    figure.savefig(path, dpi=90)


def draw_curves(outcomes: Sequence[Outcome], path: Path) -> None:
    """By the student's step: mean and spread over seeds of each divergence; its weights' ESS."""
    figure = Figure(figsize=(11.0, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for index, row in enumerate(dict.fromkeys(each.row for each in outcomes)):
        runs = [each for each in outcomes if each.row == row]
        for axis, (metric, label) in zip(axes, _CURVES, strict=False):
            values = np.array([run.curves[metric] for run in runs])
            mean, spread = values.mean(0), values.std(0)
            axis.plot(runs[0].steps, mean, label=row.replace("_", " "), color=f"C{index}")
            axis.fill_between(
                runs[0].steps, mean - spread, mean + spread, color=f"C{index}", alpha=0.2
            )
            axis.set(xlabel="step of the student", ylabel=label, yscale="log")
        found: Any = runs[0].report
        middle = np.sqrt(found.edges[1:] * found.edges[:-1])
        axes[2].semilogx(middle, found.ess_share, "o-", color=f"C{index}")
    axes[2].set(xlabel="noise level", ylabel="ESS of the weights, share of rows", ylim=(0.0, 1.05))
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=90)
