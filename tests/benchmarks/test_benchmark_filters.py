"""What the filters' benchmark refuses, and how it talks to a library in another environment."""

import math
import sys

import numpy as np
import pytest

from benchmarks import particles_client
from benchmarks.cases import ResultsDiffer
from benchmarks.filters_problem import Problem, evidences_agree
from benchmarks.particles_client import ParticlesFilter, Peer, PeerAbsent, environment, open_peer

# Answers as `particles_peer` does, and fails when it is asked for seed 13.
FAKE = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request.get("seed") == 13:
        reply = {"error": "ValueError: thirteen"}
    elif "prepare" in request:
        prepared, reply = request, {}
    elif "seed" in request:
        reply = {"log_evidence": request["seed"] + prepared["num_particles"]}
    else:
        reply = {"log_evidence": float(len(prepared["observations"]))}
    print(json.dumps(reply), flush=True)
"""


def log_normal_estimates(seed, spread, count=400):
    # Logarithms of unbiased estimates of evidence 1.
    return np.random.default_rng(seed).normal(-0.5 * spread**2, spread, count)


def test_filters_of_different_variance_agree_on_one_evidence():
    narrow, wide = log_normal_estimates(0, 0.1), log_normal_estimates(1, 1.0)
    # Their mean logarithms are half a nat apart.
    assert abs(narrow.mean() - wide.mean()) > 0.3
    assert evidences_agree("evidence", wide, narrow, same_law=False)["evidence"] < 4.0
    with pytest.raises(ResultsDiffer):
        evidences_agree("evidence", wide, narrow, same_law=True)


def test_a_filter_that_is_a_third_of_a_nat_off_differs():
    found = log_normal_estimates(0, 1.0)
    with pytest.raises(ResultsDiffer, match="wrong: log-evidence .* standard errors apart"):
        evidences_agree("wrong", found + 0.35, log_normal_estimates(1, 0.1), same_law=False)
    with pytest.raises(ResultsDiffer, match="tolerance 4"):
        evidences_agree("wrong", [math.nan, *found], found, same_law=True)


def test_every_number_of_particles_filters_one_series():
    few, many = Problem("growth", 10, 20), Problem("growth", 1000, 20)
    assert np.array_equal(few.observations, many.observations)
    assert few.observations.dtype == np.float32


@pytest.fixture
def peer():
    opened = Peer([sys.executable, "-c", FAKE])
    yield opened
    opened.close()


def test_a_filter_runs_in_the_other_process(peer):
    rival = ParticlesFilter(peer, Problem("growth", 30, 20), "guided")
    assert rival.run() == 20.0
    assert rival.seeded(5) == 35.0


def test_errors_of_the_other_process_are_raised_here(peer):
    rival = ParticlesFilter(peer, Problem("volatility", 30, 20), "bootstrap")
    with pytest.raises(RuntimeError, match="particles: ValueError: thirteen"):
        rival.seeded(13)
    # It goes on afterwards.
    assert rival.run() == 20.0


def test_a_process_that_ends_is_reported():
    ended = Peer([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="ended with status 3"):
        ended.ask({"versions": True})
    ended.close()


def test_an_environment_that_cannot_be_made_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PeerAbsent, match="`-m venv --clear` failed"):
        environment(tmp_path / "file" / "folder", ("numpy<2",))


def test_an_environment_is_made_once(tmp_path, monkeypatch):
    (tmp_path / "installed").write_text(repr(("numpy<2",)))
    monkeypatch.setattr(particles_client.subprocess, "run", None)
    assert environment(tmp_path, ("numpy<2",)).parent.parent == tmp_path
    # Other packages need another one.
    with pytest.raises(TypeError):
        environment(tmp_path, ("numpy<1",))


def test_failure_is_remembered(monkeypatch):
    tried = []

    def fails(*_):
        tried.append(1)
        raise PeerAbsent("no network")

    monkeypatch.setattr(particles_client, "environment", fails)
    particles_client._opened.cache_clear()
    try:
        for _ in range(2):
            with pytest.raises(PeerAbsent, match="no network"):
                open_peer()
    finally:
        particles_client._opened.cache_clear()
    assert len(tried) == 1
