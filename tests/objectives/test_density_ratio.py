"""A critic's logit as the log-ratio: its optimum, offsets, probes, calibration, refusals."""

import math
import warnings

import numpy as np
import pytest
import torch
from helpers import gradient_of, make_array, to_numpy

from bayesdiv._array import logsumexp
from bayesdiv.divergences import between_logits, get_divergence, list_divergences
from bayesdiv.objectives import DensityRatio, RatioCritic, estimate
from bayesdiv.training import train

P = np.array([0.5, 0.25, 0.125, 0.125])
Q = np.array([0.1, 0.2, 0.3, 0.4])
LOG_RATIO = np.log(P / Q)


class Table(torch.nn.Module):
    """A logit for every outcome: the critic that can be anything."""

    def __init__(self, size=4):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, rows):
        return self.logits[rows]


def draws(probabilities, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(probabilities).multinomial(count, replacement=True, generator=generator)


def trained(num_p, num_q, num_steps=120, **settings):
    table = Table()
    optimizer = torch.optim.Adam(table.parameters(), lr=0.1)
    routine = RatioCritic(table, optimizer, ratio=DensityRatio(**settings))
    batch = draws(P, num_p, 0), draws(Q, num_q, 1)
    train(routine, [batch], num_steps=num_steps, progress_bar=False)
    return routine


def test_optimum_of_the_loss_in_closed_form(backend):
    """Stationary at log p/q, where it is 2 log 2 − 2 JS; golden values of four outcomes."""
    ratio = DensityRatio(classes="balanced")
    counts_p, counts_q = (8 * P).astype(int), (10 * Q).round().astype(int)
    rows_p = np.repeat(np.arange(4), counts_p)
    rows_q = np.repeat(np.arange(4), counts_q)

    def loss(table):
        return ratio.loss(table[rows_p], table[rows_q])

    (gradient,) = gradient_of(backend, loss, LOG_RATIO)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12)
    value = float(loss(make_array(backend, LOG_RATIO)))
    p, q = torch.tensor(P).log(), torch.tensor(Q).log()
    js = float(between_logits("jensen_shannon", p, q))
    assert value == pytest.approx(2.0 * math.log(2.0) - 2.0 * js, abs=1e-12)
    assert value == pytest.approx(1.125092, abs=1e-6)
    np.testing.assert_allclose(LOG_RATIO, [1.609438, 0.223144, -0.875469, -1.163151], atol=1e-6)


def test_a_critic_recovers_the_log_ratio():
    routine = trained(30_000, 30_000)
    found = routine.log_ratio(torch.arange(4))
    np.testing.assert_allclose(to_numpy(found.log_ratio), LOG_RATIO, atol=0.1)
    assert float(found.saturated) == 0.0
    probe = routine.probe(draws(P, 30_000, 2), draws(Q, 30_000, 3)).warn()
    assert probe.implied_jensen_shannon == pytest.approx(0.130601, abs=0.006)
    assert probe.accuracy == pytest.approx(0.725, abs=5 * probe.accuracy_error)
    assert probe.implied_total_variation == pytest.approx(0.45, abs=10 * probe.accuracy_error)
    assert probe.calibration.slope == pytest.approx(1.0, abs=0.06)
    assert probe.calibration.intercept == pytest.approx(0.0, abs=0.06)
    assert probe.calibration_error < 0.01


def test_unbalanced_counts_shift_the_logit_and_the_offset_takes_it_off():
    routine = trained(40_000, 10_000)
    raw = to_numpy(routine.critic(torch.arange(4)))
    np.testing.assert_allclose(raw, LOG_RATIO + math.log(4.0), atol=0.1)
    found = routine.log_ratio(torch.arange(4)).log_ratio
    np.testing.assert_allclose(to_numpy(found), LOG_RATIO, atol=0.1)
    balanced = trained(40_000, 10_000, classes="balanced")
    assert balanced.offset == 0.0
    np.testing.assert_allclose(to_numpy(balanced.critic(torch.arange(4))), LOG_RATIO, atol=0.1)


@pytest.mark.parametrize("name", list_divergences("f"))
def test_value_is_the_divergence_where_the_ratio_is_right(name):
    """E_p and E_q as repeated rows, so that the bound is exact, and below it elsewhere."""
    rows_p, rows_q = np.repeat(np.arange(4), [4, 2, 1, 1]), np.repeat(np.arange(4), [1, 2, 3, 4])
    exact = torch.tensor(LOG_RATIO)
    truth = between_logits(name, torch.tensor(P).log(), torch.tensor(Q).log())
    ratio = DensityRatio()
    value = ratio.value(name, exact[rows_p], exact[rows_q])
    assert float(value) == pytest.approx(float(truth), rel=1e-12)
    wrong = exact + torch.tensor([0.5, -1.0, 0.7, 0.1])
    assert float(ratio.value(name, wrong[rows_p], wrong[rows_q])) < float(truth)


@pytest.mark.parametrize("name", list_divergences("f"))
def test_the_ratio_is_a_log_weight_of_known_normaliser(backend, name):
    """−E_q[reward(l) ∇log q] is ∇D_f(p‖q): every outcome as often as q draws it."""
    rows = np.repeat(np.arange(4), [1, 2, 3, 4])

    def surrogate(parameters):
        log_q = parameters - logsumexp(parameters, 0)
        log_ratio = make_array(backend, LOG_RATIO)[rows]
        result = estimate(name, log_ratio, gradient="score", log_q=log_q[rows], log_normalizer=0.0)
        # The leave-one-out baseline divides by n − 1 instead of n.
        return result.surrogate * (len(rows) - 1.0) / len(rows)

    def exact(parameters):
        return between_logits(name, make_array(backend, np.log(P)), parameters)

    (found,) = gradient_of(backend, surrogate, np.log(Q))
    (expected,) = gradient_of(backend, exact, np.log(Q))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_calibration_undoes_a_stretched_logit():
    """A critic twice too sure and off by a half is seen, and calibrated."""
    table = Table()
    table.logits.data = 2.0 * torch.tensor(LOG_RATIO) + 1.0
    routine = RatioCritic(table, torch.optim.SGD(table.parameters(), lr=0.1))
    rows = draws(P, 50_000, 0), draws(Q, 50_000, 1)
    before = routine.calibrate(*rows)
    assert before.calibration.slope == pytest.approx(0.5, abs=0.02)
    assert before.calibration.intercept == pytest.approx(-0.5, abs=0.03)
    assert before.calibration_error > 0.05
    found = routine.log_ratio(torch.arange(4)).log_ratio
    np.testing.assert_allclose(to_numpy(found), LOG_RATIO, atol=0.06)
    after = routine.probe(draws(P, 50_000, 2), draws(Q, 50_000, 3))
    assert after.calibration_error < 0.01
    assert after.loss < before.loss


def test_a_dead_critic_warns():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 400, generator=generator, dtype=torch.float64)
    probe = DensityRatio().probe(noise[0], noise[1])
    assert probe.is_dead
    assert not probe.is_separable
    with pytest.warns(RuntimeWarning, match="the critic is dead .* more capacity"):
        probe.warn()
    zeros = torch.zeros(100)
    assert DensityRatio().probe(zeros, zeros).accuracy == 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DensityRatio().probe(noise[0] + 1.0, noise[1] - 1.0).warn()


def test_separable_classes_warn():
    rows = torch.linspace(6.0, 20.0, 200)
    probe = DensityRatio().probe(rows, -rows)
    assert probe.is_separable
    assert probe.saturated == pytest.approx(float((rows >= 10.0).double().mean()))
    with pytest.warns(RuntimeWarning, match="classes are separable .* artefacts dominate"):
        probe.warn()
    assert np.isfinite(probe.calibration).all()


def test_the_clamp_is_reported(backend):
    logits = make_array(backend, [-30.0, -1.0, 0.5, 12.0])
    found = DensityRatio(max_log_ratio=5.0).log_ratio(logits, offset=0.5)
    np.testing.assert_array_equal(to_numpy(found.log_ratio), [-5.0, -1.5, 0.0, 5.0])
    assert float(found.saturated) == 0.5


def test_label_smoothing_bounds_the_logit():
    table = Table(2)
    ratio = DensityRatio(label_smoothing=0.1)
    routine = RatioCritic(table, torch.optim.Adam(table.parameters(), lr=0.05), ratio=ratio)
    batch = torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.long)
    train(routine, [batch], num_steps=800, progress_bar=False)
    bound = math.log(9.0)
    np.testing.assert_allclose(to_numpy(table.logits), [bound, -bound], atol=1e-3)


def make_held_out(validate_every=1):
    table = Table()
    optimizer = torch.optim.Adam(table.parameters(), lr=0.3)
    held_out = draws(P, 2000, 2), draws(Q, 2000, 3)
    routine = RatioCritic(table, optimizer, held_out=held_out, validate_every=validate_every)
    return routine, (draws(P, 30, 0), draws(Q, 30, 1)), held_out


def test_best_step_by_held_out_loss():
    """A table learns thirty rows by heart; the held-out loss knows when it began to."""
    routine, batch, held_out = make_held_out()
    result = train(routine, [batch], num_steps=60, progress_bar=False)
    losses = result.history["held_out_loss"]
    best = routine.restore_best()
    assert best == pytest.approx(min(losses.min(), losses[-1]), abs=1e-12)
    assert best < losses[-1]
    assert routine.probe(*held_out).loss == pytest.approx(best, abs=1e-12)


def test_state_goes_on_where_it_was():
    one, batch, _ = make_held_out(7)
    other, _, _ = make_held_out(7)
    for _ in range(5):
        one.step(batch)
    other.load_state_dict(one.state_dict())
    for _ in range(5):
        first, second = one.step(batch), other.step(batch)
    assert {name: float(v) for name, v in first.items()} == {
        name: float(v) for name, v in second.items()
    }
    torch.testing.assert_close(one.critic.logits, other.critic.logits, rtol=0, atol=0)
    assert one.restore_best() == other.restore_best()


def test_rows_of_two_shapes_are_seen_in_two_passes():
    module = torch.nn.Linear(1, 1).double()
    routine = RatioCritic(
        lambda rows: module(rows.double().mean(1, keepdim=True))[:, 0],
        torch.optim.Adam(module.parameters()),
        parameters=module,
    )
    metrics = routine.step((torch.ones(5, 3), torch.zeros(4, 2)))
    assert math.isfinite(float(metrics["loss"]))
    assert routine.offset == pytest.approx(math.log(5 / 4))


REFUSED = {
    "classes": (dict(classes="odd"), "classes must be one of 'counts', 'balanced', got 'odd'"),
    "smoothing": (dict(label_smoothing=0.5), r"label_smoothing must be in \[0, 0.5\), got 0.5"),
    "clamp": (dict(max_log_ratio=0.0), "max_log_ratio must be positive and finite, got 0.0"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        DensityRatio(**settings)


def test_lopsided_and_empty_classes_are_refused():
    long, short = torch.zeros(23), torch.zeros(2)
    with pytest.raises(ValueError, match=r"differ by at most 10 times .* 23 rows .* 2 of q; pass"):
        DensityRatio().loss(long, short)
    assert float(DensityRatio(classes="balanced").loss(long, short)) == pytest.approx(
        2 * math.log(2)
    )
    with pytest.raises(ValueError, match="at least one row, got 0 of p and 23 of q"):
        DensityRatio(classes="balanced").loss(long[:0], long)
    with pytest.raises(ValueError, match="differ by at most 10 times"):
        RatioCritic(Table(), None, held_out=(long, short))


def test_other_refusals():
    table = Table()
    with pytest.raises(TypeError, match="critic must have state_dict, got function"):
        RatioCritic(lambda rows: rows, None)
    with pytest.raises(ValueError, match="validate_every must be an integer of at least 1, got 0"):
        RatioCritic(table, None, validate_every=0)
    routine = RatioCritic(table, torch.optim.SGD(table.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="held_out rows and at least one step are needed"):
        routine.restore_best()
    with pytest.raises(ValueError, match=r"one logit a row, shape \(6,\), got \(6, 2\)"):
        routine.step((torch.zeros(3, 2).long(), torch.zeros(3, 2).long()))
    with pytest.raises(ValueError, match="rows must not be empty"):
        routine.log_ratio(torch.zeros(0).long())
    with pytest.raises(ValueError, match=r"at least 2 held-out rows, shape \(n,\), got shape \(1,"):
        DensityRatio().probe(torch.zeros(1), torch.zeros(5))
    with pytest.raises(ValueError, match="q_logits must be finite, got nan in row 1; the critic"):
        DensityRatio().probe(torch.zeros(3), torch.tensor([0.0, math.nan, 1.0]))
    with pytest.raises(TypeError, match="must be an f-divergence, got Sinkhorn"):
        DensityRatio().value("sinkhorn", torch.zeros(2), torch.zeros(2))


def test_a_diverged_critic_is_an_error():
    table = Table()
    table.logits.data.fill_(math.nan)
    held_out = draws(P, 20, 0), draws(Q, 20, 1)
    routine = RatioCritic(table, torch.optim.SGD(table.parameters(), lr=0.1), held_out=held_out)
    with pytest.raises(FloatingPointError, match="held-out loss became nan at step 1; lower"):
        routine.step(held_out)


def test_members_are_known_by_name_and_by_object():
    divergence = get_divergence("jensen_shannon")
    zeros = torch.zeros(3)
    assert float(DensityRatio().value(divergence, zeros, zeros)) == 0.0
