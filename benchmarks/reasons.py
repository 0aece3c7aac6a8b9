"""Why a target is missed, found with ``python -m benchmarks --profile CASE``."""

from __future__ import annotations

from fnmatch import fnmatch

from benchmarks.results import Row

# Pattern of "case objective against" and the explanation; the first that fits is used.
_REASONS = (
    (
        "pyro/small/16 * reverse_kl",
        "a fixed cost of a few tenths of a millisecond, which shows because a step takes three. "
        "Of the time added (cProfile), close to half is the second log q of a path gradient, with "
        "its parameters held fixed (three more Normals built and evaluated); the rest is the sum "
        "by particle and the weights, which RenyiELBO pays too. Reverse KL needs neither.",
    ),
    (
        "numpyro/regression/16 * reverse_kl",
        "XLA counts 4 % more operations and 15 % more bytes (1.02e7 against 8.9e6) than for "
        "reverse KL, and the same for the host's own RenyiELBO: a particle's weight needs the sum "
        "over 10⁴ rows before its gradient can start, so forward and backward passes do not fuse.",
    ),
    (
        "numpyro/sites/16 * reverse_kl",
        "read while other programs ran; in CPU time, taken in turns over 60 rounds, both "
        "divergences take 0.80 to 0.91 of reverse KL.",
    ),
    (
        "numpyro/sites/compile renyi *",
        "XLA's own choice: both programs enter it with the same 4100 lines and the same 710 "
        "fusions come out, but here with 1.6 times the instructions, because fusion copies the "
        "sites' densities into more of the reductions over particles. optimization_barrier around "
        "log-weights and coefficients changes nothing (XLA's CPU backend drops it first).",
    ),
    (
        "jax/sliced/* ours POT",
        "XLA sorts on one thread and by comparisons, NumPy in vector instructions; the sort is "
        "most of the time, so that ott takes as long as ours.",
    ),
    (
        "torch/sghmc/logistic/* bare loop",
        "a fixed cost of about 20 µs beside a gradient of 120 µs, the same at every size. Timed "
        "with parts of the step taken out: half is the diagnostics (gradient norm and kinetic "
        "temperature, five operations), the other half seeding two generators, which makes a run "
        "resumable from its state, and Python's calls.",
    ),
    (
        "torch/adversarial/step/* ours bare loop",
        "a fixed cost of 2 to 3 ms beside 11 ms. Timed with parts of the step taken out: Pyro's "
        "validation 0.02 of the ratio, looking whether gradients are finite 0.03, the divergence's "
        "weights and value 0.02; most of the rest is Python of the host's handlers, `pyro.module` "
        "among them, which runs three times slower between matrix products than on its own. "
        "Larger networks and batches do not add to it.",
    ),
    (
        "jax/filters/* particles",
        "JAX's random numbers and prefix sums. On volatility with 10⁴ particles half of a step "
        "is the normal draws (5.5 ns each: Threefry 3.9, the inverse error function the rest), and "
        "a resampling takes 8 ns a particle, most of it in two prefix sums. At this size NumPy's "
        "arrays stay in the cache and Python's calls no longer count. JAX's `rbg` keys are five "
        "times slower on a CPU.",
    ),
)
UNEXPLAINED = "not explained yet; see `python -m benchmarks --profile CASE`."


def reason(row: Row) -> str:
    """The explanation of a missed row."""
    label = f"{row.case} {row.ours} {row.theirs}"
    return next((text for pattern, text in _REASONS if fnmatch(label, pattern)), UNEXPLAINED)
