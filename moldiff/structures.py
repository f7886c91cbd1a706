"""Structures that a request begins with: molecules of files, RDKit or ASE, as physical arrays with bonds and charges."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from moldiff.chem.bonds import bonds_of, perceive_bonds
from moldiff.core.batch import AtomBatch
from moldiff.errors import BadRequest

if TYPE_CHECKING:
    from moldiff.control import Place


@dataclass(frozen=True, eq=False)
class Structure:
    """One molecule: ``numbers`` [N], ``positions`` [N, 3] in Å (float32), ``bonds`` [N, N] kekulised orders, ``charges`` [N].

    ``given_bonds`` is false where the bonds were perceived; where that failed too, ``bonds`` is None and ``problem`` says why.
    """

    name: str
    numbers: NDArray[np.int64]
    positions: NDArray[np.float32]
    bonds: NDArray[np.int64] | None
    charges: NDArray[np.int64]
    given_bonds: bool = True
    problem: str = ""

    def __len__(self) -> int:
        return len(self.numbers)

    def digest(self) -> str:
        """SHA-256 of all that it says."""
        parts = [self.numbers, self.positions, self.charges, *([] if self.bonds is None else [self.bonds])]
        return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()

    def fields(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The physical fields of these names, unbatched; unknown bonds are none."""
        bonds = np.zeros((len(self), len(self)), dtype=np.int64) if self.bonds is None else self.bonds
        all_ = {"positions": self.positions, "atom_types": self.numbers, "charges": self.charges, "bond_types": bonds}
        return {name: torch.from_numpy(np.array(all_[name])) for name in names if name in all_}


def read_structures(path: str | Path, perceive: bool = True) -> list[Structure]:
    """The molecules of a file (SDF, MOL, XYZ, extxyz; a folder or archive of them); every one must be readable.

    Bonds that the file does not give are perceived unless ``perceive`` is false. Raises ``BadRequest`` for a file that holds no
    molecules with coordinates, naming the first record that can't be used.
    """
    from moldiff.data.sources import read_rows

    found = []
    for row in read_rows(path):
        entry = row.entry()
        where = f"{path}, record {entry.row} ({entry.name})"
        if entry.problem or entry.numbers is None or entry.positions is None:
            raise BadRequest(f"{where}: {entry.problem or 'no coordinates'}")
        structure = structure_of(entry.numbers, entry.positions, entry.bonds, entry.total_charge, entry.name, perceive)
        if structure.problem and perceive:
            raise BadRequest(f"{where}: {structure.problem}")
        found.append(structure)
    if not found:
        raise BadRequest(f"{path} holds no molecules")
    return found


def read_anything(path: str | Path) -> list[Structure]:
    """As ``read_structures``, but a record that can't be used stays in its place, with its ``problem``."""
    from moldiff.data.sources import read_rows

    found = []
    for row in read_rows(path):
        entry = row.entry()
        if entry.problem or entry.numbers is None or entry.positions is None:
            none = np.zeros(0, dtype=np.int64)
            problem = entry.problem or "no coordinates"
            found.append(Structure(entry.name, none, np.zeros((0, 3), np.float32), None, none, False, problem))
        else:
            found.append(structure_of(entry.numbers, entry.positions, entry.bonds, entry.total_charge, entry.name))
    if not found or all(len(one) == 0 for one in found):
        raise BadRequest(f"{path} holds no molecules with coordinates")
    return found


def structure_of(
    numbers: Any, positions: Any, bonds: Any = None, total_charge: int | None = None, name: str = "", perceive: bool = True
) -> Structure:
    """A structure from arrays and ``chem.bonds.Bonds``, which are perceived where they are None."""
    z = np.asarray(numbers, dtype=np.int64)
    x = np.asarray(positions, dtype=np.float64).reshape(-1, 3)
    given, problem = bonds is not None, ""
    if not np.isfinite(x).all():
        return Structure(name, z, x.astype(np.float32), None, np.zeros_like(z), False, "non-finite coordinates")
    if bonds is None and perceive:
        result = perceive_bonds(z, x, total_charge=total_charge)
        bonds, problem = result.bonds, "" if result.bonds is not None else f"its bonds can't be told: {result.reason}"
    if bonds is None:
        return Structure(name, z, x.astype(np.float32), None, np.zeros_like(z), False, problem)
    matrix, charges = bonds.matrix().astype(np.int64), bonds.charges.astype(np.int64)
    return Structure(name, z, x.astype(np.float32), matrix, charges, given, problem)


def as_structures(source: Any, perceive: bool = True) -> list[Structure]:
    """Structures from a path, a SampleSet, samples, RDKit molecules with conformers, ASE atoms, or a list of such."""
    if isinstance(source, Structure):
        return [source]
    if isinstance(source, (str, Path)):
        return read_structures(source, perceive)
    if hasattr(source, "GetConformer"):
        mol = source
        if not mol.GetNumConformers():
            raise BadRequest("a molecule without a conformer says nothing of positions")
        numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        bonds = bonds_of(mol) if mol.GetNumBonds() else None
        return [structure_of(numbers, mol.GetConformer().GetPositions(), bonds, None, "molecule", perceive)]
    if hasattr(source, "get_atomic_numbers"):
        return [structure_of(source.get_atomic_numbers(), source.get_positions(), None, None, "atoms", perceive)]
    if hasattr(source, "entry"):
        entry = source.entry()
        if entry.problem or entry.positions is None:
            raise BadRequest(f"{entry.name}: {entry.problem or 'no coordinates'}")
        return [structure_of(entry.numbers, entry.positions, entry.bonds, entry.total_charge, entry.name, perceive)]
    if isinstance(source, Sequence):
        return [one for item in source for one in as_structures(item, perceive)]
    raise BadRequest(f"structures are a path, molecules, atoms or samples, found {type(source).__name__}")


def encoded_rows(place: Place, structures: Sequence[Structure], fields: Iterable[str]) -> AtomBatch:
    """Structure i modulo their number in the row of sample i, encoded for the model."""
    rows = [structures[i % len(structures)].fields(fields) for i in place.indices]
    return place.vocabulary.encode(AtomBatch.from_list(rows)).to(place.device)
