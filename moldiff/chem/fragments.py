"""Fragments that are to be kept: which atoms of a drawn structure, and which of them may receive new bonds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moldiff.errors import BadRequest

if TYPE_CHECKING:
    from rdkit.Chem import Mol


@dataclass(frozen=True)
class Fragment:
    """The kept atoms: ``numbers`` [K], ``positions`` [K, 3] in Å as they were given (float32), ``bonds`` [K, K] kekulised orders,
    ``charges`` [K], and ``open`` [K], true where an atom may be bonded to new ones. ``n_whole`` counts the atoms that the
    structure has with all its hydrogens, kept or not."""

    numbers: NDArray[np.int64]
    positions: NDArray[np.float32]
    bonds: NDArray[np.int64]
    charges: NDArray[np.int64]
    open: NDArray[np.bool_]
    n_whole: int

    def __len__(self) -> int:
        return len(self.numbers)


def cut_fragment(
    numbers: ArrayLike,
    positions: ArrayLike,
    bonds: ArrayLike,
    charges: ArrayLike,
    atoms: Sequence[int] | None = None,
    smarts: str | None = None,
) -> Fragment:
    """Choose what is kept of a structure of atomic numbers [N] (0: an attachment point), positions, orders [N, N], charges [N].

    Hydrogens that the structure implies and does not draw are added first. ``atoms`` counts from 0 and is taken literally;
    ``smarts`` keeps the atoms of its first match. Without either, all but hydrogens is kept and every atom is open; but where
    attachment points mark the open atoms, everything is kept, hydrogens too. Raises ``BadRequest`` for indices that don't exist,
    a pattern that can't be read or matches nothing, and a structure of which nothing is left.
    """
    mol = _molecule(numbers, positions, bonds, charges)
    z = np.array([a.GetAtomicNum() for a in mol.GetAtoms()], dtype=np.int64)
    n_drawn = len(np.asarray(numbers))
    marks = z == 0
    if atoms is not None and smarts is not None:
        raise BadRequest("say what to keep by atoms or by SMARTS, not by both")
    if atoms is not None:
        chosen = _indices(atoms, n_drawn, marks)
    elif smarts is not None:
        chosen = [i for i in matched(mol, smarts) if not marks[i]]
    elif marks.any():
        chosen = np.flatnonzero(~marks).tolist()
    else:
        chosen = np.flatnonzero(z > 1).tolist() or np.flatnonzero(z == 1).tolist()
    if not chosen:
        raise BadRequest("nothing is left to keep: the structure has attachment points only")
    from moldiff.chem.bonds import bonds_of

    found = bonds_of(mol)
    whole = found.matrix().astype(np.int64)
    open_: NDArray[np.bool_] = np.ones(len(z), dtype=np.bool_)
    if marks.any():
        open_ = np.any(whole[:, marks] > 0, axis=1)
        if not open_[chosen].any():
            raise BadRequest("none of the kept atoms is bonded to an attachment point: nothing could grow from them")
    x = mol.GetConformer().GetPositions().astype(np.float32)
    q = found.charges.astype(np.int64)
    return Fragment(z[chosen], x[chosen], whole[np.ix_(chosen, chosen)], q[chosen], open_[chosen], int((~marks).sum()))


def matched(mol: Mol, smarts: str) -> list[int]:
    """The atoms of the first match of a pattern in its order; raises ``BadRequest`` for none and for an unreadable pattern."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        pattern = Chem.MolFromSmarts(smarts)
    if pattern is None or pattern.GetNumAtoms() == 0:
        raise BadRequest(f"{smarts!r} is not a SMARTS pattern")
    found = mol.GetSubstructMatch(pattern)
    if not found:
        raise BadRequest(f"SMARTS {smarts!r} matches nothing in the structure {Chem.MolToSmiles(Chem.RemoveHs(mol))}")
    return list(found)


def _indices(atoms: Sequence[int], n: int, marks: NDArray[Any]) -> list[int]:
    if not len(atoms):
        raise BadRequest("give at least one atom to keep")
    wrong = [i for i in atoms if not 0 <= i < n]
    if wrong:
        raise BadRequest(f"there is no atom {wrong[0]} to keep: the structure's atoms count from 0 to {n - 1}")
    if len(set(atoms)) != len(atoms):
        raise BadRequest("an atom to keep is named twice")
    if any(marks[i] for i in atoms):
        raise BadRequest(f"atom {next(i for i in atoms if marks[i])} is an attachment point, which can't be kept")
    return list(atoms)


def _molecule(numbers: ArrayLike, positions: ArrayLike, bonds: ArrayLike, charges: ArrayLike) -> Mol:
    """The structure with its hydrogens; where it draws any, those are all."""
    from rdkit import Chem, rdBase
    from rdkit.Geometry import Point3D

    z = np.asarray(numbers, dtype=np.int64)
    orders = np.triu(np.asarray(bonds, dtype=np.int64), 1)
    mol = Chem.RWMol()
    complete = bool((z == 1).any())
    for number, charge in zip(z.tolist(), np.asarray(charges).tolist(), strict=True):
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(complete or number == 0)
        mol.AddAtom(atom)
    kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    for i, j in np.argwhere(orders).tolist():
        mol.AddBond(i, j, kinds[int(orders[i, j])])
    conformer = Chem.Conformer(len(z))
    for i, x in enumerate(np.asarray(positions, dtype=np.float64).tolist()):
        conformer.SetAtomPosition(i, Point3D(*x))
    mol.AddConformer(conformer)
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(mol)
        except (Chem.MolSanitizeException, RuntimeError) as error:
            raise BadRequest(f"the structure to keep is no sound molecule: {str(error).splitlines()[0]}") from None
        return mol.GetMol() if complete else Chem.AddHs(mol, addCoords=True)
