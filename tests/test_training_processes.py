"""The torch loop in two processes: shared metrics, split data, and the same numbers on resuming."""

import json
import subprocess
import sys

SCRIPT = """
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from bayesdiv.training import train

accelerator = Accelerator(cpu=True)
folder = Path(sys.argv[1])


class Regression:
    def __init__(self):
        torch.manual_seed(0)
        self.network = torch.nn.Linear(3, 1)
        self.seen = []

    def prepare(self, accelerator):
        optimizer = torch.optim.Adam(self.network.parameters(), lr=0.01)
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)

    def step(self, batch):
        index, x, y = batch
        self.seen += index.tolist()
        loss = ((self.model(x) + 0.1 * torch.randn(len(x), 1) - y) ** 2).mean()
        self.optimizer.zero_grad()
        accelerator.backward(loss)
        self.optimizer.step()
        return {"loss": loss, "rank": torch.tensor(float(accelerator.process_index))}

    def state_dict(self):
        network = accelerator.unwrap_model(self.model)
        return {"network": network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        accelerator.unwrap_model(self.model).load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


def run(num_steps, seed, **settings):
    routine = Regression()
    torch.manual_seed(seed + accelerator.process_index)
    x = torch.randn(48, 3, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(torch.arange(48), x, x.sum(1, keepdim=True))
    result = train(routine, DataLoader(data, batch_size=4, shuffle=True), num_steps=num_steps,
                   log_every=5, checkpoint_every=5, accelerator=accelerator, progress_bar=False,
                   **settings)
    return routine, result


whole, expected = run(14, 10)
run(8, 10, checkpoint=folder / "state.pt")
resumed, found = run(14, 50, checkpoint=folder / "state.pt")
weights = [list(routine.network.state_dict()["weight"][0].tolist()) for routine in (whole, resumed)]
(folder / f"{accelerator.process_index}.json").write_text(json.dumps({
    "expected": expected.history["loss"].tolist(), "found": found.history["loss"].tolist(),
    "rank": expected.history["rank"].tolist(), "seen": whole.seen[:24], "weights": weights,
}))
# A process that leaves while the other still talks to it takes that one down.
accelerator.wait_for_everyone()
torch.distributed.destroy_process_group()
"""


def test_two_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    # Means over the processes, which both see.
    assert first["rank"] == second["rank"] == [0.5] * 14
    assert first["expected"] == second["expected"]
    # Six steps of four rows in each of two processes are one pass over 48 rows.
    assert sorted(first["seen"] + second["seen"]) == list(range(48))
    for process in (first, second):
        assert process["found"] == process["expected"]
        assert process["weights"][0] == process["weights"][1]
    assert first["weights"] == second["weights"]
