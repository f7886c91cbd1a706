"""Formation energies by a judge: its energies, less what its elements cost.

A potential's total energies and a database's formation energies have different zeros. They are brought together by energies of
the elements that are fitted to crystals whose formation energies are known; what remains is the judge's own error, which is
kept beside the numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moldiff.errors import BadRequest, DamagedFile

SHIPPED = Path(__file__).parents[1] / "references"
_RIDGE = 1e-3


@dataclass(frozen=True)
class ElementEnergies:
    """Energies of the elements (eV/atom) of one judge.

    ``judge`` names the calculator and its version, ``energies`` maps atomic numbers to energies, ``n`` and ``mae`` (eV/atom) tell
    on how many crystals they were fitted and how far the judge's formation energies then lie from the known ones.
    """

    judge: str
    energies: Mapping[int, float]
    n: int
    mae: float

    def formation_energy(self, numbers: ArrayLike, energy: float) -> float:
        """Return the formation energy (eV/atom) of a crystal that the judge gives ``energy`` (eV/atom); NaN for a new element."""
        z, counts = np.unique(np.asarray(numbers, dtype=np.int64), return_counts=True)
        if any(int(k) not in self.energies for k in z):
            return math.nan
        zero = sum(self.energies[int(k)] * n for k, n in zip(z, counts.tolist(), strict=True)) / counts.sum()
        return float(energy - zero)

    def save(self, path: str | Path) -> Path:
        """Write the energies as JSON."""
        from moldiff.data.store import write_atomically

        path = Path(path)
        energies = {str(z): round(value, 5) for z, value in sorted(self.energies.items())}
        values = {"judge": self.judge, "n": self.n, "mae": round(self.mae, 5), "energies": energies}
        write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())
        return path


def fit_element_energies(
    judge: str, numbers: Sequence[ArrayLike], energies: ArrayLike, formation_energies: ArrayLike
) -> ElementEnergies:
    """Fit the energies of the elements to crystals of known formation energy.

    ``numbers`` [K] are the atomic numbers of each crystal, ``energies`` [K] the judge's and ``formation_energies`` [K] the known
    ones (eV/atom); crystals without a finite value are left out. Least squares, repeated with the crystals that are far off
    weighted down (Huber, 0.1 eV/atom), so that a few wrong ones do not pull.
    """
    y = np.asarray(energies, dtype=np.float64) - np.asarray(formation_energies, dtype=np.float64)
    kept = np.flatnonzero(np.isfinite(y))
    if len(kept) == 0:
        raise BadRequest("no crystal has both an energy and a known formation energy")
    x = np.zeros((len(kept), 119))
    for row, k in enumerate(kept.tolist()):
        x[row] = np.bincount(np.asarray(numbers[k], dtype=np.int64), minlength=119)
    x /= x.sum(1, keepdims=True)
    present = np.flatnonzero(x.any(0))
    a, b = x[:, present], y[kept]
    weights = np.ones(len(b))
    fitted = np.zeros(len(present))
    for _ in range(20):
        w = weights[:, None]
        # The ridge pulls towards the mean energy, which decides only where elements never occur apart.
        fitted = np.linalg.solve(a.T @ (w * a) + _RIDGE * np.eye(len(present)), a.T @ (weights * b) + _RIDGE * b.mean())
        residual = np.abs(a @ fitted - b)
        weights = np.minimum(1.0, 0.1 / np.maximum(residual, 1e-9))
    mae = float(np.abs(a @ fitted - b).mean())
    return ElementEnergies(judge, dict(zip(present.tolist(), fitted.tolist(), strict=True)), len(b), mae)


def load_element_energies(name: str | Path) -> ElementEnergies:
    """Load the energies of a judge by its short name (those that ship) or from a file that ``save`` wrote.

    Raises BadRequest when there is none, DamagedFile for a file that is none.
    """
    path = Path(name)
    if not path.is_file():
        path = SHIPPED / f"{name}_elements.json"
    if not path.is_file():
        known = ", ".join(sorted(p.name.removesuffix("_elements.json") for p in SHIPPED.glob("*_elements.json"))) or "none"
        raise BadRequest(
            f"no energies of the elements for the judge {str(name)!r} (known: {known}); fit them with fit_element_energies"
        )
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        energies = {int(z): float(value) for z, value in values["energies"].items()}
        return ElementEnergies(str(values["judge"]), energies, int(values["n"]), float(values["mae"]))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DamagedFile(f"{path} is not a file of energies of the elements: {error}") from error


def above_hull(numbers: Sequence[ArrayLike], formation_energies: ArrayLike, hull: Any) -> NDArray[np.float64]:
    """Return the energies above a ``hull.Hull`` [K] (eV/atom) of crystals by their formation energies; NaN stays NaN."""
    values = np.asarray(formation_energies, dtype=np.float64)
    return np.array(
        [hull.above(z, float(e)) if math.isfinite(e) else math.nan for z, e in zip(numbers, values.tolist(), strict=True)]
    )
