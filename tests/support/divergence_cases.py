"""The f-divergences that every law is tested on: ``from divergence_cases import CASES``."""

import math

from bayesdiv.divergences import (
    Alpha,
    FDivergence,
    ForwardKL,
    GeneralizedJensenShannon,
    Jeffreys,
    JensenShannon,
    NeymanChi2,
    PearsonChi2,
    Reversed,
    ReverseKL,
    SoftenedReverseKL,
    SquaredHellinger,
    TotalVariation,
)


def exponential_of(x):
    """eˣ by an operator, so that one function serves NumPy, torch and JAX."""
    return math.e**x


NAMED = {
    "reverse_kl": ReverseKL(),
    "forward_kl": ForwardKL(),
    "jensen_shannon": JensenShannon(),
    "squared_hellinger": SquaredHellinger(),
    "pearson_chi2": PearsonChi2(),
    "neyman_chi2": NeymanChi2(),
    "jeffreys": Jeffreys(),
    "softened_reverse_kl": SoftenedReverseKL(),
    "total_variation": TotalVariation(),
}
ORDERS = {f"alpha({order})": Alpha(order) for order in (-0.7, 0.5, 2.5)}
BUILT = {
    "generalized_jensen_shannon(0.2)": GeneralizedJensenShannon(0.2),
    "reversed(softened)": SoftenedReverseKL().reversed(),
    "reversed(jensen_shannon)": Reversed(JensenShannon()),
    "symmetrized(pearson)": PearsonChi2().symmetrized(),
    "symmetrized(softened)": SoftenedReverseKL().symmetrized(),
    "0.3 forward + 2 jensen_shannon": 0.3 * ForwardKL() + 2.0 * JensenShannon(),
    "total_variation + reverse_kl": TotalVariation() + ReverseKL(),
}
# Written with operators only, so that either library may differentiate them.
CUSTOM = {
    "custom (u-1)²/(u+1)": FDivergence.from_generator(lambda u: (u - 1.0) ** 2 / (u + 1.0)),
    "custom u√u": FDivergence.from_generator(lambda u: u**1.5 - 1.0),
    "custom 1/√u in log space": FDivergence.from_generator(
        lambda x: exponential_of(-0.5 * x) - 1.0, log_space=True
    ),
}
CASES = NAMED | ORDERS | BUILT | CUSTOM
SMOOTH = {name: member for name, member in CASES.items() if member.has_path_gradient}
