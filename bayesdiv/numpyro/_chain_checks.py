"""Warnings about chains that compiled code could not give."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from bayesdiv.diagnostics._chain_checks import chain_problems
from bayesdiv.numpyro._stochastic_gradient import StochasticGradientKernel


def check_chains(mcmc: Any) -> list[str]:
    """Warn about what went wrong in a run of a stochastic-gradient kernel.

    :func:`bayesdiv.diagnostics.to_arviz` does the same.

    Parameters
    ----------
    mcmc
        A ``numpyro.infer.MCMC`` that has run :class:`StochasticGradientKernel`, or SGHMC or SGLD.

    Returns
    -------
    list of str
        One sentence a problem; empty if there is none.

    Raises
    ------
    TypeError
        If the kernel is another.
    ValueError
        If ``mcmc`` has not run.

    Warns
    -----
    UserWarning
        For each problem: a chain stopped at a potential or gradient that was not finite (with the
        gradient step); more than 5 % of the coordinates had no injected noise; the mean kinetic
        temperature is outside [0.8, 1.25] by more than twice its standard error.
    """
    if not isinstance(getattr(mcmc, "sampler", None), StochasticGradientKernel):
        name = type(getattr(mcmc, "sampler", mcmc)).__name__
        raise TypeError(f"mcmc must run a stochastic-gradient kernel such as SGHMC, got {name}.")
    if mcmc.last_state is None:
        raise ValueError("mcmc has not run yet; call mcmc.run first.")
    fields = mcmc.get_extra_fields(group_by_chain=True)
    failed = np.atleast_1d(np.asarray(mcmc.last_state.failed_step))
    problems = [
        f"chain {chain} stopped at gradient step {step}, where its potential or gradient was not "
        "finite, and repeats its last good state from there (diverging); lower step_size, or look "
        "for values that the model's distributions do not support."
        for chain, step in enumerate(failed)
        if step >= 0
    ]
    # What a stopped chain repeats says nothing more.
    running = {name: np.asarray(value)[failed < 0] for name, value in fields.items()}
    if (failed < 0).any():
        problems += chain_problems(running)
    for problem in problems:
        warnings.warn(problem, UserWarning, stacklevel=2)
    return problems
