"""Objectives for NumPyro's SVI."""

from bayesdiv.numpyro._objective import DivergenceELBO, objective
from bayesdiv.numpyro._pytrees import register_divergence
from bayesdiv.numpyro._state import StatefulGuide

__all__ = ["DivergenceELBO", "StatefulGuide", "objective", "register_divergence"]
