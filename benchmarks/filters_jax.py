"""Particle filters: ours, a scan by hand, smcx, cuthbert and `particles`."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from bayesdiv.inference.proposals import AuxiliaryProposal, BootstrapProposal, GuidedProposal
from bayesdiv.inference.smc import ParticleFilter
from benchmarks import filters_peers as peers
from benchmarks import filters_problem as problem_
from benchmarks.cases import Case, Comparison, Duel
from benchmarks.filters_models import formulas
from benchmarks.filters_peers import Run
from benchmarks.filters_problem import ESS_THRESHOLD, Problem
from benchmarks.particles_client import ParticlesFilter, PeerAbsent, open_peer
from benchmarks.timing import Step

# From here on a peer's time is compared with a target; below, fixed costs decide.
MANY = 10_000
BARE_TARGET, JAX_TARGET, PARTICLES_TARGET, GUIDED_TARGET = 1.2, 0.5, 0.25, 0.125
OUR_BOOTSTRAP = "our bootstrap"
# Runs of one contestant differ in how often they resample: each round takes the next.
NUM_TIMED_KEYS = 16


def cases(*, quick: bool) -> list[Case]:
    """Bootstrap filters against everybody; guided and auxiliary ones against `particles`."""
    plain = [
        Case(f"jax/filters/bootstrap/{problem.name}", functools.partial(prepare, problem))
        for problem in problem_.bootstrap_problems(quick=quick)
    ]
    guided = [
        Case(f"jax/filters/{kind}/{problem.name}", functools.partial(prepare_guided, problem, kind))
        for kind in ("guided", "auxiliary")
        for problem in problem_.guided_problems(quick=quick)
    ]
    return plain + guided


def prepare(problem: Problem) -> Duel:
    """The bootstrap filter with systematic resampling below half of the effective sample size."""
    is_large = problem.num_particles >= MANY
    contestants: dict[str, Run] = {
        "bare scan": peers.bare_scan(problem),
        "smcx": peers.smcx_filter(problem),
        "cuthbert": peers.cuthbert_filter(problem),
        "bootstrap": ours(problem, BootstrapProposal()),
    }
    targets = {
        "bare scan": BARE_TARGET,
        "smcx": JAX_TARGET if is_large else None,
        "cuthbert": JAX_TARGET if is_large else None,
        "particles": PARTICLES_TARGET if is_large else None,
    }
    return duel(problem, contestants, "bootstrap", targets)


def prepare_guided(problem: Problem, kind: str) -> Duel:
    """The same guide, and the same lookahead, here and there; our bootstrap filter beside them."""
    given = formulas(problem.model)
    proposal: Any = GuidedProposal(given.guided, given.initial_guide)
    if kind == "auxiliary":
        proposal = AuxiliaryProposal(proposal, given.lookahead)
    contestants = {
        OUR_BOOTSTRAP: ours(problem, BootstrapProposal()),
        kind: ours(problem, proposal),
    }
    return duel(problem, contestants, kind, {OUR_BOOTSTRAP: None, "particles": GUIDED_TARGET})


def ours(problem: Problem, proposal: Any) -> Run:
    """Our filter as it is called by a user, who gets evidence, ESS and moments by time."""
    model, observations = formulas(problem.model).model, jnp.asarray(problem.observations)
    particle_filter = ParticleFilter(
        model, proposal, num_particles=problem.num_particles, ess_threshold=ESS_THRESHOLD
    )

    def run(key: jax.Array) -> tuple:
        found = particle_filter.run(key, observations)
        return found.log_evidence, found

    return run


def duel(
    problem: Problem, contestants: dict[str, Run], name: str, targets: dict[str, float | None]
) -> Duel:
    """Compile, compare evidences with those of ``name``, and hand out what is timed.

    ``contestants`` are ours and those in JAX; ``targets`` by rival, `particles` among them.

    Raises
    ------
    ResultsDiffer
        If estimates of the evidence differ by more than chance.
    """
    keys = list(jax.random.split(jax.random.key(0), problem.num_runs))
    compiled = ", ".join(f"{who} {compile_seconds(run):.2g} s" for who, run in contestants.items())
    notes = {"compilation": compiled}
    logs = {who: [float(run(key)[0]) for key in keys] for who, run in contestants.items()}
    steps: dict[str, Step] = {who: timed(run) for who, run in contestants.items() if who != name}
    try:
        peer, versions = open_peer()
    except PeerAbsent as reason:
        notes["particles"] = f"left out: {reason}"
    else:
        rival = ParticlesFilter(peer, problem, name)
        logs["particles"] = [rival.seeded(seed) for seed in range(problem.num_runs)]
        steps["particles"] = rival.run
        notes["particles"] = versions
    steps[name] = timed(contestants[name])
    agreement: dict[str, float] = {}
    for who in (who for who in steps if who != name):
        what = f"{who}: log-evidence, in standard errors"
        agreement |= problem_.evidences_agree(
            what, logs[name], logs[who], same_law=who != OUR_BOOTSTRAP
        )
    rivals = [Comparison(name, who, targets[who]) for who in steps if who != name]
    return Duel(steps, rivals, agreement, notes)


def timed(run: Run) -> Callable[[], Any]:
    """A call with the next of some keys."""
    made = list(jax.random.split(jax.random.key(1), NUM_TIMED_KEYS))
    keys: Iterator[jax.Array] = itertools.cycle(made)
    return lambda: jax.block_until_ready(run(next(keys)))


def compile_seconds(run: Run) -> float:
    """Of a first call over a second."""
    key, seconds = jax.random.key(2), []
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(run(key))
        seconds.append(time.perf_counter() - start)
    return max(seconds[0] - seconds[1], 0.0)
