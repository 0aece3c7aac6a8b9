"""Small sequence problems whose every sum can be written down, with the f-DPG dossier's values."""

import math

import torch

from bayesdiv.models.sequence_targets import SequenceTarget
from bayesdiv.nn.sequences_torch import MarkovTable
from bayesdiv.pyro.distributions import AutoregressiveSequence

# Fixture A.
P_A, POLICY_A = [0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4]
# Fixture C.
INITIAL = [0.5, 0.3, 0.2]
TRANSITION = [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]]
# Our name for each of the dossier's; its Jensen-Shannon is twice ours.
DOSSIER_NAMES = {
    "kl": "forward_kl",
    "rkl": "reverse_kl",
    "tv": "total_variation",
    "js": "jensen_shannon",
    "chi2_fwd": "pearson_chi2",
    "chi2_rev": "neyman_chi2",
    "hellinger": "squared_hellinger",
    "jeffreys": "jeffreys",
}


def categorical(probabilities):
    """One symbol, with these probabilities and free logits."""
    row = torch.tensor(probabilities, dtype=torch.float64).log()
    table = torch.zeros(len(row) + 1, len(row), dtype=torch.float64)
    table[-1] = row
    return AutoregressiveSequence(MarkovTable(table), 1, end=None)


def bigram_chain():
    """Fixture C: 27 sequences of three symbols."""
    network = MarkovTable.from_probabilities(
        torch.tensor(INITIAL, dtype=torch.float64), torch.tensor(TRANSITION, dtype=torch.float64)
    )
    return AutoregressiveSequence(network, 3, end=None)


def frozen(law):
    """The same law, its network's parameters held fixed."""
    law.network.requires_grad_(requires_grad=False)
    return law


def has_two(value):
    """Fixture C's φ: whether symbol 2 occurs."""
    return (value == 2).any(-1).double()


def count_twos(value):
    """Fixture C's reward."""
    return (value == 2).sum(-1).double()


def start_gradient(law):
    """Of the logits of the first symbol."""
    return law.network.logits.grad[-1]


class GivenTarget(SequenceTarget):
    """A uniform categorical base times e^factor."""

    def __init__(self, factors):
        super().__init__(frozen(categorical([1 / len(factors)] * len(factors))))
        self.factors = torch.tensor(factors, dtype=torch.float64)

    def log_factor(self, value, contexts=None):
        return self.factors[value[..., 0]]


def fixture_a():
    return GivenTarget([math.log(p) for p in P_A])
