"""Plots that both kinds of samples need: histograms of the sets over that of the reference, as curves and bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.evaluation.molecules.distributions import BINS
from moldiff.evaluation.svg import COLOURS, DATA, Series, bars, curves, legend

N_CURVE_BINS = 60
#: Categories that a slanted plot has room for.
N_SLANTED = 24
Array = NDArray[np.float64]
Histograms = Mapping[str, NDArray[Any]]
#: Name of a set and its histograms; the reference is called ``data`` and comes first.
Rows = Sequence[tuple[str, Histograms]]


def colour_rows(rows: Rows) -> str:
    """Name the colours of the sets, as HTML."""
    return legend([Series(name, np.zeros(0), colour) for name, colour in _colours([name for name, _ in rows])])


def bar_plot(title: str, family: str, rows: Rows, category: Callable[[int], str], *, slanted: bool = False) -> str:
    """Draw the shares of categories; of a slanted plot the commonest. An empty text where no set has any."""
    # A set that has no such histogram keeps its place and colour with empty bars.
    shares = [(name, share(h.get(family), BINS[family].n)) for name, h in rows]
    seen = np.flatnonzero(np.sum([s for _, s in shares], axis=0) > 5e-4)
    if not len(seen):
        return ""
    if slanted:
        seen = seen[np.argsort(-shares[0][1][seen], kind="stable")[:N_SLANTED]]
    series = _series([(name, s[seen]) for name, s in shares])
    return bars(title, [category(int(i)) for i in seen], series, slanted=slanted)


def curve_plot(name: str, rows: Rows, unit: str, *, title: str = "", whole: bool = False) -> str:
    """Draw the density of one histogram over the range where its sets are, or over the ``whole`` of its bins."""
    bins = BINS[name.split("/", 1)[0]]
    shares = [(who, share(h.get(name), bins.n)) for who, h in rows]
    together = np.cumsum(np.sum([s for _, s in shares], axis=0))
    if together[-1] == 0:
        return ""
    low, high = 0, bins.n
    if not whole:
        low, high = (int(np.searchsorted(together, q * together[-1])) for q in (0.002, 0.998))
        margin = max(3, (high - low) // 10)
        low, high = max(0, low - margin), min(bins.n, high + margin)
    per_bin = max(1, (high - low) // N_CURVE_BINS)
    high = low + (high - low) // per_bin * per_bin
    x = bins.centres()[low:high].reshape(-1, per_bin).mean(1)
    series = _series([(who, s[low:high].reshape(-1, per_bin).sum(1)) for who, s in shares])
    return curves(title or name.split("/", 1)[1], x, series, unit)


def value_plot(title: str, rows: Sequence[tuple[str, Array]], colours: Mapping[str, str], unit: str) -> str:
    """Draw the densities of bare values [n] of each set; an empty text where there are fewer than five of any."""
    finite = [(name, values[np.isfinite(values)]) for name, values in rows]
    finite = [(name, values) for name, values in finite if len(values) >= 5]
    if not finite:
        return ""
    together = np.concatenate([values for _, values in finite])
    low, high = np.quantile(together, [0.01, 0.99])
    if high <= low:
        return ""
    edges = np.linspace(low, high, 31)
    # Values beyond the ends belong to the ends, so that what is drawn is all there is.
    shares = [(name, np.histogram(values.clip(low, high), edges)[0] / len(values)) for name, values in finite]
    series = [Series(name, values, colours[name]) for name, values in shares]
    return curves(title, (edges[1:] + edges[:-1]) / 2, series, unit)


def colours_of(rows: Rows) -> dict[str, str]:
    """Return the colour of each set."""
    return dict(_colours([name for name, _ in rows]))


def share(histogram: NDArray[Any] | None, n: int) -> Array:
    """Return a histogram as shares of its sum, zeros where there is none."""
    if histogram is None or not histogram.sum():
        return np.zeros(n)
    return np.asarray(histogram, dtype=np.float64) / float(histogram.sum())


def _colours(names: Sequence[str]) -> list[tuple[str, str]]:
    sets = [name for name in names if name != "data"]
    data = [("data", DATA)] if len(sets) < len(names) else []
    return [*data, *((name, COLOURS[i % len(COLOURS)]) for i, name in enumerate(sets))]


def _series(rows: Sequence[tuple[str, Array]]) -> list[Series]:
    colours = dict(_colours([name for name, _ in rows]))
    return [Series(name, values, colours[name], filled=name == "data") for name, values in rows]
