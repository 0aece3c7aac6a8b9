"""Filters of the library `particles`, in its own environment; started by `particles_client`.

Requests and replies are lines of JSON: ``{"versions": true}``; ``{"prepare": name, "model": ...,
"parameters": ..., "filter": ..., "num_particles": ..., "ess_threshold": ..., "observations":
[...]}``; then ``{"run": name}`` or ``{"run": name, "seed": 0}``, answered by ``{"log_evidence":
...}``. What goes wrong is answered by ``{"error": ...}``.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from typing import Any

import numpy as np
import particles
from particles import distributions
from particles import state_space_models as ssm

FILTERS = {"bootstrap": ssm.Bootstrap, "guided": ssm.GuidedPF, "auxiliary": ssm.AuxiliaryPF}
LOG_ROOT_TWO_PI = 0.5 * np.log(2.0 * np.pi)


class Growth(ssm.Gordon_etal):
    """The library's model with the guide and lookahead of :mod:`benchmarks.filters_models`."""

    def _mean(self, t: int, xp: np.ndarray) -> np.ndarray:
        return self.PX(t, xp).loc

    def proposal0(self, data: Any) -> Any:
        return self.PX0()

    def proposal(self, t: int, xp: np.ndarray, data: Any) -> Any:
        mean = self._mean(t, xp)
        peak2 = 10.0 * (data[t] + np.sqrt(data[t] ** 2 + 1.0))
        gain = 10.0 / (10.0 + 100.0 / (peak2 + 10.0))
        peak = np.sqrt(peak2)
        moved = mean + gain * (peak * np.tanh(mean * peak / 10.0) - mean)
        return distributions.Normal(loc=moved, scale=1.25 * np.sqrt(10.0))

    def logeta(self, t: int, x: np.ndarray, data: Any) -> np.ndarray:
        y = data[t + 1]
        peak = np.sqrt(10.0 * (y + np.sqrt(y**2 + 1.0)))
        spread2 = 10.0 + 100.0 / (peak**2 + 10.0)
        mean = self._mean(t + 1, x)
        sides = [-0.5 * (mean - side) ** 2 / spread2 for side in (peak, -peak)]
        found = np.logaddexp(*sides) - LOG_ROOT_TWO_PI - 0.5 * np.log(spread2)
        return np.minimum(found, -LOG_ROOT_TWO_PI - 0.5 * (y - max(y, 0.0)) ** 2)


class Volatility(ssm.StochVol):
    """The library's model and guide; a lookahead that bounds p(y_t | x_{t−1}) by Jensen."""

    def proposal0(self, data: Any) -> Any:
        return self.PX0()

    def logeta(self, t: int, x: np.ndarray, data: Any) -> np.ndarray:
        mean, square = self.EXt(x), data[t + 1] ** 2
        found = -LOG_ROOT_TWO_PI - 0.5 * (mean + square * np.exp(-mean + 0.5 * self.sigma**2))
        return np.minimum(found, -LOG_ROOT_TWO_PI - 0.5 - 0.5 * np.log(square))


MODELS = {"growth": Growth, "volatility": Volatility}


class Peer:
    """Prepared filters by name."""

    def __init__(self) -> None:
        self.prepared: dict[str, dict[str, Any]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply to one request."""
        if "versions" in request:
            return {"particles": version("particles"), "numpy": np.__version__}
        if "prepare" in request:
            model = MODELS[request["model"]](**request["parameters"])
            kind = FILTERS[request["filter"]]
            self.prepared[request["prepare"]] = {
                "fk": kind(ssm=model, data=np.asarray(request["observations"], float)),
                "N": request["num_particles"],
                "ESSrmin": request["ess_threshold"],
            }
            return {"prepared": request["prepare"]}
        if "seed" in request:
            np.random.seed(request["seed"])  # noqa: NPY002 - particles draws from it
        found = particles.SMC(resampling="systematic", **self.prepared[request["run"]])
        found.run()
        return {"log_evidence": float(found.logLt)}


def main() -> None:
    """Answer until the other end closes."""
    # Nothing that a library prints may come between replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr
    peer = Peer()
    for line in sys.stdin:
        try:
            reply = peer.answer(json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
