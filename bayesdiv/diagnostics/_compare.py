"""The same model and guide, fitted by one objective after another."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bayesdiv.diagnostics._comparison import Comparison
from bayesdiv.diagnostics._container import posterior_draws
from bayesdiv.diagnostics._fits import Fit, describe_fit
from bayesdiv.diagnostics._hosts import adapter, check_host, find_host


def compare(
    model: Callable,
    guide: Callable,
    objectives: Sequence[Any] | Mapping[str, Any],
    *args: Any,
    reference: Any = None,
    variables: Sequence[str] | None = None,
    num_steps: int = 2000,
    num_seeds: int = 3,
    warmup: int | None = None,
    num_particles: int | None = None,
    learning_rate: float = 0.01,
    optimizer: Any = None,
    num_draws: int = 1000,
    seed: int = 0,
    backend: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    progress_bar: bool = True,
) -> Comparison:
    """Fit ``model`` by each objective, nothing else changed, and report how good each posterior is.

    Reported for each, as the mean and the spread over seeds: the importance-weighted evidence,
    Pareto k and effective sample size of ``num_draws`` draws, seconds of fitting (compilation
    included) and, against a reference, largest error of a mean in posterior sd, geometric mean of
    the ratios of sds, mean coverage of the central 50 and 90 % intervals, and sliced Wasserstein
    distance (:class:`PosteriorAccuracy`). A fit that fails is a row with its error.

    Parameters
    ----------
    model
        A Pyro or NumPyro model.
    guide
        What makes a guide of a model, such as the class ``AutoNormal``; each fit gets a fresh one.
        For a hand-written Pyro guide pass ``lambda model: guide``.
    objectives
        Names, divergences or losses of the host; a mapping gives labels. A mapping as an entry has
        the arguments of ``objective``: ``{"divergence": "alpha", "order": 0.5}``.
    args, model_kwargs
        The model's arguments.
    reference
        Draws of the posterior: an ArviZ object, an MCMC object or a mapping of arrays.
    variables
        Which variables to compare with the reference; by default the model's latent sites that the
        reference has.
    num_steps, learning_rate, optimizer
        Steps of each fit, by Adam with a step size that falls to a hundredth, or by ``optimizer``
        of the host.
    num_seeds, seed
        How many fits of each objective; the first has seed ``seed``.
    warmup
        Steps of reverse KL first, for all but reverse KL itself and losses given as objects; by
        default a quarter of ``num_steps``.
    num_particles
        By default each objective's own.
    num_draws
        Draws of each fitted guide.
    backend
        "pyro" or "numpyro" where neither ``guide`` nor ``objectives`` tell.
    progress_bar
        Whether to show progress.

    Raises
    ------
    TypeError
        ``guide`` is an instance of a guide rather than a factory.
    ValueError
        No objectives, a doubled label, or a host that cannot be told.
    """
    for name, value, least in (
        ("num_steps", num_steps, 1),
        ("num_seeds", num_seeds, 1),
        ("num_draws", num_draws, 2),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
    entries = name_objectives(objectives)
    host = _find_host(backend, guide, model, entries)
    kwargs = dict(model_kwargs or {})
    draws = None if reference is None else posterior_draws(reference, "reference")
    runner = adapter(host, "_compare").Runner(
        model,
        guide,
        args,
        kwargs,
        num_steps=num_steps,
        learning_rate=learning_rate,
        optimizer=optimizer,
        num_draws=num_draws,
    )
    defaults = {"warmup": num_steps // 4 if warmup is None else warmup}
    if num_particles is not None:
        defaults["num_particles"] = num_particles
    fits: dict[str, list[Fit]] = {}
    with _Progress(len(entries) * num_seeds * num_steps, enabled=progress_bar) as progress:
        for index, (label, (divergence, given)) in enumerate(entries.items()):
            arguments = _arguments(divergence, defaults, given)

            def make_loss(divergence: Any = divergence, arguments: dict = arguments) -> Any:
                return runner.make_loss(divergence, arguments)

            fits[label] = []
            for number in range(num_seeds):
                position = (index * num_seeds + number) * num_steps
                progress.start(f"{label} ({number + 1} of {num_seeds})", position)
                fit = _fit(runner, make_loss, seed + number, progress.advance)
                if fit.error is None:
                    fit.statistics = describe_fit(fit, draws, _shared(variables, fit, draws))
                fits[label].append(fit)
        progress.start("done", len(entries) * num_seeds * num_steps)
    return Comparison(fits, draws, host)


def name_objectives(objectives: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """``{label: (divergence, arguments)}`` of the entries that :func:`compare` takes."""
    if isinstance(objectives, str) or not isinstance(objectives, Mapping | Sequence):
        raise TypeError(
            "objectives must be a list or a mapping of names, divergences or losses, got "
            f"{objectives!r}."
        )
    pairs = (
        list(objectives.items())
        if isinstance(objectives, Mapping)
        else [(None, entry) for entry in objectives]
    )
    if not pairs:
        raise ValueError("objectives must have at least one entry, got none.")
    named: dict[str, tuple[Any, dict[str, Any]]] = {}
    for given, entry in pairs:
        arguments = dict(entry) if isinstance(entry, Mapping) else {"divergence": entry}
        if "divergence" not in arguments:
            raise ValueError(
                "an objective given by its arguments must have 'divergence' among them, got "
                f"{sorted(arguments)}."
            )
        divergence = arguments.pop("divergence")
        label = _label(divergence, arguments) if given is None else str(given)
        if label in named:
            raise ValueError(f"objectives must have different labels, got {label!r} twice.")
        named[label] = divergence, arguments
    return named


def _label(divergence: Any, arguments: Mapping[str, Any]) -> str:
    settings = getattr(divergence, "settings", None)
    named = getattr(settings, "objective", getattr(settings, "divergence", divergence))
    name = named if isinstance(named, str) else repr(named)
    details = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"{name} ({details})" if details else name


def _arguments(
    divergence: Any, defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    from bayesdiv.divergences import ReverseKL

    arguments = {**defaults, **given}
    is_reverse_kl = isinstance(divergence, ReverseKL) or (
        isinstance(divergence, str) and divergence == "reverse_kl"
    )
    if is_reverse_kl and "warmup" not in given:
        del arguments["warmup"]
    return arguments


def _find_host(backend: Any, guide: Any, model: Any, entries: Mapping[str, Any]) -> str:
    if backend is not None:
        check_host(backend)
    if not callable(guide) or _is_guide(guide):
        raise TypeError(
            "guide must be what makes a guide of the model, such as the class AutoNormal or "
            f"`lambda model: my_guide`, got {type(guide).__name__}: every fit needs a fresh one."
        )
    host = backend or find_host(guide, model, *(divergence for divergence, _ in entries.values()))
    if host is None:
        raise ValueError(
            "backend must be given, 'pyro' or 'numpyro', where the guide is a plain function, got "
            "None."
        )
    return host


def _is_guide(guide: Any) -> bool:
    return not isinstance(guide, type) and any(
        parent.__name__ == "AutoGuide" for parent in type(guide).__mro__
    )


def _shared(
    variables: Sequence[str] | None, fit: Fit, reference: Mapping[str, Any] | None
) -> list[str] | None:
    """Latent sites only: deterministic ones would count the same coordinates twice."""
    if variables is not None or reference is None:
        return None if variables is None else list(variables)
    assert fit.groups is not None
    derived = set(fit.groups.deterministic)
    return [name for name in fit.draws if name in reference and name not in derived]


def _fit(runner: Any, make_loss: Callable, seed: int, report: Callable[[int], None]) -> Fit:
    try:
        return runner.fit(make_loss, seed, report)
    # Whatever went wrong belongs into the table, beside the objectives that worked.
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        name = type(error).__name__
        return Fit(None, [], error=f"{name}: {lines[0]}", traceback=traceback.format_exc())


class _Progress:
    """One bar over all fits."""

    def __init__(self, total: int, *, enabled: bool) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description:<40}"), BarColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, disable=not enabled)
        self._task = self._bars.add_task("", total=total)

    def __enter__(self) -> _Progress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def start(self, title: str, position: int) -> None:
        self._bars.update(self._task, description=title, completed=position)

    def advance(self, steps: int) -> None:
        self._bars.advance(self._task, steps)
