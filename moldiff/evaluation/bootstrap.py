"""95 % intervals by the bootstrap over samples.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", Chapman & Hall 1993; Davison and Hinkley, "Bootstrap Methods
and their Application", Cambridge 1997; Clopper and Pearson, Biometrika 26, 404 (1934).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_RESAMPLES = 1000
LEVEL = 0.95
#: Numbers held at once by a block of resamples.
_BLOCK = 8_000_000
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval ``low`` .. ``high`` at 95 %, from ``n`` samples, and the ``method`` of the interval."""

    value: float
    low: float
    high: float
    n: int
    method: str = "bootstrap"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, where a number that does not exist is None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Estimate:
        """Rebuild an estimate from ``to_dict``."""
        known = {k: math.nan if values.get(k) is None else float(values[k]) for k in ("value", "low", "high")}
        return cls(**known, n=int(values["n"]), method=str(values.get("method", "bootstrap")))


def resamples(n: int, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yield blocks [b, n] of how often each of n samples is drawn, ``n_resamples`` rows in all, the same for a seed."""
    rng = np.random.default_rng(seed)
    block = max(1, min(n_resamples, _BLOCK // max(n, 1)))
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        draws = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(draws.ravel(), minlength=size * n).reshape(size, n)


def ratio(top: Array, bottom: Array, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Estimate:
    """Estimate sum(top) / sum(bottom), samples resampled as a whole: a rate, or a mean where ``bottom`` is one.

    ``top`` and ``bottom`` [n]. A rate that is exactly 0 or 1 does not vary under resampling; it gets the Clopper-Pearson bound
    on the share of samples that are otherwise instead (``method`` = "exact").
    """
    n = int(np.count_nonzero(bottom))
    total = float(bottom.sum())
    if total == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = float(top.sum()) / total
    if (top == bottom).all() or not top.any():
        edge = 1 - ((1 - LEVEL) / 2) ** (1 / n)
        return Estimate(value, max(0.0, value - edge), min(1.0, value + edge), n, "exact")
    used = bottom != 0
    top, bottom = top[used], bottom[used]
    draws = np.concatenate([(w @ top) / (w @ bottom) for w in resamples(n, n_resamples, seed)])
    return _percentile(value, draws, n)


def mean(values: Array, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Estimate:
    """Estimate the mean of the finite ``values`` [n]."""
    values = values[np.isfinite(values)]
    return ratio(values, np.ones(len(values)), n_resamples=n_resamples, seed=seed)


def median(values: Array, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Estimate:
    """Estimate the median of ``values`` [n]: NaN stands for no value, infinity for one worse than all others."""
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    order = np.sort(values)
    rng = np.random.default_rng(seed)
    draws = np.sort(order[rng.integers(n, size=(n_resamples, n))], axis=1)
    lower, upper = draws[:, (n - 1) // 2], draws[:, n // 2]
    # Where both middle values are infinite their mean is; subtracting infinities would give NaN.
    middle = np.where(lower == upper, lower, (lower + upper) / 2)
    a, b = float(order[(n - 1) // 2]), float(order[n // 2])
    tail = (1 - LEVEL) / 2
    low, high = (float(np.quantile(middle, q, method="nearest")) for q in (tail, 1 - tail))
    return Estimate(a if a == b else (a + b) / 2, low, high, n)


def distance(
    value: float, n: int, statistic: Callable[[NDArray[np.int64]], float], *, n_resamples: int = 200, seed: int = 0
) -> Estimate:
    """Estimate a distance whose value for given weights [n] of the samples is ``statistic(weights)``.

    Resampling adds noise, and noise adds to a distance, so plain percentiles would lie too high: the spread of the resampled
    values about their own mean is put around the estimate. The bias that the estimate itself has at small n stays in it; the
    data column, taken at the same n, shows how large it is. Bounds below zero become zero.
    """
    if n == 0 or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan, n)
    draws = np.array([statistic(w) for block in resamples(n, n_resamples, seed) for w in block])
    draws = draws[np.isfinite(draws)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]) - draws.mean() if len(draws) else (math.nan, math.nan)
    return Estimate(value, max(0.0, float(value + low)), max(0.0, float(value + high)), n, "centred bootstrap")


def _percentile(value: float, draws: Array, n: int) -> Estimate:
    tail = (1 - LEVEL) / 2
    finite = draws[np.isfinite(draws)]
    low, high = np.quantile(finite, [tail, 1 - tail]) if len(finite) else (math.nan, math.nan)
    return Estimate(value, float(low), float(high), n)
