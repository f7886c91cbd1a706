"""The plots of a report on molecules: distributions of the sets over those of the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from moldiff.chem.molecules import symbols
from moldiff.evaluation.molecules.distributions import by_type
from moldiff.evaluation.molecules.groups import NAMES
from moldiff.evaluation.molecules.sets import SetResult
from moldiff.evaluation.plots import Histograms, Rows, bar_plot, colour_rows, curve_plot
from moldiff.evaluation.reference import Reference

#: Types of bonds, angles and torsions that are drawn: the commonest of the reference.
N_TYPES = 9


def sections(sets: Sequence[SetResult], reference: Reference | None) -> list[tuple[str, str]]:
    """Return title and HTML of each section of plots, the distances type by type behind them."""
    shown: list[tuple[str, Histograms]] = [("data", reference.counts)] if reference is not None and reference.counts else []
    rows: Rows = [*shown, *((s.name, s.values.histograms()) for s in sets)]
    head = colour_rows(rows)
    counted = [
        bar_plot("elements", "element", rows, lambda i: symbols([i])[0]),
        bar_plot("atoms of a molecule", "size", rows, str),
        bar_plot("ring sizes (0: no ring)", "ring_size", rows, str),
        bar_plot("functional groups", "functional_group", rows, lambda i: NAMES[i], slanted=True),
    ]
    found = [("Composition", head + "".join(counted))]
    for title, family, unit in (
        ("Bond lengths by type", "bond_length", "Å"),
        ("Angles by elements", "angle", "degrees"),
        ("Torsions of heavy atoms by central bond", "torsion", "degrees"),
    ):
        drawn = "".join(curve_plot(name, rows, unit, whole=family == "torsion") for name in _commonest(family, rows))
        if drawn:
            found.append((title, head + drawn))
    types = _types(sets, reference)
    return [*found, ("Distances by type", types)] if types else found


def _commonest(family: str, rows: Rows) -> list[str]:
    counts = {
        name: float(h.sum()) for _, histograms in rows[:1] for name, h in histograms.items() if name.startswith(family + "/")
    }
    return sorted(counts, key=lambda name: -counts[name])[:N_TYPES]


def _types(sets: Sequence[SetResult], reference: Reference | None) -> str:
    """The Wasserstein distances type by type, for those who want to know which bond is wrong."""
    if reference is None or not reference.counts:
        return ""
    out = []
    for family, title, unit in (("bond_length", "bonds", "Å"), ("angle", "angles", "°"), ("torsion", "torsions", "°")):
        tables = [by_type(s.values, reference.counts, family) for s in sets]
        head = "".join(f"<th>{escape(s.name)}</th>" for s in sets)
        rows = "".join(
            f"<tr><th>{escape(label)}</th><td>{100 * share:.1f}%</td>"
            + "".join(f"<td>{'–' if math.isnan(t[label][1]) else f'{t[label][1]:.4f}'}</td>" for t in tables)
            + "</tr>"
            for label, (share, _) in tables[0].items()
            if share >= 0.001
        )
        if rows and any(not math.isnan(value) for t in tables for _, value in t.values()):
            out.append(
                f"<details><summary>Wasserstein distances of {title} by type ({unit})</summary><table><thead><tr><th>type</th>"
                f"<th>share in the data</th>{head}</tr></thead><tbody>{rows}</tbody></table></details>"
            )
    return "".join(out)
