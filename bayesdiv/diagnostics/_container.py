"""Both generations of ArviZ behind two functions: build a container, read a posterior from one.

ArviZ 0.x keeps groups in an ``InferenceData``, 1.x (and arviz-base 0.8 on) in an
``xarray.DataTree``. The datasets are made here, so both hold the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from bayesdiv.diagnostics._groups import Groups, as_numpy

SAMPLE_DIMS = ("chain", "draw")


def uses_inference_data() -> bool:
    """Whether the installed ArviZ is of the 0.x generation."""
    try:
        return int(metadata.version("arviz").split(".")[0]) < 1
    except metadata.PackageNotFoundError:
        return False


def build_container(
    groups: Groups,
    *,
    dims: Mapping[str, list[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> Any:
    """An ``InferenceData`` or ``DataTree``, whichever the installed ArviZ uses.

    Parameters
    ----------
    groups
        What it shall hold.
    dims
        Names of the axes after ``(chain, draw)`` by variable; they win over those in ``groups``.
    coords
        Labels along named axes; integers elsewhere.

    Raises
    ------
    ValueError
        If ``dims`` has more names than a variable has axes, or ``coords`` has another length.
    """
    import xarray

    wanted = {name: list(names) for name, names in groups.dims.items()}
    named = _consistent_dims(groups, wanted) | {name: list(d) for name, d in (dims or {}).items()}
    datasets: dict[str, Any] = {}
    for group, variables in groups.variables.items():
        if not variables:
            continue
        lead = () if "data" in group else SAMPLE_DIMS
        arrays, labels = {}, {}
        for name, value in variables.items():
            axes = _axes(name, value.ndim - len(lead), named.get(name, []), group)
            arrays[name] = ((*lead, *axes), value)
            for axis, size in zip((*lead, *axes), value.shape, strict=True):
                given = (coords or {}).get(axis)
                if given is not None and len(given) != size:
                    raise ValueError(
                        f"coords[{axis!r}] must have {size} labels, as {group}[{name!r}] has "
                        f"entries there, got {len(given)}."
                    )
                labels[axis] = np.arange(size) if given is None else np.asarray(given)
        attrs = groups.attrs if group == "posterior" else {}
        datasets[group] = xarray.Dataset(arrays, coords=labels, attrs=attrs)
    if not uses_inference_data():
        tree = xarray.DataTree.from_dict({f"/{name}": data for name, data in datasets.items()})
        tree.attrs.update(groups.attrs)
        return tree
    import arviz

    return arviz.InferenceData(attrs=dict(groups.attrs), **datasets)


def _axes(name: str, ndim: int, given: list[str | None], group: str) -> list[str]:
    """Names of all axes; ArviZ's default where none was given."""
    if len(given) > ndim and "log_likelihood" not in group:
        raise ValueError(
            f"dims[{name!r}] must name at most {ndim} axes of {group}, got {list(given)}."
        )
    given = [*given[:ndim], *[None] * (ndim - len(given))]
    return [axis or f"{name}_dim_{index}" for index, axis in enumerate(given)]


def _consistent_dims(groups: Groups, dims: dict[str, list]) -> dict[str, list[str | None]]:
    """``dims`` without the names of plates that two variables give different sizes.

    Plates may be subsampled, or share a name with a site; ArviZ then needs names of its own.
    """
    sizes: dict[str, set[int]] = {}
    for group, variables in groups.variables.items():
        lead = 0 if "data" in group else len(SAMPLE_DIMS)
        for name, value in variables.items():
            for axis, size in zip(dims.get(name, []), value.shape[lead:], strict=False):
                sizes.setdefault(axis, set()).add(size)
    taken = {name for variables in groups.variables.values() for name in variables}
    clashing = {axis for axis, found in sizes.items() if len(found) > 1} | taken | {*SAMPLE_DIMS}
    return {
        name: [None if axis in clashing else axis for axis in axes] for name, axes in dims.items()
    }


def posterior_draws(data: Any, name: str = "data") -> dict[str, np.ndarray]:
    """Draws ``{variable: (draws, *shape)}``, chains joined.

    ``data`` is an ArviZ container of either generation, an ``xarray.Dataset`` with dims chain and
    draw, an MCMC object of Pyro or NumPyro, or a mapping of arrays whose first axis counts the
    draws.

    Raises
    ------
    ValueError
        An empty or inconsistent mapping, or a container without posterior.
    TypeError
        Anything else.
    """
    if hasattr(data, "get_samples"):
        width = getattr(getattr(data, "kernel", None), "num_chains", 1)
        data = data.get_samples()
        if width > 1:
            # The kernel moves a batch of chains, on the axis after the draws.
            data = {key: as_numpy(value) for key, value in data.items()}
            data = {key: value.reshape(-1, *value.shape[2:]) for key, value in data.items()}
    if hasattr(data, "groups"):
        if "posterior" in data:
            data = data["posterior"]
        elif "draw" not in getattr(data, "dims", ()):
            raise ValueError(f"{name} must have a posterior group, got {list(data)}.")
    if hasattr(data, "data_vars"):
        draws = {}
        for key in data.data_vars:
            values = data[key].transpose("chain", "draw", ...).values
            draws[str(key)] = values.reshape(-1, *values.shape[2:])
        return draws
    if not isinstance(data, Mapping):
        raise TypeError(
            f"{name} must be an ArviZ container with a posterior, an xarray.Dataset, an MCMC "
            f"object or a mapping of draws, got {type(data).__name__}."
        )
    draws = {key: as_numpy(value) for key, value in data.items()}
    counts = {value.shape[:1] for value in draws.values()}
    if len(counts) != 1 or counts == {()}:
        shapes = {key: value.shape for key, value in draws.items()}
        raise ValueError(
            f"{name} must map variables to arrays with one common number of draws in front, got "
            f"shapes {shapes}."
        )
    return draws
