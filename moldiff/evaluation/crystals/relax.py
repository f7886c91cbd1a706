"""Energies and relaxations of crystals by any ASE calculator, in processes that can be killed.

CHGNet (Deng et al., Nat. Mach. Intell. 5, 1031 (2023)), whose weights are in its package, is the judge that works offline. It
returns nonsense for overlapping atoms, raises for isolated ones, crashes on elements beyond plutonium and needs minutes in very
small cells: such crystals are screened out before it sees them, and every crystal has a time limit.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.crystals import Crystal, check_crystal, from_ase, min_distance, to_ase
from moldiff.errors import BadRequest, MoldiffError
from moldiff.evaluation.cache import ResultCache
from moldiff.evaluation.crystals.matching import crystal_key
from moldiff.evaluation.parallel import Progress, map_items

#: Short names of calculators: where they are imported from, and the package to install.
CALCULATORS: dict[str, tuple[str, str]] = {
    "chgnet": ("chgnet.model.dynamics:CHGNetCalculator", "chgnet"),
    "mace": ("mace.calculators:mace_mp", "mace-torch"),
    "emt": ("ase.calculators.emt:EMT", "ase"),
}
#: A relaxation ends when no force or stress component exceeds this (eV/Å).
FORCE = 0.05
MAX_STEPS = 300
TIME_LIMIT = 120.0
#: Screens: the least distance (Å; H2 has 0.74), volumes per atom (Å^3), and CHGNet's heaviest element.
LEAST_DISTANCE = 0.7
VOLUMES = (1.5, 500.0)
CHGNET_LAST = 94
_VERSION = "relax-1"


@dataclass(frozen=True)
class RelaxTask:
    """One crystal to compute with the ``calculator`` of an import name; ``relax`` False asks for its energy as it is."""

    crystal: Crystal
    calculator: str = "chgnet"
    relax: bool = True
    force: float = FORCE
    max_steps: int = MAX_STEPS

    def key(self) -> str:
        """Return the key under which the result is cached."""
        more = (self.force, self.max_steps) if self.relax else ()
        version = f"{_VERSION} {self.calculator} {calculator_version(self.calculator)}"
        return crystal_key(version, self.crystal, self.relax, *more)


@dataclass(frozen=True)
class RelaxResult:
    """The outcome for one crystal; numbers are NaN where there are none, and ``reason`` says why.

    ``energy`` and ``relaxed_energy`` are the calculator's (eV/atom) before and after; ``rmsd`` (Å) is how far the atoms move, by
    minimum images in the mean of the two cells and without the common drift; ``volume_change`` is relative. ``relaxed`` holds
    numbers, fractional coordinates and lattice of the relaxed crystal.
    """

    energy: float = math.nan
    relaxed_energy: float = math.nan
    rmsd: float = math.nan
    volume_change: float = math.nan
    n_steps: int = 0
    converged: bool = False
    reason: str = ""
    relaxed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def crystal(self) -> Crystal | None:
        """The relaxed crystal, or None."""
        if not self.relaxed:
            return None
        return Crystal.of(self.relaxed["numbers"], self.relaxed["frac_coords"], self.relaxed["lattice"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, None for NaN."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RelaxResult:
        """Rebuild a result from ``to_dict``."""
        known: dict[str, Any] = {k: math.nan if v is None else v for k, v in values.items()}
        return cls(**known)


def relax(
    tasks: Sequence[RelaxTask],
    *,
    n_processes: int | None = None,
    time_limit: float = TIME_LIMIT,
    cache: ResultCache | None = None,
    progress: Progress | None = None,
) -> list[RelaxResult]:
    """Compute many crystals in processes that are killed after ``time_limit`` seconds a crystal.

    Results of earlier runs come from ``cache``; a failure is a result with a reason, and the others go on. Time limits are not
    cached. Raises MoldiffError when a calculator's package is not installed, BadRequest when its name is none.
    """
    for name in sorted({task.calculator for task in tasks}):
        find_calculator(name)
    keys = [task.key() for task in tasks] if cache is not None else []
    known: dict[int, RelaxResult] = {}
    for i, key in enumerate(keys):
        if cache is not None and (stored := cache.get(key)) is not None:
            known[i] = RelaxResult.from_dict(stored)
    left = [i for i in range(len(tasks)) if i not in known]

    def keep(position: int, result: RelaxResult) -> None:
        if cache is not None and not result.reason.startswith("longer"):
            cache.put(keys[left[position]], result.to_dict())

    todo = [tasks[i] for i in left]
    fresh = map_items(compute, todo, _failed, n_processes=n_processes, time_limit=time_limit, progress=progress, done=keep)
    if cache is not None:
        cache.flush()
    known.update(zip(left, fresh, strict=True))
    return [known[i] for i in range(len(tasks))]


def compute(task: RelaxTask) -> RelaxResult:
    """Compute one crystal in this process; failures of the calculation are results with a reason."""
    reason = screen(task.crystal, task.calculator)
    if reason:
        return RelaxResult(reason=reason)
    n = len(task.crystal)
    atoms: Any = to_ase(task.crystal)
    # Calculators print what they are and warn of what they can't do; a table of samples has no room for it.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            atoms.calc = _calculator(task.calculator)
            energy = float(atoms.get_potential_energy()) / n
            if not math.isfinite(energy):
                return RelaxResult(reason="the calculator gives no finite energy")
            if not task.relax:
                return RelaxResult(energy=energy)
            steps, converged = _relax(atoms, task)
            relaxed = float(atoms.get_potential_energy()) / n
            after = from_ase(atoms)
        except Exception as error:  # noqa: BLE001 - calculators raise whatever they like
            lines = str(error).splitlines()
            return RelaxResult(reason=f"the calculator failed: {(lines[0] if lines else type(error).__name__)[:80]}")
    spoilt = check_crystal(after.numbers, after.frac_coords, after.lattice)
    if spoilt or not math.isfinite(relaxed):
        return RelaxResult(energy=energy, reason=f"relaxed to {spoilt or 'no finite energy'}")
    return RelaxResult(
        energy=energy,
        relaxed_energy=relaxed,
        rmsd=displacement(task.crystal, after),
        volume_change=after.volume / task.crystal.volume - 1,
        n_steps=steps,
        converged=converged,
        reason="" if converged else f"not relaxed after {task.max_steps} steps",
        relaxed={"numbers": after.numbers.tolist(), "frac_coords": after.frac_coords.tolist(), "lattice": after.lattice.tolist()},
    )


def screen(crystal: Crystal, calculator: str = "chgnet") -> str:
    """Say why a crystal should not be handed to a calculator, or return an empty string."""
    reason = check_crystal(crystal.numbers, crystal.frac_coords, crystal.lattice)
    if reason:
        return reason
    if min_distance(crystal.frac_coords, crystal.lattice) < LEAST_DISTANCE:
        return f"atoms closer than {LEAST_DISTANCE:g} Å"
    if not VOLUMES[0] <= crystal.volume / len(crystal) <= VOLUMES[1]:
        return f"{crystal.volume / len(crystal):.3g} Å^3 an atom"
    if calculator == "chgnet" and crystal.numbers.max() > CHGNET_LAST:
        return f"CHGNet knows no element beyond Z = {CHGNET_LAST}"
    return ""


def displacement(before: Crystal, after: Crystal) -> float:
    """Return the RMS displacement (Å) of the atoms between two crystals with the same atoms in the same order."""
    d = after.frac_coords - before.frac_coords
    d -= np.round(d)
    # Whole-crystal translation costs nothing; taken out twice, since wrapping depends on it.
    for _ in range(2):
        d -= d.mean(0)
        d -= np.round(d)
    x: NDArray[np.float64] = d @ (0.5 * (before.lattice + after.lattice))
    return float(np.sqrt((x * x).sum(-1).mean()))


def find_calculator(name: str) -> Any:
    """Import the class or function that makes a calculator: a short name of ``CALCULATORS``, ``module:Name`` or ``module.Name``.

    Raises BadRequest for a name that is none, MoldiffError when the package is not installed.
    """
    target, package = CALCULATORS.get(name, (name, ""))
    module_name, _, attribute = target.rpartition(":" if ":" in target else ".")
    if not module_name or not attribute:
        raise BadRequest(f"unknown calculator {name!r}: give {', '.join(CALCULATORS)} or an import name such as module:Name")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(module_name)
    except ImportError as error:
        install = package or module_name.split(".")[0]
        raise MoldiffError(f"the calculator {name!r} needs the package {install}: pip install {install}") from error
    if not hasattr(module, attribute):
        raise BadRequest(f"the module {module_name} has no {attribute!r}")
    return getattr(module, attribute)


def calculator_version(name: str) -> str:
    """Return the version of a calculator's package, for keys and for the line that names the judge."""
    from importlib.metadata import PackageNotFoundError, version

    target, package = CALCULATORS.get(name, (name, ""))
    with contextlib.suppress(PackageNotFoundError, ValueError):
        return version(package or target.split(":")[0].split(".")[0])
    return ""


@lru_cache(maxsize=4)
def _calculator(name: str) -> Any:
    """Make a calculator, once a process: loading weights takes seconds."""
    made = find_calculator(name)
    return made(use_device="cpu") if name == "chgnet" else made()


def _relax(atoms: Any, task: RelaxTask) -> tuple[int, bool]:
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS

    optimiser: Any = BFGS(FrechetCellFilter(atoms), logfile=None, maxstep=0.2)
    converged = bool(optimiser.run(fmax=task.force, steps=task.max_steps))
    return int(optimiser.nsteps), converged


def _failed(task: RelaxTask, reason: str) -> RelaxResult:
    return RelaxResult(reason=reason)
