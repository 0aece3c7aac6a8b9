"""Small policies that can be enumerated, with draws that have exactly their probabilities."""

import torch

from bayesdiv.nn.sequences_torch import MarkovTable
from bayesdiv.pyro.distributions import AutoregressiveSequence


class CategoricalPolicy:
    """Sequences of one token, outcome k with probability counts[k]/n; a sample has just those."""

    def __init__(self, counts):
        self.counts = torch.tensor(counts)
        self.logits = torch.nn.Parameter(torch.log(self.counts.double()))

    @property
    def size(self):
        return int(self.counts.sum())

    def sample(self, shape):
        (count,) = shape
        assert count == self.size, "a sample has as many rows as there are counts"
        return torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)[:, None]

    def log_prob(self, tokens):
        return self.logits.log_softmax(0)[tokens[:, 0]]

    def token_log_probs(self, tokens):
        return self.log_prob(tokens)[:, None]

    def mask(self, tokens):
        return torch.ones_like(tokens, dtype=torch.bool)


class Scored:
    """An expert known by its log-probabilities of single tokens."""

    def __init__(self, log_probs):
        self.log_probs = torch.as_tensor(log_probs, dtype=torch.float64)

    def log_prob(self, tokens):
        return self.log_probs[tokens[:, 0]]


def random_chain(seed, *, num_symbols=3, max_length=3, end=0, scale=1.0):
    """A law of sequences whose every conditional is free, so that none is out of its reach."""
    generator = torch.Generator().manual_seed(seed)
    shape = (max_length, num_symbols + 1, num_symbols)
    logits = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    return AutoregressiveSequence(MarkovTable(logits), max_length, end=end)


def step_of(routine, parameters, batch=None):
    """The gradient that one step with SGD at learning rate 1 has used."""
    before = [each.detach().clone() for each in parameters]
    routine.step(batch)
    return [old - new.detach() for old, new in zip(before, parameters, strict=True)]
