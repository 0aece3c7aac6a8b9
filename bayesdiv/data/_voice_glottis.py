r"""One cycle of the vocal folds: contact and flow as functions of phase.

Kinematics of the folds' medial surface after Titze (1984), "Parameterization of the glottal area,
glottal flow, and vocal fold contact area": a wave travels up the surface while the folds swing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit

__all__ = ["CONTACT_SOFTNESS", "GlottalCycle", "NUM_PHASES", "glottal_cycle"]

NUM_PHASES = 720
_NUM_LENGTHWISE, _NUM_UPWARD = 33, 33
CONTACT_SOFTNESS = 0.02
# Air leaks through breathy folds all the time; the pulse is what rises above this share.
_OPEN_SHARE = 0.02


class GlottalCycle(NamedTuple):
    """Contact and flow over one cycle, and where in it the events are.

    Parameters
    ----------
    contact
        Share of the surface that touches, ``(NUM_PHASES,)``, at phases 0, 1/720, ….
    flow
        Volume velocity, largest 1, ``(NUM_PHASES,)``.
    closure, opening
        Phases of the steepest rise and fall of contact, in [0, 1).
    excitation
        Phase of the steepest fall of flow.
    """

    contact: np.ndarray
    flow: np.ndarray
    closure: float
    opening: float
    excitation: float

    @property
    def contact_quotient(self) -> float:
        """From closure to opening, as a share of the cycle."""
        return (self.opening - self.closure) % 1.0


def glottal_cycle(rest: float, convergence: float, lag: float, skew: float) -> GlottalCycle:
    r"""Tables of one cycle.

    Half the gap between the folds is

    .. math:: \xi(y, v, \varphi) = [x_0 + c (\tfrac12 - v)] (0.35 + 0.65 y)
              + \sin(\pi y) \sin(2 \pi \varphi - \ell (v - \tfrac12))

    with y from front to back and v from bottom to top. Contact is the mean of σ(−ξ/0.02), area the
    mean over y of 2 max(min over v of ξ, 0). Flow is the area with its open interval warped by
    s → s^κ, κ = log ½ / log skew, so that it rises slowly and falls fast.

    Parameters
    ----------
    rest
        x₀, the half-gap at rest in units of the amplitude; negative where folds are pressed.
    convergence
        c, how much wider the bottom is than the top.
    lag
        ℓ in radians, of the surface wave from bottom to top.
    skew
        Where in the open interval the flow is largest, in (½, 1).

    Raises
    ------
    ValueError
        If the folds never touch or never part.
    """
    lengthwise = (np.arange(_NUM_LENGTHWISE) + 0.5) / _NUM_LENGTHWISE
    upward = (np.arange(_NUM_UPWARD) + 0.5) / _NUM_UPWARD
    phase = np.arange(NUM_PHASES) / NUM_PHASES
    still = (rest + convergence * (0.5 - upward)) * (0.35 + 0.65 * lengthwise[:, None])
    swing = np.sin(2.0 * np.pi * phase[:, None] - lag * (upward - 0.5))
    # Single precision moves instants by 1e-5 of a cycle, in half the time.
    rise = np.sin(np.pi * lengthwise).astype(np.float32)[:, None]
    half_gap = rise * swing.astype(np.float32)[:, None] + still.astype(np.float32)
    area = 2.0 * np.maximum(half_gap.min(axis=2), 0.0).mean(axis=1, dtype=np.float64)
    half_gap *= np.float32(-1.0 / CONTACT_SOFTNESS)
    contact = expit(half_gap, out=half_gap).mean(axis=(1, 2), dtype=np.float64)
    if np.ptp(contact) < 0.05 or np.ptp(area) < 0.05:
        raise ValueError(
            f"the folds must touch and part in each cycle, which they do not with rest={rest!r} "
            f"and convergence={convergence!r}; bring rest closer to 0."
        )
    flow = _skewed(area, skew)
    slope = _slope(contact)
    return GlottalCycle(
        contact, flow, _phase_of_peak(slope), _phase_of_peak(-slope), _phase_of_peak(-_slope(flow))
    )


def _skewed(area: np.ndarray, skew: float) -> np.ndarray:
    level = area.min() + _OPEN_SHARE * np.ptp(area)
    start = int(np.argmin(area))
    turned = np.roll(area, -start)
    inside = np.flatnonzero(turned > level)
    first, last = inside[0] - 1, inside[-1] + 1
    position = np.arange(len(area), dtype=np.float64)
    share = np.clip((position - first) / (last - first), 0.0, 1.0)
    warped = first + (last - first) * share ** (np.log(0.5) / np.log(skew))
    flow = np.interp(warped, position, np.maximum(turned, level), period=len(area))
    return np.roll(flow / flow.max(), start)


def _slope(table: np.ndarray) -> np.ndarray:
    return np.roll(table, -1) - np.roll(table, 1)


def _phase_of_peak(table: np.ndarray) -> float:
    """Phase of the maximum, by a parabola through its neighbours."""
    top = int(np.argmax(table))
    left, middle, right = table[[top - 1, top, (top + 1) % len(table)]]
    bend = left - 2.0 * middle + right
    shift = 0.5 * (left - right) / bend if bend < 0.0 else 0.0
    return float((top + shift) / len(table) % 1.0)
