"""GFN2-xTB: single-point properties of a molecule as it is, and what a relaxation does to it.

Source: Bannwarth, Ehlert and Grimme, J. Chem. Theory Comput. 15, 1652 (2019), as in tblite, relaxed with ASE's BFGS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moldiff.chem.bonds import Bonds, check_geometry
from moldiff.errors import MoldiffError
from moldiff.evaluation.cache import ResultCache, structure_key
from moldiff.evaluation.molecules.geometry import (
    bond_angles,
    bond_lengths,
    internals,
    rmsd,
    torsion_angles,
    torsion_difference,
)
from moldiff.evaluation.parallel import Progress, map_items

#: A relaxation ends when no force exceeds this (eV/Å): 0.01 lies within 0.01 kcal/mol of 0.005, 0.05 is 0.05 kcal/mol short.
FORCE = 0.01
MAX_STEPS = 400
#: Seconds a molecule may take before it is given up.
TIME_LIMIT = 60.0
KCAL_PER_EV = 23.060547830619
DEBYE = 2.5417464519
_VERSION = "gfn2-1"


@dataclass(frozen=True)
class XtbTask:
    """One molecule to compute: ``numbers`` [N], ``positions`` [N, 3] (Å), total ``charge``, ``bonds`` for the changes."""

    numbers: NDArray[Any]
    positions: NDArray[Any]
    charge: int = 0
    bonds: Bonds | None = None
    relax: bool = True

    def key(self) -> str:
        """Return the key under which the result is cached."""
        pairs = [] if self.bonds is None else self.bonds.index.tolist()
        kind = f"{_VERSION} {'relax' if self.relax else 'point'}"
        return structure_key(kind, self.numbers, self.positions, self.charge, pairs, FORCE, MAX_STEPS)


@dataclass(frozen=True)
class XtbResult:
    """The outcome for one molecule; numbers are NaN where there are none, and ``reason`` says why.

    ``energy``, ``homo``, ``lumo``, ``gap`` (eV) and ``dipole`` (D) belong to the geometry as it came; ``relaxation_energy``
    (kcal/mol, positive) is what relaxing gains, ``rmsd`` (Å) how far the atoms move (all atoms, after superposition, equivalent
    atoms not permuted); ``bond_change`` (Å), ``angle_change`` and ``torsion_change`` (degrees) are mean absolute changes.
    """

    energy: float = math.nan
    homo: float = math.nan
    lumo: float = math.nan
    gap: float = math.nan
    dipole: float = math.nan
    relaxation_energy: float = math.nan
    rmsd: float = math.nan
    bond_change: float = math.nan
    angle_change: float = math.nan
    torsion_change: float = math.nan
    n_steps: int = 0
    converged: bool = False
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, None for NaN."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> XtbResult:
        """Rebuild a result from ``to_dict``."""
        known: dict[str, Any] = {k: math.nan if v is None else v for k, v in values.items()}
        return cls(**known)


def xtb(
    tasks: Sequence[XtbTask],
    *,
    n_processes: int | None = None,
    time_limit: float = TIME_LIMIT,
    cache: ResultCache | None = None,
    progress: Progress | None = None,
) -> list[XtbResult]:
    """Compute many molecules in processes that are killed after ``time_limit`` seconds a molecule.

    Results of earlier runs are taken from ``cache``; failures are kept as results with a reason. Time limits are not cached,
    so that a slower machine spoils nothing. Raises MoldiffError when tblite is not installed.
    """
    require_tblite()
    known: dict[int, XtbResult] = {}
    keys = [task.key() for task in tasks]
    if cache is not None:
        for i, key in enumerate(keys):
            value = cache.get(key)
            if value is not None:
                known[i] = XtbResult.from_dict(value)
    left = [i for i in range(len(tasks)) if i not in known]

    def keep(position: int, result: XtbResult) -> None:
        if cache is not None and not result.reason.startswith("longer"):
            cache.put(keys[left[position]], result.to_dict())

    def step(n_done: int, n_items: int) -> None:
        if progress is not None:
            progress(len(known) + n_done, len(tasks))

    todo = [tasks[i] for i in left]
    fresh = map_items(compute, todo, _failed, n_processes=n_processes, time_limit=time_limit, progress=step, done=keep)
    if cache is not None:
        cache.flush()
    known.update(zip(left, fresh, strict=True))
    return [known[i] for i in range(len(tasks))]


def compute(task: XtbTask) -> XtbResult:
    """Compute one molecule in this process; failures of the calculation are results with a reason."""
    from ase import Atoms
    from ase.optimize import BFGS
    from tblite.ase import TBLite

    reason = check_geometry(task.numbers, task.positions)
    if reason:
        return XtbResult(reason=reason)
    x = np.asarray(task.positions, dtype=np.float64)
    point, reason = single_point(task.numbers, x, task.charge)
    if reason:
        return XtbResult(reason=reason)
    if not task.relax:
        return XtbResult(**point)
    atoms: Any = Atoms(np.asarray(task.numbers, dtype=int), x)
    atoms.calc = TBLite(method="GFN2-xTB", charge=float(task.charge), verbosity=0)
    try:
        optimiser: Any = BFGS(atoms, logfile=None)
        converged = bool(optimiser.run(fmax=FORCE, steps=MAX_STEPS))
        relaxed = float(atoms.get_potential_energy())
    except Exception as error:  # noqa: BLE001 (tblite raises several kinds for a molecule whose charges do not converge)
        return XtbResult(**point, reason=f"relaxation failed: {str(error).splitlines()[0][:80] if str(error) else type(error)}")
    y = atoms.get_positions()
    return XtbResult(
        **point,
        **changes(task.numbers, task.bonds, x, y),
        relaxation_energy=(point["energy"] - relaxed) * KCAL_PER_EV,
        rmsd=rmsd(x, y),
        n_steps=int(optimiser.nsteps),
        converged=converged,
        reason="" if converged else f"not relaxed after {MAX_STEPS} steps",
    )


def single_point(numbers: ArrayLike, positions: ArrayLike, charge: int = 0) -> tuple[dict[str, Any], str]:
    """Return energy, HOMO, LUMO, gap (eV) and dipole (D) of one geometry (Å), or nothing and the reason."""
    from ase import units
    from tblite.interface import Calculator

    z = np.asarray(numbers, dtype=int)
    try:
        calculator = Calculator("GFN2-xTB", z, np.asarray(positions, dtype=np.float64) / units.Bohr, charge=float(charge))
        calculator.set("verbosity", 0)
        result = calculator.singlepoint()
        levels = np.asarray(result.get("orbital-energies")) * units.Hartree
        filled = np.asarray(result.get("orbital-occupations")) > 1.0
        point: dict[str, Any] = {"energy": float(result.get("energy")) * units.Hartree}
        point["dipole"] = float(np.linalg.norm(result.get("dipole"))) * DEBYE
    except Exception as error:  # noqa: BLE001 (see compute)
        return {}, f"calculation failed: {str(error).splitlines()[0][:80] if str(error) else type(error).__name__}"
    if filled.any() and not filled.all():
        homo, lumo = float(levels[filled].max()), float(levels[~filled].min())
        point.update(homo=homo, lumo=lumo, gap=lumo - homo)
    return point, ""


def changes(numbers: ArrayLike, bonds: Bonds | None, before: ArrayLike, after: ArrayLike) -> dict[str, Any]:
    """Return the mean absolute changes of bond lengths (Å), angles and torsions (degrees); nothing without bonds."""
    if bonds is None:
        return {}
    inner = internals(numbers, bonds)
    torsions = torsion_difference(torsion_angles(before, inner.torsions), torsion_angles(after, inner.torsions))
    return {
        "bond_change": _mean(np.abs(bond_lengths(before, inner.bonds) - bond_lengths(after, inner.bonds))),
        "angle_change": _mean(np.abs(bond_angles(before, inner.angles) - bond_angles(after, inner.angles))),
        "torsion_change": _mean(torsions),
    }


def require_tblite() -> None:
    """Raise MoldiffError, with the command that helps, when tblite is not installed."""
    try:
        import tblite.interface  # noqa: F401
    except ImportError as error:
        raise MoldiffError("GFN2-xTB needs tblite: pip install tblite") from error


def has_tblite() -> bool:
    """Tell whether tblite is installed."""
    try:
        require_tblite()
    except MoldiffError:
        return False
    return True


def _mean(values: NDArray[np.float64]) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def _failed(task: XtbTask, reason: str) -> XtbResult:
    return XtbResult(reason=reason)
