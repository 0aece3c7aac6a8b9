"""Quotients of the glottal cycle, and the harmonics-to-noise ratio."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from scipy import signal

from bayesdiv.diagnostics._epoch_metrics import LONGEST_CYCLE, SHORTEST_CYCLE, checked_instants
from bayesdiv.diagnostics._epoch_signals import checked_signal, parabolic_peak

__all__ = ["GlottalQuotients", "glottal_quotients", "harmonics_to_noise_ratio"]

_CYCLES_AT_ONCE = 4
# Beyond it, 90 dB, rounding decides.
_LARGEST_PERIODICITY = 1.0 - 1e-9


class GlottalQuotients(NamedTuple):
    """One value a cycle, ``(cycles,)``.

    They depend on the detector and its smoothing: compare only within one.

    Parameters
    ----------
    contact
        CQ = (o − c) / (c′ − c), with closure c, opening o and next closure c′.
    open
        OQ = (c′ − o) / (c′ − c) = 1 − CQ.
    speed
        SQ = (m − o) / (c′ − m): the open pulse's rise over its fall, with m where contact is least.
    """

    contact: np.ndarray
    open: np.ndarray
    speed: np.ndarray


def glottal_quotients(egg: Any, closures: Any, openings: Any, rate: float) -> GlottalQuotients:
    """Contact, open and speed quotients by the usual definitions.

    Some published code calls CQ what is OQ here, and inverts SQ.

    Parameters
    ----------
    egg
        ``(n,)``, rising with contact.
    closures, openings
        In samples, ascending. A cycle counts if it is from 2 to 50 ms long and has exactly one
        opening.
    rate
        Samples a second.

    Raises
    ------
    ValueError
        If the EGG is not one finite channel, or instants are not ascending or outside it.

    Warns
    -----
    UserWarning
        If no cycle counts; each quotient is then one NaN.
    """
    contact = checked_signal("egg", egg)
    closed, opened = checked_instants("closures", closures), checked_instants("openings", openings)
    for name, instants in (("closures", closed), ("openings", opened)):
        if len(instants) and not 0.0 <= instants[0] <= instants[-1] <= len(contact) - 1:
            raise ValueError(
                f"{name} must lie within the EGG, from 0 to {len(contact) - 1} samples, got "
                f"{instants[0]:.1f} to {instants[-1]:.1f}."
            )
    length = np.diff(closed)
    first = np.searchsorted(opened, closed[:-1], side="right")
    one = np.searchsorted(opened, closed[1:], side="left") - first == 1
    counted = one & (length >= SHORTEST_CYCLE * rate) & (length <= LONGEST_CYCLE * rate)
    if not counted.any():
        warnings.warn(
            f"no larynx cycle of 2 to 50 ms with one opening, among {len(closed)} closures; "
            "quotients are NaN.",
            stacklevel=2,
        )
        return GlottalQuotients(*(np.array([np.nan]) for _ in range(3)))
    start, end = closed[:-1][counted], closed[1:][counted]
    middle = opened[first[counted]]
    lowest = np.array(
        [_least(contact, before, after) for before, after in zip(middle, end, strict=True)]
    )
    quotient = (middle - start) / (end - start)
    return GlottalQuotients(quotient, 1.0 - quotient, (lowest - middle) / (end - lowest))


def _least(contact: np.ndarray, start: float, end: float) -> float:
    first, last = int(np.ceil(start)), int(np.floor(end))
    if last <= first:
        return 0.5 * (start + end)
    lowest = parabolic_peak(-contact, first + int(np.argmin(contact[first : last + 1])))
    # Strictly inside, so that no quotient is 0 or infinite.
    margin = 1e-3 * (end - start)
    return float(np.clip(lowest, start + margin, end - margin))


def harmonics_to_noise_ratio(
    waveform: Any, closures: Any, rate: float, *, compensation: str = "window"
) -> float:
    r"""Mean over stretches of four cycles of 10 log₁₀(r / (1 − r)), in dB.

    r is the largest normalised autocorrelation at lags from half a period to one and a half, of the
    stretch without its mean in a Hann window w. The window alone lowers it: of a perfectly periodic
    signal only about

    .. math:: (1 - \tau)(\tfrac23 + \tfrac13 \cos 2 \pi \tau) + \frac{\sin 2 \pi \tau}{2 \pi}
              = 0.65916, \quad \tau = \tfrac14

    is left at one period, which is 2.86 dB.

    Parameters
    ----------
    waveform
        ``(n,)``, speech or EGG.
    closures
        In samples, ascending, which give the periods; stretches follow each other without overlap,
        and all of them count.
    rate
        Samples a second.
    compensation
        ``"window"``: divided by the window's autocorrelation, after Boersma. Energy that is not
        spread evenly over a cycle leaves r uncertain by half a per cent, so that results above
        20 dB mean little; r above 1 becomes 1 / r. ``"energy"``: divided by the root of the
        energies of both factors, weighted by w(t) w(t + lag); 1 for every periodic signal.
        ``"none"``: with the ceiling.

    Raises
    ------
    ValueError
        If the waveform is not one finite channel, closures are not ascending, or the compensation
        is unknown.

    Warns
    -----
    UserWarning
        If there are no four cycles of 2 to 50 ms on end; the result is then NaN.

    References
    ----------
    Boersma (1993), "Accurate short-term analysis of the fundamental frequency and the
    harmonics-to-noise ratio of a sampled sound", equations 4 and 9.
    """
    if compensation not in ("window", "energy", "none"):
        raise ValueError(f"compensation must be window, energy or none; got {compensation!r}.")
    values = checked_signal("waveform", waveform)
    instants = checked_instants("closures", closures)
    length = np.diff(instants)
    usable = (length >= SHORTEST_CYCLE * rate) & (length <= LONGEST_CYCLE * rate)
    ratios, position = [], 0
    while position + _CYCLES_AT_ONCE < len(instants):
        if usable[position : position + _CYCLES_AT_ONCE].all():
            first, last = (
                int(np.rint(instants[index])) for index in (position, position + _CYCLES_AT_ONCE)
            )
            if first >= 0 and last <= len(values) and np.ptp(values[first:last]) > 0.0:
                periodic = _periodicity(values[first:last], compensation)
                ratios.append(10.0 * np.log10(periodic / (1.0 - periodic)))
            position += _CYCLES_AT_ONCE
        else:
            position += 1
    if not ratios:
        warnings.warn(
            f"no four larynx cycles of 2 to 50 ms on end, among {len(instants)} closures; the "
            "harmonics-to-noise ratio is NaN.",
            stacklevel=2,
        )
        return float("nan")
    return float(np.mean(ratios))


def _periodicity(stretch: np.ndarray, compensation: str) -> float:
    count = len(stretch)
    values = stretch - stretch.mean()
    # Of exactly count intervals, as the closed form has it.
    window = signal.windows.hann(count, sym=False)
    correlation = _correlation(values * window, values * window)
    if compensation == "energy":
        energy = window * values**2
        both = _correlation(energy, window) * _correlation(window, energy)
        correlation = correlation / np.sqrt(both)
    else:
        correlation = correlation / correlation[0]
    if compensation == "window":
        expected = _correlation(window, window)
        correlation = correlation * (expected[0] / expected)
    period = count / _CYCLES_AT_ONCE
    first, last = int(np.ceil(0.5 * period)), int(np.floor(1.5 * period))
    top = first + int(np.argmax(correlation[first : last + 1]))
    height = correlation[top]
    if first < top < last:
        left, right = correlation[top - 1], correlation[top + 1]
        bend = left - 2.0 * height + right
        height -= 0.125 * (left - right) ** 2 / bend if bend < 0.0 else 0.0
    if height > 1.0:
        height = 1.0 / height
    return float(np.clip(height, 1.0 - _LARGEST_PERIODICITY, _LARGEST_PERIODICITY))


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Sum over t of first(t) second(t + lag), at lags up to half the length."""
    full = signal.correlate(second, first, method="fft")[len(first) - 1 :]
    return full[: len(first) // 2 + 1]
