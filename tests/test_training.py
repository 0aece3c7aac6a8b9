"""The torch loop: resumes to the same numbers, stops when it should, refuses what it must."""

import random
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bayesdiv.training import EarlyStopping, TensorBatches, train


class Regression:
    """Least squares whose loss uses the global generators of torch, NumPy and Python."""

    def __init__(self, *, bad_step=None, bad_state=None):
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(3, generator=generator, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.weight], lr=0.05)
        self.num_steps = 0
        self.bad_step, self.bad_state = bad_step, bad_state

    def step(self, batch):
        self.num_steps += 1
        x, y = batch
        noise = torch.randn(len(x)) + np.random.normal() + random.gauss(0.0, 1.0)  # noqa: NPY002
        loss = ((x @ self.weight + 0.1 * noise - y) ** 2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        size = self.weight.detach().norm()
        if self.num_steps == self.bad_state:
            self.weight.data[0] = torch.inf
        if self.num_steps == self.bad_step:
            loss = loss * torch.nan
        return {"loss": loss.detach(), "size": size}

    def state_dict(self):
        return {
            "weight": self.weight.detach(),
            "optimizer": self.optimizer.state_dict(),
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state):
        self.weight.data.copy_(state["weight"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_steps = state["num_steps"]


class Recorder:
    """A routine that keeps its batches and reports given losses."""

    def __init__(self, losses=None):
        self.batches, self.losses = [], losses

    def step(self, batch):
        self.batches.append(batch)
        value = 0.0 if self.losses is None else self.losses[len(self.batches) - 1]
        return {"loss": torch.tensor(value, dtype=torch.float64)}

    def state_dict(self):
        return {"count": len(self.batches)}

    def load_state_dict(self, state):
        self.batches = self.batches[: state["count"]]


def rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(22, 3, generator=generator)
    return x, x @ torch.tensor([1.0, -2.0, 0.5])


def make_batches(kind):
    x, y = rows()
    if kind == "tensor_batches":
        return TensorBatches(x, y, batch_size=5, seed=4)
    if kind == "loader":
        return DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
    if kind == "loader_generator":
        generator = torch.Generator().manual_seed(9)
        return DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True, generator=generator)
    return [(x[:11], y[:11]), (x[11:], y[11:])]


def seed_everything(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


@pytest.mark.parametrize("kind", ["tensor_batches", "loader", "loader_generator", "list"])
@pytest.mark.parametrize("cut", [8, 13])
def test_a_resumed_run_has_the_numbers_of_an_uninterrupted_one(kind, cut, tmp_path):
    settings = {"log_every": 4, "checkpoint_every": 4, "progress_bar": False}
    seed_everything(1)
    whole = Regression()
    expected = train(whole, make_batches(kind), num_steps=21, **settings)

    path = tmp_path / "run" / "state.pt"
    seed_everything(1)
    train(Regression(), make_batches(kind), num_steps=cut, checkpoint=path, **settings)
    seed_everything(2)
    resumed = Regression()
    found = train(resumed, make_batches(kind), num_steps=21, checkpoint=path, **settings)

    assert found.num_steps == expected.num_steps == 21
    for name in ("loss", "size"):
        np.testing.assert_array_equal(found.history[name], expected.history[name])
    assert torch.equal(resumed.weight, whole.weight)
    assert list(path.parent.iterdir()) == [path], "no unfinished file stays behind"


SCRIPT = """
import sys
import time
from test_training import Regression, make_batches, seed_everything
from bayesdiv.training import train

class Slow(Regression):
    def step(self, batch):
        time.sleep(0.1)
        return super().step(batch)

seed_everything(1)
train(Slow(), make_batches("loader"), num_steps=60, checkpoint=sys.argv[1],
      checkpoint_every=5, log_every=5, progress_bar=False)
"""


def test_a_killed_process_goes_on_to_the_same_numbers(tmp_path, request):
    here = str(request.path.parent)
    code = f"sys_path = {here!r}\nimport sys\nsys.path.insert(0, sys_path)\n"
    code += textwrap.dedent(SCRIPT)
    checkpoint = tmp_path / "state.pt"
    command = [sys.executable, "-c", code, str(checkpoint)]

    process = subprocess.Popen(command)
    give_up = time.monotonic() + 60.0
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was killed before it could end"
    before = torch.load(checkpoint, weights_only=True)["step"]
    assert 5 <= before < 60

    settings = {"num_steps": 60, "log_every": 5, "progress_bar": False}
    seed_everything(2)
    found = train(Regression(), make_batches("loader"), checkpoint=checkpoint, **settings)
    seed_everything(1)
    expected = train(Regression(), make_batches("loader"), **settings)
    np.testing.assert_array_equal(found.history["loss"], expected.history["loss"])


def test_a_finished_run_is_not_repeated(tmp_path):
    path = tmp_path / "state.pt"
    first, second = Recorder(), Recorder()
    expected = train(first, [0, 1], num_steps=3, checkpoint=path, progress_bar=False)
    found = train(second, [0, 1], num_steps=3, checkpoint=path, progress_bar=False)
    assert second.batches == []
    np.testing.assert_array_equal(found.history["loss"], expected.history["loss"])
    train(second, [0, 1], num_steps=3, checkpoint=path, resume=False, progress_bar=False)
    assert second.batches == [0, 1, 0]


@pytest.mark.parametrize("log_every", [1, 7, 50])
def test_a_loss_that_is_not_finite_restores_the_last_good_state(log_every):
    routine, twin = Regression(bad_step=24), Regression()
    seed_everything(0)
    with pytest.warns(RuntimeWarning, match=r"'loss' became nan at step 24; .* Lower") as caught:
        result = train(
            routine, make_batches("list"), num_steps=60, log_every=log_every, progress_bar=False
        )
    assert len(caught) == 1
    good = 23 // log_every * log_every
    assert (result.stopped, result.num_steps) == ("not_finite", good)
    assert len(result.history["loss"]) == good
    assert np.isfinite(result.history["loss"]).all()
    seed_everything(0)
    if good:
        train(twin, make_batches("list"), num_steps=good, progress_bar=False)
    assert torch.equal(routine.weight, twin.weight)


def test_a_state_that_is_not_finite_is_never_kept():
    """Weights may be ruined by a step whose own loss is finite."""
    routine = Regression(bad_state=20)
    with pytest.warns(RuntimeWarning, match=r"state is not finite after step 20.* step 15 is rest"):
        result = train(routine, make_batches("list"), num_steps=60, log_every=5, progress_bar=False)
    assert result.num_steps == routine.num_steps == 15
    assert torch.isfinite(routine.weight).all()


def test_early_stopping_waits_for_its_patience(tmp_path):
    """The loss falls until step 30 and stays; windows of 5, patience 12 → 3 windows."""
    losses = [max(1.0 - step / 30.0, 0.0) for step in range(200)]
    settings = {"num_steps": 200, "log_every": 5, "progress_bar": False, "checkpoint_every": 10}
    rule = EarlyStopping("loss", patience=12)
    result = train(Recorder(losses), [0], early_stopping=rule, **settings)
    # The window of steps 31 to 35 is the first whose mean is 0.
    assert (result.stopped, result.num_steps) == ("early_stopping", 35 + 15)

    path = tmp_path / "state.pt"
    train(Recorder(losses), [0], checkpoint=path, **{**settings, "num_steps": 20})
    second = Recorder(losses[20:])
    resumed = train(second, [0], early_stopping=rule, checkpoint=path, **settings)
    assert (resumed.num_steps, len(second.batches)) == (50, 30)
    np.testing.assert_array_equal(resumed.history["loss"], result.history["loss"])
    third = Recorder(losses)
    again = train(third, [0], early_stopping=rule, checkpoint=path, **settings)
    assert (again.stopped, again.num_steps, third.batches) == ("early_stopping", 50, [])


def test_minimum_improvement_counts_only_what_is_worth_it():
    slow = {"loss": np.linspace(1.0, 0.9, 100)}
    assert not EarlyStopping(patience=50).should_stop(slow, 10)
    assert EarlyStopping(patience=50, minimum_improvement=0.1).should_stop(slow, 10)


def test_tensor_batches_cover_the_rows_in_new_orders():
    x = torch.arange(10)
    batches = TensorBatches(x, 2 * x, batch_size=5, seed=1)
    assert len(batches) == 2
    passes = [list(batches) for _ in range(2)]
    orders = [torch.cat([first for first, _ in batch_list]) for batch_list in passes]
    for order, batch_list in zip(orders, passes, strict=True):
        assert sorted(order.tolist()) == list(range(10))
        assert all(torch.equal(second, 2 * first) for first, second in batch_list)
    assert not torch.equal(*orders)
    assert [len(batch) for batch in TensorBatches(x, batch_size=64)] == [10]


def test_none_gives_none_to_every_step():
    routine = Recorder()
    train(routine, None, num_steps=3, progress_bar=False)
    assert routine.batches == [None] * 3


def test_batches_move_only_with_a_routine_that_prepares():
    class Prepared(Recorder):
        device = None

        def prepare(self, accelerator):
            self.device = accelerator.device

    routine = Prepared()
    train(routine, [torch.ones(2)], num_steps=2, progress_bar=False)
    assert routine.batches[0].device.type == routine.device.type


def test_metrics_are_means_over_nothing_but_their_step():
    losses = list(np.random.default_rng(0).normal(size=13))
    result = train(Recorder(losses), [0], num_steps=13, log_every=4, progress_bar=False)
    np.testing.assert_array_equal(result.history["loss"], losses)
    assert result.history["loss"].dtype == np.float64
    assert (result.stopped, result.num_steps) == ("completed", 13)


def test_the_bar_shows_the_last_metrics(capsys):
    train(Recorder([0.25, 0.5]), [0], num_steps=2, title="fitting")
    shown = capsys.readouterr().out
    assert "fitting" in shown
    assert "2/2" in shown
    assert "loss 0.5" in shown
    train(Recorder([0.25]), [0], num_steps=1, progress_bar=False)
    assert capsys.readouterr().out == ""


REFUSED = {
    "no steps": (dict(num_steps=0), "num_steps must be an integer of at least 1, got 0"),
    "log_every": (dict(num_steps=1, log_every=0), "log_every must be an integer of at least 1"),
    "checkpoint_every": (dict(num_steps=1, checkpoint_every=True), "checkpoint_every must be"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        train(Recorder(), [0], progress_bar=False, **settings)


def test_refused_batches():
    with pytest.raises(TypeError, match="got a tensor, which yields its rows; pass TensorBatches"):
        train(Recorder(), torch.ones(3, 2), num_steps=1)
    with pytest.raises(TypeError, match="iterable again and again.* got generator"):
        train(Recorder(), (value for value in range(3)), num_steps=1)
    with pytest.raises(ValueError, match="batches must not be empty"):
        train(Recorder(), [], num_steps=1, progress_bar=False)
    with pytest.raises(ValueError, match=r"equally long and not empty, got lengths \[3, 2\]"):
        TensorBatches(torch.ones(3), torch.ones(2), batch_size=1)


def test_refused_early_stopping():
    with pytest.raises(ValueError, match="metric must be one that the routine reports, loss; got"):
        train(
            Recorder(),
            [0],
            num_steps=9,
            log_every=3,
            early_stopping=EarlyStopping("accuracy"),
            progress_bar=False,
        )
    with pytest.raises(ValueError, match="patience must be an integer of at least 1, got 0"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match="minimum_improvement must be finite and at least 0"):
        EarlyStopping(minimum_improvement=-1.0)


def test_refused_metrics():
    class Fickle(Recorder):
        def step(self, batch):
            super().step(batch)
            return {f"loss_{len(self.batches)}": torch.zeros(())}

    with pytest.raises(ValueError, match=r"same metrics every time.*\['loss_2'\] after \['loss_1"):
        train(Fickle(), [0], num_steps=2, progress_bar=False)


def test_refused_checkpoints(tmp_path):
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"cannot be read .*remove it or pass resume=False"):
        train(Recorder(), [0], num_steps=1, checkpoint=broken, progress_bar=False)
    foreign = tmp_path / "foreign.pt"
    torch.save({"weights": torch.ones(2)}, foreign)
    with pytest.raises(ValueError, match="with other content; pass another path"):
        train(Recorder(), [0], num_steps=1, checkpoint=foreign, progress_bar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(Recorder(), [0], num_steps=1, checkpoint=broken, resume=False, progress_bar=False)
    assert torch.load(broken, weights_only=True)["step"] == 1
