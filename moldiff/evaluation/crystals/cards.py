"""What a report shows of crystals: distributions, and single samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.evaluation.cards import Card
from moldiff.evaluation.crystals.drawings import cell_model, cell_svg
from moldiff.evaluation.crystals.sets import CrystalSetResult
from moldiff.evaluation.plots import Histograms, Rows, bar_plot, colour_rows, colours_of, curve_plot, value_plot
from moldiff.evaluation.reference import Reference

#: Columns of values that are drawn where they were computed, their titles and units.
_COLUMNS = (
    ("e_above_hull", "energy above hull, relaxed", "eV/atom"),
    ("e_above_hull_raw", "energy above hull, as generated", "eV/atom"),
    ("rmsd_to_relaxed", "RMSD to relaxed", "Å"),
    ("volume_change", "relative change of volume in relaxation", ""),
    ("rms_to_truth", "RMS distance of matches, (V/N)^(1/3)", ""),
)


def sections(sets: Sequence[CrystalSetResult], reference: Reference | None) -> list[tuple[str, str]]:
    """Return title and HTML of each section of plots."""
    from ase.data import chemical_symbols

    shown: list[tuple[str, Histograms]] = [("data", reference.counts)] if reference is not None and reference.counts else []
    rows: Rows = [*shown, *((s.name, s.values.histograms()) for s in sets)]
    head = colour_rows(rows)
    plots = [
        curve_plot("density/all", rows, "g/cm³", title="density"),
        curve_plot("volume_per_atom/all", rows, "Å³", title="volume per atom"),
        bar_plot("number of elements", "n_elements", _plain(rows), str),
        bar_plot("atoms of a cell", "size", rows, str),
        bar_plot("elements, the commonest of the data", "element", rows, lambda i: str(chemical_symbols[i]), slanted=True),
        bar_plot("space groups (0.1 Å), the commonest of the data", "space_group", rows, _group, slanted=True),
    ]
    found = [("Distributions of the structurally valid samples", head + "".join(plots))]
    colours = colours_of(rows)
    values = [value_plot(t, [(s.name, _column(s, name)) for s in sets], colours, unit) for name, t, unit in _COLUMNS]
    return [*found, ("Energies, relaxation and matches", head + "".join(values))] if any(values) else found


def card(found: CrystalSetResult, index: int) -> Card:
    """Show one sample."""
    one = found.samples[index]
    verdict = one.verdict
    text = verdict.formula or "–"
    if verdict.structure_valid:
        text += f" · {verdict.symbol} · {verdict.n_atoms} atoms"
        state = "valid" if verdict.composition_valid is not False else "charges do not balance"
        extra = {name: column[index] for name, column in found.extra.items()}
        state += _more(extra)
    else:
        state = verdict.reason
    svg, model = ("", {}) if one.crystal is None else (cell_svg(one.crystal), cell_model(one.crystal))
    true = found.true[index] if found.true else None
    return Card(verdict.name, text, state, verdict.valid, svg, model, "" if true is None else cell_svg(true))


def _more(extra: dict[str, Any]) -> str:
    """Say in a few words what else is known of a sample."""
    rms, above = extra.get("rms_to_truth"), extra.get("e_above_hull")
    if extra.get("truth") is not None:
        return "; no match" if rms is None or not np.isfinite(rms) else f"; match, RMS {rms:.3f}"
    if above is not None and np.isfinite(above):
        return f"; {above:+.3f} eV/atom"
    return ""


def _column(found: CrystalSetResult, name: str) -> NDArray[np.float64]:
    values = found.extra.get(name, [])
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _plain(rows: Rows) -> Rows:
    """Call the only histogram of a family by the family's name."""
    return [(name, {**h, "n_elements": h["n_elements/all"]} if "n_elements/all" in h else h) for name, h in rows]


def _group(number: int) -> str:
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    try:
        return f"{sg_symbol_from_int_number(number)} ({number})"
    except ValueError:
        return str(number)
