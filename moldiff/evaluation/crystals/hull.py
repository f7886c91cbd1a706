"""Energy above the convex hull of known phases, from a file of formation energies.

The hull's energy at a composition is the least energy of any mixture of entries that has it: a small linear program over the
entries of the chemical system, whose solution is that of the geometric construction (Ong et al., Chem. Mater. 20, 1798 (2008)).
"""

from __future__ import annotations

import csv
import gzip
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moldiff.chem.formula import parse_formula
from moldiff.errors import BadRequest, DamagedFile

#: Columns of a hull file: the formula (of a cell or reduced) and the formation energy in eV/atom.
FORMULA_COLUMNS = ("cell_formula", "formula", "composition", "pretty_formula")
ENERGY_COLUMNS = ("formation_energy_per_atom", "formation_energy")
_ELEMENTS = 119


@dataclass(frozen=True)
class HullPoint:
    """The hull at one composition: its ``energy`` (eV/atom) and the entries that a crystal there would decompose into."""

    energy: float
    decomposition: Mapping[str, float]


class Hull:
    """A convex hull of formation energies.

    ``fractions`` [K, 119] are atomic fractions by atomic number, ``energies`` [K] formation energies (eV/atom), ``names`` label
    the entries. The elements themselves have formation energy 0 and are added where the entries lack them.
    """

    def __init__(self, fractions: NDArray[np.float64], energies: NDArray[np.float64], names: Sequence[str]) -> None:
        lowest: dict[bytes, int] = {}
        keys = np.round(fractions, 6)
        for k in np.argsort(energies, kind="stable").tolist():
            # Of several entries of one composition only the lowest can be on the hull.
            lowest.setdefault(keys[k].tobytes(), k)
        kept = sorted(lowest.values())
        self.fractions, self.energies = fractions[kept], energies[kept]
        self.names = [names[k] for k in kept]
        # Each entry's elements as one integer: an entry lies in a chemical system when it has no bit outside it.
        self._bits = [sum(1 << z for z in np.flatnonzero(row).tolist()) for row in self.fractions]
        self._by_element: defaultdict[int, list[int]] = defaultdict(list)
        for k, row in enumerate(self.fractions):
            self._by_element[int(np.flatnonzero(row)[0])].append(k)

    def __len__(self) -> int:
        return len(self.energies)

    def at(self, numbers: ArrayLike) -> HullPoint:
        """Return the hull at the composition of atomic numbers [N]; raises ValueError where a number is outside 1..118."""
        counts = np.bincount(np.asarray(numbers, dtype=np.int64), minlength=_ELEMENTS)
        if len(counts) > _ELEMENTS or counts[0] or not counts.any():
            raise ValueError("atomic numbers must lie in 1..118")
        divisor = int(np.gcd.reduce(counts[counts > 0]))
        elements = np.flatnonzero(counts)
        return self._solve(tuple(zip(elements.tolist(), (counts[elements] // divisor).tolist(), strict=True)))

    def above(self, numbers: ArrayLike, formation_energy: float) -> float:
        """Return how far a formation energy (eV/atom) lies above the hull at a composition; negative for a new stable phase."""
        return formation_energy - self.at(numbers).energy

    @lru_cache(maxsize=100_000)  # noqa: B019 - a hull lives as long as the evaluation that made it
    def _solve(self, composition: tuple[tuple[int, int], ...]) -> HullPoint:
        from scipy.optimize import linprog

        elements = [z for z, _ in composition]
        bits = sum(1 << z for z in elements)
        inside = [k for z in elements for k in self._by_element[z] if self._bits[k] & ~bits == 0]
        amounts = np.array([n for _, n in composition], dtype=np.float64)
        # The elements themselves are always there, so that every composition can be reached.
        columns = np.vstack([self.fractions[np.ix_(inside, elements)], np.eye(len(elements))])
        energies = np.concatenate([self.energies[inside], np.zeros(len(elements))])
        found = linprog(energies, A_eq=columns.T, b_eq=amounts / amounts.sum(), bounds=(0, None), method="highs")
        if found.status != 0:
            return HullPoint(math.nan, {})
        from ase.data import chemical_symbols

        names = [self.names[k] for k in inside] + [chemical_symbols[z] for z in elements]
        parts: dict[str, float] = {}
        for name, share in zip(names, found.x.tolist(), strict=True):
            if share > 1e-6:
                parts[name] = parts.get(name, 0.0) + share
        return HullPoint(float(found.fun), parts)


def load_hull(path: str | Path) -> Hull:
    """Read a hull file: CSV, also gzipped, with a formula and a formation energy (eV/atom) in each row.

    Columns are found by name (``FORMULA_COLUMNS``, ``ENERGY_COLUMNS``). Raises BadRequest for a file that does not exist or has
    no such columns, DamagedFile for a row that can't be read.
    """
    path = Path(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise BadRequest(f"the hull file {path} does not exist") from error
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DamagedFile(f"the hull file {path} can't be read: {error}") from error
    columns = list(rows[0]) if rows else []
    formula = next((name for name in FORMULA_COLUMNS if name in columns), None)
    energy = next((name for name in ENERGY_COLUMNS if name in columns), None)
    if formula is None or energy is None:
        needed = f"one of {', '.join(FORMULA_COLUMNS)} and one of {', '.join(ENERGY_COLUMNS)}"
        raise BadRequest(f"the hull file {path} needs the columns {needed} (it has: {', '.join(columns) or 'none'})")
    fractions = np.zeros((len(rows), _ELEMENTS))
    energies = np.zeros(len(rows))
    names = []
    for k, row in enumerate(rows):
        try:
            counts = parse_formula(row[formula])
            energies[k] = float(row[energy])
        except (ValueError, TypeError) as error:
            raise DamagedFile(f"the hull file {path}, row {k + 2}: {error}") from error
        for z, n in counts.items():
            fractions[k, z] = n
        names.append(str(row.get("material_id") or row[formula]))
    fractions /= fractions.sum(1, keepdims=True)
    known = np.isfinite(energies)
    return Hull(fractions[known], energies[known], [name for name, ok in zip(names, known.tolist(), strict=True) if ok])
