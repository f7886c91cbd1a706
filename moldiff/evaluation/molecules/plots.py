"""The plots of a report on molecules: distributions of the sets over those of the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from moldiff.evaluation.molecules.distributions import BINS
from moldiff.evaluation.molecules.groups import NAMES
from moldiff.evaluation.molecules.sets import SetResult
from moldiff.evaluation.reference import Reference
from moldiff.evaluation.svg import COLOURS, DATA, Series, bars, curves, legend

#: Types of bonds, angles and torsions that are drawn: the commonest of the reference.
N_TYPES = 9
N_CURVE_BINS = 60
Array = NDArray[np.float64]


def sections(sets: Sequence[SetResult], reference: Reference | None) -> list[tuple[str, str]]:
    """Return title and HTML of each section of plots."""
    rows = [(s.name, s.values.histograms()) for s in sets]
    known: Mapping[str, NDArray[np.int64]] = {} if reference is None else reference.counts
    shown = [("data", known)] if known else []
    names = [Series(name, np.zeros(0), colour) for name, colour in _colours(len(shown), [n for n, _ in rows])]
    all_rows: list[tuple[str, Mapping[str, NDArray[np.int64] | Array]]] = [*shown, *rows]
    head = legend(names)
    counted = [
        _bar_plot("elements", "element", all_rows),
        _bar_plot("atoms of a molecule", "size", all_rows),
        _bar_plot("ring sizes (0: no ring)", "ring_size", all_rows),
        _bar_plot("functional groups", "functional_group", all_rows),
    ]
    found = [("Composition", head + "".join(p for p in counted if p))]
    for title, family, unit in (
        ("Bond lengths by type", "bond_length", "Å"),
        ("Angles by elements", "angle", "degrees"),
        ("Torsions of heavy atoms by central bond", "torsion", "degrees"),
    ):
        drawn = "".join(_curve_plot(name, family, all_rows, unit) for name in _commonest(family, all_rows))
        if drawn:
            found.append((title, head + drawn))
    return found


def _colours(n_data: int, names: list[str]) -> list[tuple[str, str]]:
    data = [("data", DATA)] if n_data else []
    return [*data, *((name, COLOURS[i % len(COLOURS)]) for i, name in enumerate(names))]


def _series(rows: Sequence[tuple[str, NDArray[np.float64]]]) -> list[Series]:
    data = any(name == "data" for name, _ in rows)
    colours = dict(_colours(int(data), [name for name, _ in rows if name != "data"]))
    return [Series(name, values, colours[name], filled=name == "data") for name, values in rows]


def _commonest(family: str, rows: Sequence[tuple[str, Mapping[str, NDArray[np.int64] | Array]]]) -> list[str]:
    counts: dict[str, float] = {}
    for _, histograms in rows[:1]:
        for name, histogram in histograms.items():
            if name.startswith(family + "/"):
                counts[name] = counts.get(name, 0.0) + float(histogram.sum())
    return sorted(counts, key=lambda name: -counts[name])[:N_TYPES]


def _bar_plot(title: str, family: str, rows: Sequence[tuple[str, Mapping[str, NDArray[np.int64] | Array]]]) -> str:
    # A set that has no such histogram keeps its place and colour with empty bars.
    shares = [(name, _share(h.get(family), BINS[family].n)) for name, h in rows]
    seen = np.flatnonzero(np.sum([s for _, s in shares], axis=0) > 5e-4)
    if not len(seen):
        return ""
    categories = [_category(family, int(i)) for i in seen]
    slanted = family == "functional_group"
    if slanted:
        order = np.argsort(-shares[0][1][seen], kind="stable")[:24]
        seen, categories = seen[order], [categories[i] for i in order.tolist()]
    return bars(title, categories, _series([(name, s[seen]) for name, s in shares]), slanted=slanted)


def _curve_plot(name: str, family: str, rows: Sequence[tuple[str, Mapping[str, NDArray[np.int64] | Array]]], unit: str) -> str:
    bins = BINS[family]
    shares = [(who, _share(h.get(name), bins.n)) for who, h in rows]
    together = np.cumsum(np.sum([s for _, s in shares], axis=0))
    if family == "torsion":
        low, high = 0, bins.n
    else:
        low, high = (int(np.searchsorted(together, q * together[-1])) for q in (0.002, 0.998))
        margin = max(3, (high - low) // 10)
        low, high = max(0, low - margin), min(bins.n, high + margin)
    per_bin = max(1, (high - low) // N_CURVE_BINS)
    high = low + (high - low) // per_bin * per_bin
    x = bins.centres()[low:high].reshape(-1, per_bin).mean(1)
    series = _series([(who, s[low:high].reshape(-1, per_bin).sum(1)) for who, s in shares])
    return curves(name.split("/", 1)[1], x, series, unit)


def _share(histogram: NDArray[np.int64] | Array | None, n: int) -> Array:
    if histogram is None or not histogram.sum():
        return np.zeros(n)
    return np.asarray(histogram, dtype=np.float64) / float(histogram.sum())


def _category(family: str, index: int) -> str:
    from moldiff.chem.molecules import symbols

    if family == "element":
        return symbols([index])[0]
    return NAMES[index] if family == "functional_group" else str(index)
