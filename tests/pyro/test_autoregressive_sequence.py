"""The sequence distribution: normalised, sampled as it is scored, ended once, after any prompt."""

import pyro
import pytest
import torch

from bayesdiv.nn.sequences_torch import (
    CausalTransformer,
    CharacterGRU,
    MarkovTable,
    TransformersModel,
)
from bayesdiv.pyro.distributions import AutoregressiveSequence

NUM_SYMBOLS, LENGTH = 3, 4


def make_network(kind):
    if kind == "gru":
        return CharacterGRU(NUM_SYMBOLS, 4, 8, num_layers=2, seed=1).double()
    if kind == "transformer":
        return CausalTransformer(
            NUM_SYMBOLS, 12, width=8, num_heads=2, num_layers=2, seed=1
        ).double()
    if kind == "transformers":
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(1)
        config = transformers.LlamaConfig(
            vocab_size=NUM_SYMBOLS,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            initializer_range=0.5,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
        return TransformersModel(transformers.LlamaForCausalLM(config)).double()
    logits = torch.randn(NUM_SYMBOLS + 1, NUM_SYMBOLS, dtype=torch.float64)
    return MarkovTable(logits)


NETWORKS = ("gru", "transformer", "transformers", "table")


@pytest.fixture(params=NETWORKS)
def network(request):
    return make_network(request.param)


@pytest.mark.parametrize("end", [0, 2, None])
def test_probabilities_of_all_sequences_sum_to_one(network, end):
    start = 0 if end is None else None
    law = AutoregressiveSequence(network, LENGTH, end=end, start=start)
    support = law.enumerate_support()
    going = NUM_SYMBOLS if end is None else NUM_SYMBOLS - 1
    shorter = 0 if end is None else sum(going**time for time in range(LENGTH))
    assert len(support) == going**LENGTH + shorter
    assert len({tuple(row) for row in support.tolist()}) == len(support)
    assert law.log_prob(support).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_scored_and_sampled_log_probabilities_agree(network):
    law = AutoregressiveSequence(network, LENGTH, end=0)
    value, sampled = law.sample_with_log_prob((200,))
    torch.testing.assert_close(law.log_prob(value), sampled, rtol=1e-10, atol=1e-10)


def test_cache_changes_nothing(network):
    tokens = torch.randint(NUM_SYMBOLS, (5, 6))
    whole, _ = network(tokens)
    cache, parts = None, []
    with torch.no_grad():
        for part in (tokens[:, :2], tokens[:, 2:3], tokens[:, 3:]):
            logits, cache = network(part, cache)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole.detach(), rtol=1e-10, atol=1e-10)


def test_samples_have_the_frequencies_of_their_probabilities():
    law = AutoregressiveSequence(make_network("gru"), 3, end=1)
    support = law.enumerate_support()
    probability = law.log_prob(support).exp().detach()
    value = law.sample((40_000,))
    code = torch.tensor([9, 3, 1])
    found = (value @ code)[:, None] == (support @ code)
    frequency = found.double().mean(0)
    error = (probability * (1 - probability) / 40_000).sqrt()
    assert ((frequency - probability).abs() < 5 * error).all()


@pytest.mark.parametrize("kind", ["gru", "transformer", "transformers"])
def test_shorter_prompts_are_padded_without_effect(kind):
    network = make_network(kind)
    prompts = torch.tensor([[0, 0, 2], [1, 2, 1], [0, 2, 1]])
    mask = torch.tensor([[False, False, True], [True, True, True], [False, True, True]])
    law = AutoregressiveSequence(network, LENGTH, end=0, prompts=prompts, prompt_mask=mask)
    assert law.batch_shape == (3,)
    support = law.enumerate_support()
    together = law.log_prob(support)
    torch.testing.assert_close(together.exp().sum(0), torch.ones(3, dtype=torch.float64))
    for row in range(3):
        alone = AutoregressiveSequence(network, LENGTH, end=0, prompts=prompts[row][mask[row]])
        torch.testing.assert_close(alone.log_prob(support[:, row]), together[:, row])
    value, sampled = law.sample_with_log_prob((50,))
    assert value.shape == (50, 3, LENGTH)
    torch.testing.assert_close(law.log_prob(value), sampled, rtol=1e-10, atol=1e-10)
    some = law.at(torch.tensor([2, 0]))
    torch.testing.assert_close(some.log_prob(value[:, [2, 0]]), law.log_prob(value)[:, [2, 0]])


def test_the_end_counts_once_although_it_is_the_padding():
    logits = torch.randn(4, 3, dtype=torch.float64)
    law = AutoregressiveSequence(MarkovTable(logits), 4, end=0)
    value = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [1, 2, 1, 2]])
    log_p = logits.log_softmax(-1)
    by_hand = [
        log_p[0, 1] + log_p[1, 0],
        log_p[0, 0],
        log_p[0, 1] + log_p[1, 2] + log_p[2, 1] + log_p[1, 2],
    ]
    torch.testing.assert_close(law.log_prob(value), torch.stack(by_hand))
    assert law.length(value).tolist() == [2, 1, 4]
    assert law.mask(value).sum().item() == 7
    assert (law.token_log_probs(value)[~law.mask(value)] == 0.0).all()


def test_padding_comes_after_the_first_end():
    law = AutoregressiveSequence(make_network("gru"), 8, end=0)
    value = law.sample((500,))
    assert value.dtype == torch.int64
    assert (value[~law.mask(value)] == 0).all()
    assert (law.length(value) < 8).any()


def test_gradient_of_the_probability_is_that_of_finite_differences():
    network = make_network("gru")
    law = AutoregressiveSequence(network, LENGTH, end=0)
    value = torch.tensor([[1, 2, 0, 0], [1, 1, 2, 1]])
    law.log_prob(value).sum().backward()
    weight = network.readout.weight
    step = 1e-6
    with torch.no_grad():
        weight[1, 2] += step
        up = law.log_prob(value).sum()
        weight[1, 2] -= 2 * step
        down = law.log_prob(value).sum()
    assert weight.grad[1, 2].item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-6)


def test_chunks_change_nothing():
    network = make_network("gru")
    whole = AutoregressiveSequence(network, LENGTH, end=0)
    parts = AutoregressiveSequence(network, LENGTH, end=0, batch_size=3)
    value = parts.sample((11,))
    assert value.shape == (11, LENGTH)
    with torch.no_grad():
        torch.testing.assert_close(parts.log_prob(value), whole.log_prob(value))


def test_half_precision_is_summed_in_single():
    network = CharacterGRU(5, seed=0).bfloat16()
    law = AutoregressiveSequence(network, 6, end=0)
    value, sampled = law.sample_with_log_prob((10,))
    assert sampled.dtype == law.log_prob(value).dtype == torch.float32


def test_pyro_puts_it_into_plates_and_traces():
    network = make_network("gru")

    def guide():
        pyro.module("network", network)
        with pyro.plate("rows", 6):
            return pyro.sample("x", AutoregressiveSequence(network, LENGTH, end=0))

    with pyro.plate("particles", 4, dim=-2):
        trace = pyro.poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["x"]["value"].shape == (4, 6, LENGTH)
    assert trace.nodes["x"]["log_prob"].shape == (4, 6)
    assert trace.nodes["x"]["log_prob"].requires_grad


def test_table_may_change_with_time():
    logits = torch.randn(2, 4, 3, dtype=torch.float64)
    law = AutoregressiveSequence(MarkovTable(logits), 2, end=None)
    log_p = logits.log_softmax(-1)
    expected = log_p[0, 3, 1] + log_p[1, 1, 2]
    torch.testing.assert_close(law.log_prob(torch.tensor([1, 2])), expected)
    value, sampled = law.sample_with_log_prob((30,))
    torch.testing.assert_close(law.log_prob(value), sampled)


class Dropping(CharacterGRU):
    def __init__(self):
        super().__init__(3, seed=0)
        self.drop = torch.nn.Dropout(0.1)


@pytest.mark.parametrize("method", ["sample", "score"])
def test_dropout_must_be_off(method):
    network = Dropping()
    law = AutoregressiveSequence(network, 3, end=0)

    def run():
        return law.sample() if method == "sample" else law.log_prob(torch.tensor([1, 2, 0]))

    with pytest.raises(ValueError, match=r"rate of 0.1 in 'drop' in training mode; call"):
        run()
    network.eval()
    run()


TABLE = MarkovTable(torch.zeros(4, 3))
PROMPTS = torch.tensor([[1, 2], [0, 1]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, "max_length must be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"end": 3}, "end must be among the 3 symbols or None, got 3"),
        ({"start": 1, "prompts": PROMPTS}, "start must be None where prompts are given, got 1"),
        ({"prompts": PROMPTS.float()}, "prompts must hold whole numbers"),
        ({"prompt_mask": PROMPTS > 0}, "prompt_mask needs prompts"),
        (
            {"prompts": PROMPTS, "prompt_mask": torch.tensor([True, False])},
            r"prompt_mask must be boolean of the prompts' shape \(2, 2\)",
        ),
        (
            {"prompts": PROMPTS, "prompt_mask": torch.tensor([[True, False], [True, True]])},
            "pad on the left",
        ),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        AutoregressiveSequence(TABLE, **{"max_length": 3, "end": 0, **settings})


def test_network_must_know_its_symbols():
    with pytest.raises(TypeError, match="num_symbols, the width of its logits, got Linear"):
        AutoregressiveSequence(torch.nn.Linear(2, 2), 3, end=0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2, 3), "value must hold whole numbers, got dtype torch.float32"),
        (torch.zeros(2, 4, dtype=torch.long), r"shape \(..., 3\), got \(2, 4\)"),
        (torch.tensor([[1, 1, 1], [1, 0, 2]]), r"after the first end, got \[1, 0, 2\]"),
        (torch.tensor([[1, 1, 7]]), r"symbols below 3, .*got \[1, 1, 7\]"),
    ],
)
def test_bad_values_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        AutoregressiveSequence(TABLE, 3, end=0, validate_args=True).log_prob(value)


def test_only_small_supports_are_enumerated():
    law = AutoregressiveSequence(CharacterGRU(27), 11, end=0)
    with pytest.raises(ValueError, match=r"about 10\^16 sequences, more than 1000000"):
        law.enumerate_support()


def test_contexts_need_prompts():
    with pytest.raises(ValueError, match="contexts exist where prompts of shape"):
        AutoregressiveSequence(TABLE, 3, end=0).at(torch.tensor([0]))
