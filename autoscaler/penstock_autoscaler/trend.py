"""What rate of requests there is, and where it goes: the latest piece of the best piecewise straight line through the counts.

Pure; `forecast` reads it. Counts of successive intervals are cut where their rate jumped (optimal partitioning, Jackson et al. 2005: each
piece costs its Poisson deviance and a fixed price), and a piece is a slope where that explains it much better than a level. So a step is
taken at its new level within an interval or two, a ramp is seen as one, and noise is averaged over as long as nothing changed.
"""

from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

PIECE_PRICE = 14.0
SLOPE_PRICE = 9.0
"""In units of deviance: a jump of 3.7, a slope of 3 standard errors pays for itself."""
_MOST_DISPERSION = 25.0
_LEAST_OF_MEAN = 0.05
"""Of a piece's mean rate is the least that its line says of any interval."""


class Count(msgspec.Struct, frozen=True):
    """Arrivals in an interval."""

    until_s: float
    length_s: float
    arrivals: int


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """The latest piece."""

    rate: float
    """Requests a second at its end."""
    slope: float
    """Requests a second, more each second, less its standard error; 0 for a level."""
    length_s: float
    error: float
    """Standard error of `rate`."""
    dispersion: float
    """Variance of counts ÷ their mean: 1 for Poisson arrivals."""
    pieces: tuple[tuple[float, float], ...] = ()
    """(since_s, requests a second from then on), oldest first: one of each level, one of each interval of a slope."""


def trend(counts: Sequence[Count]) -> Trend:
    """Of contiguous intervals, oldest first; of none: nothing arrives."""
    if not counts:
        return Trend(rate=0.0, slope=0.0, length_s=0.0, error=0.0, dispersion=1.0)
    length_s = np.array([one.length_s for one in counts])
    arrivals = np.array([one.arrivals for one in counts], np.float64)
    middle_s = np.array([one.until_s for one in counts]) - length_s / 2.0
    noise = _dispersion(arrivals, length_s)
    sums = _Sums(arrivals, length_s, middle_s - middle_s[-1], noise)
    starts = sums.starts()
    since_s = [one.until_s - one.length_s for one in counts]
    pieces = tuple((since_s[k], rate) for i, j in pairwise([*starts, len(counts)]) for k, rate in sums.rates(i, j))
    found = sums.trend(starts[-1], counts[-1].until_s - float(middle_s[-1]))
    return msgspec.structs.replace(found, pieces=pieces)


def _dispersion(arrivals: NDArray[np.float64], length_s: NDArray[np.float64]) -> float:
    """From neighbours, so that trends do not count, by the median, so that jumps do not."""
    if len(arrivals) < 8:
        return 1.0
    rates = arrivals / length_s
    pairs = (arrivals[1:] + arrivals[:-1]) / (length_s[1:] + length_s[:-1])
    variance = np.maximum(pairs, 1e-9) * (1.0 / length_s[1:] + 1.0 / length_s[:-1])
    return float(np.clip(np.median(np.diff(rates) ** 2 / variance) / 0.455, 1.0, _MOST_DISPERSION))  # 0.455: median of chi-square 1


class _Sums:
    """Prefix sums, so that the fit of any piece is arithmetic; indices are of intervals, pieces [i, j)."""

    def __init__(self, arrivals: NDArray[np.float64], length_s: NDArray[np.float64], at_s: NDArray[np.float64], noise: float) -> None:
        def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.concatenate([[0.0], np.cumsum(values)])

        self._t, self._n = summed(length_s), summed(arrivals)
        self._tx, self._txx, self._nx = summed(length_s * at_s), summed(length_s * at_s**2), summed(arrivals * at_s)
        with np.errstate(divide="ignore", invalid="ignore"):
            self._nlog = summed(np.where(arrivals > 0, arrivals * np.log(arrivals / length_s), 0.0))
        self._at_s = at_s
        self._noise = noise
        self._count = len(arrivals)

    def _fits(self, i: NDArray[np.int64], j: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(deviance as a level, what a slope would take off it) of pieces [i, j), shape of i."""
        t, n = self._t[j] - self._t[i], self._n[j] - self._n[i]
        mean = n / t
        with np.errstate(divide="ignore", invalid="ignore"):
            level = 2.0 * (self._nlog[j] - self._nlog[i] - np.where(n > 0, n * np.log(mean), 0.0)) / self._noise
            tx, nx = self._tx[j] - self._tx[i], self._nx[j] - self._nx[i]
            sxx = self._txx[j] - self._txx[i] - tx * tx / t
            sxy = nx - tx * mean
            gain = np.where((sxx > 1e-6) & (mean > 0), sxy**2 / np.maximum(sxx, 1e-9) / np.maximum(mean, 1e-9) / self._noise, 0.0)
        return level, np.where(j - i >= 4, gain, 0.0)

    def rates(self, i: int, j: int) -> list[tuple[int, float]]:
        """(first interval, requests a second from there on) of the piece: one of a level, one of each interval of a slope."""
        mean = float((self._n[j] - self._n[i]) / (self._t[j] - self._t[i]))
        if self._fits(np.array([i]), j)[1][0] <= SLOPE_PRICE:
            return [(i, mean)]
        centre, slope, _ = self._line(i, j)
        return [(k, max(_LEAST_OF_MEAN * mean, mean + slope * float(self._at_s[k] - centre))) for k in range(i, j)]

    def _line(self, i: int, j: int) -> tuple[float, float, float]:
        """(its middle in s, its slope, spread of its time) of the straight line through the piece."""
        t, n = self._t[j] - self._t[i], self._n[j] - self._n[i]
        centre = (self._tx[j] - self._tx[i]) / t
        sxx = self._txx[j] - self._txx[i] - centre * centre * t
        return float(centre), float((self._nx[j] - self._nx[i] - centre * n) / sxx), float(sxx)

    def starts(self) -> list[int]:
        """Indices of the first interval of each piece."""
        best = np.zeros(self._count + 1)
        since = np.zeros(self._count + 1, np.int64)
        for j in range(1, self._count + 1):
            i = np.arange(j)
            level, gain = self._fits(i, j)
            cost = best[:j] + level - np.maximum(0.0, gain - SLOPE_PRICE) + PIECE_PRICE
            since[j] = int(np.argmin(cost))
            best[j] = cost[since[j]]
        found: list[int] = []
        j = self._count
        while j > 0:
            j = int(since[j])
            found.append(j)
        return found[::-1]

    def trend(self, since: int, ahead_s: float) -> Trend:
        """Of the piece from `since` on, at `ahead_s` after the middle of the last interval."""
        j = self._count
        t, n = self._t[j] - self._t[since], self._n[j] - self._n[since]
        mean = n / t
        variance = self._noise * max(n, 1.0) / t**2
        slope = 0.0
        rate = mean
        if self._fits(np.array([since]), j)[1][0] > SLOPE_PRICE:
            centre, slope, sxx = self._line(since, j)
            rate = max(0.0, mean + slope * (ahead_s - centre))
            variance += self._noise * mean / sxx * (ahead_s - centre) ** 2
            sure = abs(slope) - float(np.sqrt(self._noise * mean / sxx))
            slope = float(np.copysign(max(0.0, sure), slope))
        return Trend(rate=float(rate), slope=float(slope), length_s=float(t), error=float(np.sqrt(variance)), dispersion=self._noise)
