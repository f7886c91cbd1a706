"""Rewards by name: RDKit descriptors, GFN2-xTB properties, energies of calculators, and any function that can be imported."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from moldiff.errors import BadRequest, unknown

if TYPE_CHECKING:
    from rdkit.Chem import Mol

    from moldiff.samples import Sample

#: Properties by GFN2-xTB of the geometry as it is: eV, and D for the dipole.
XTB = ("dipole", "gap", "homo", "lumo", "energy")
#: Short names, and what they stand for.
SHORT = {
    "qed": "rdkit:qed",
    "logp": "rdkit:MolLogP",
    "ring_count": "rdkit:RingCount",
    "tpsa": "rdkit:TPSA",
    "mol_weight": "rdkit:MolWt",
    "dipole": "xtb:dipole",
    "gap": "xtb:gap",
    "homo": "xtb:homo",
    "lumo": "xtb:lumo",
}
#: Properties of a crystal that need no calculator: g/cm^3, and Å^3.
CRYSTAL = ("density", "volume_per_atom")
#: How far a property wanders among small molecules: the unit in which a miss of a target is measured unless told.
SPREAD = {"xtb:dipole": 1.5, "xtb:gap": 1.0, "xtb:homo": 0.6, "xtb:lumo": 1.0, "rdkit:qed": 0.1, "rdkit:TPSA": 20.0}


@dataclass(frozen=True)
class Term:
    """One part of a reward: ``weight`` times a property, or times -((property - ``target``) / ``scale``)^2.

    ``function`` is a full name (``rdkit:MolLogP``, ``xtb:dipole``, ``chgnet:energy``, ``crystal:density``,
    ``module:function``) or a function that takes an RDKit molecule (sanitised, with hydrogens and conformer) or a pymatgen
    Structure.
    """

    function: str | Callable[[Any], float]
    weight: float = 1.0
    target: float | None = None
    scale: float = 1.0

    @property
    def label(self) -> str:
        """The term as run.yaml holds it."""
        f = self.function
        text = f if isinstance(f, str) else f"{getattr(f, '__module__', '?')}:{getattr(f, '__qualname__', type(f).__name__)}"
        text += "" if self.target is None else f"={self.target:g}:{self.scale:g}"
        return text if self.weight == 1 else f"{self.weight:g}*{text}"

    def of(self, value: float) -> float:
        """The term's share of the reward, given the property."""
        return self.weight * (value if self.target is None else -(((value - self.target) / self.scale) ** 2))


class NoStructure(Exception):
    """There is no structure of which the reward could be asked: an invalid or unconnected molecule, an impossible crystal."""


def full_name(name: str) -> str:
    """The full name of a property; raises ``BadRequest`` for one that is neither known nor an import name."""
    known = SHORT.get(name, name)
    room, colon, rest = known.partition(":")
    if not colon or not rest:
        raise unknown("reward", name, [*SHORT, "chgnet:energy", "xtb:energy", "rdkit:DESCRIPTOR", "module:function"])
    if room == "rdkit":
        if rest != "qed" and rest not in _descriptors():
            raise unknown("RDKit descriptor", rest, ["qed", *_descriptors()])
    elif room == "xtb":
        if rest not in XTB:
            raise unknown("GFN2-xTB property", rest, XTB)
    elif room == "crystal":
        if rest not in CRYSTAL:
            raise unknown("property of a crystal", rest, CRYSTAL)
    elif rest != "energy" or room not in _calculators():
        imported(known)
    return known


def kind_of(name: str) -> str | None:
    """What a named property is one of: ``molecule``, ``crystal``, or None where it may be either."""
    room, _, rest = name.partition(":")
    if room in ("rdkit", "xtb"):
        return "molecule"
    return "crystal" if room == "crystal" or (rest == "energy" and room in _calculators()) else None


def require(name: str) -> None:
    """Raise ``MoldiffError``, with the command that helps, where a property's package is not installed."""
    room, _, rest = name.partition(":")
    if room == "xtb":
        from moldiff.evaluation.molecules.energy import require_tblite

        require_tblite()
    elif rest == "energy" and room in _calculators():
        from moldiff.evaluation.crystals.relax import find_calculator

        find_calculator(room)


def imported(name: str) -> Callable[[Any], Any]:
    """The function of an import name ``module:function``; the working folder may hold the module. Raises ``BadRequest``."""
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise BadRequest(f"{name!r} can't be imported: {error}") from None
    except AttributeError:
        raise BadRequest(f"the module {module_name} has no {attribute!r}") from None
    except Exception as error:  # noqa: BLE001 (the module's own code may raise anything)
        raise BadRequest(f"importing {module_name} raised {type(error).__name__}: {error}") from None
    if not callable(found):
        raise BadRequest(f"{name} is no function but {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def property_of(function: str | Callable[[Any], float], sample: Sample) -> float:
    """The property of one sample; raises ``NoStructure``, and whatever a function of the user's raises."""
    if isinstance(function, str):
        room, _, rest = function.partition(":")
        if room == "rdkit":
            return _descriptor(rest, molecule(sample))
        if room == "xtb":
            return _xtb(rest, sample)
        if room == "crystal":
            return _of_crystal(rest, sample)
        if rest == "energy" and room in _calculators():
            return _energy(room, sample)
        function = imported(function)
    value = function(structure(sample) if "lattice" in sample.fields else molecule(sample))
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"a reward must be a number, found {type(value).__name__}")
    return float(value)


def molecule(sample: Sample) -> Mol:
    """The sample as a sanitised, connected RDKit molecule; raises ``NoStructure`` where it is none."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = sample.to_rdkit()
        if mol is None or len(Chem.GetMolFrags(mol)) != 1:
            raise NoStructure
    return mol


def structure(sample: Sample) -> Any:
    """The sample as a pymatgen Structure; raises ``NoStructure`` where atoms overlap or the cell is none."""
    from pymatgen.core import Structure

    crystal = _crystal(sample)
    return Structure(crystal.lattice, crystal.numbers, crystal.frac_coords)


def _crystal(sample: Sample) -> Any:
    from moldiff.chem.crystals import Crystal, check_crystal

    f = sample.fields
    if sample.problem or check_crystal(sample.numbers, f["frac_coords"], f["lattice"]):
        raise NoStructure
    return Crystal.of(sample.numbers, f["frac_coords"], f["lattice"])


def _descriptor(name: str, mol: Mol) -> float:
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        plain = Chem.RemoveHs(mol)
        if name == "qed":
            from rdkit.Chem import QED

            return float(QED.qed(plain))  # type: ignore[no-untyped-call]
        return float(_descriptors()[name](plain))


def _xtb(name: str, sample: Sample) -> float:
    from rdkit import Chem

    from moldiff.evaluation.molecules.energy import XtbTask, compute

    mol = molecule(sample)
    positions = sample.positions
    if positions is None:
        raise NoStructure
    found = compute(XtbTask(sample.numbers, positions, int(Chem.GetFormalCharge(mol)), relax=False))
    value = float(getattr(found, name))
    if not math.isfinite(value):
        raise NoStructure
    return value


def _energy(calculator: str, sample: Sample) -> float:
    """Energy by a calculator's name, eV/atom."""
    from moldiff.evaluation.crystals.relax import RelaxTask, compute

    found = compute(RelaxTask(_crystal(sample), calculator, relax=False))
    if not math.isfinite(found.energy):
        raise NoStructure
    return found.energy


def _of_crystal(name: str, sample: Sample) -> float:
    crystal = _crystal(sample)
    return float(crystal.density if name == "density" else crystal.volume / len(crystal))


@lru_cache(maxsize=1)
def _descriptors() -> dict[str, Callable[[Any], float]]:
    from rdkit.Chem import Descriptors

    return dict(Descriptors.descList)


def _calculators() -> tuple[str, ...]:
    from moldiff.evaluation.crystals.relax import CALCULATORS

    return tuple(CALCULATORS)
