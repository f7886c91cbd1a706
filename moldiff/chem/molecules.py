"""RDKit molecules from arrays, and the few questions that every sample and every reference molecule is asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from moldiff.chem.bonds import perceive_bonds
from moldiff.chem.edm import edm_bond_orders

if TYPE_CHECKING:
    from rdkit.Chem import Mol

Inference = Literal["rdkit", "edm"]


@dataclass(frozen=True)
class Built:
    """The outcome of ``build_molecule``: a sanitised ``mol``, or None and the ``reason``.

    ``raw`` is the molecule as it was before sanitising, for files and pictures; None only where there is no molecule at all.
    """

    mol: Mol | None
    reason: str
    raw: Mol | None

    @property
    def valid(self) -> bool:
        """Whether RDKit sanitises the molecule."""
        return self.mol is not None


def raw_molecule(
    numbers: ArrayLike,
    positions: ArrayLike | None = None,
    bond_types: ArrayLike | None = None,
    charges: ArrayLike | None = None,
) -> Mol:
    """Assemble an RDKit molecule without judging it.

    ``numbers`` [N]; ``positions`` [N, 3] (Å) become its conformer; ``bond_types`` [N, N] kekulised orders 0..3; ``charges``
    [N]. No hydrogens are implied: an atom that lacks bonds is a radical. Raises ValueError for an atomic number outside
    1..118 or an order outside 0..3.
    """
    from rdkit import Chem
    from rdkit.Geometry import Point3D

    z = np.asarray(numbers, dtype=np.int64)
    if len(z) and (z.min() < 1 or z.max() > 118):
        raise ValueError("atomic numbers must lie in 1..118")
    mol = Chem.RWMol()
    q = np.zeros_like(z) if charges is None else np.asarray(charges, dtype=np.int64)
    for number, charge in zip(z.tolist(), q.tolist(), strict=True):
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
    if bond_types is not None:
        kinds = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
        orders = np.triu(np.asarray(bond_types, dtype=np.int64), k=1)
        for i, j in np.argwhere(orders).tolist():
            order = int(orders[i, j])
            if order not in kinds:
                raise ValueError(f"bond order {order} is outside 0..3")
            mol.AddBond(i, j, kinds[order])
    if positions is not None:
        conformer = Chem.Conformer(len(z))
        for i, x in enumerate(np.asarray(positions, dtype=np.float64).reshape(len(z), 3).tolist()):
            conformer.SetAtomPosition(i, Point3D(*x))
        mol.AddConformer(conformer, assignId=True)
    return mol.GetMol()


def build_molecule(
    numbers: ArrayLike,
    positions: ArrayLike | None = None,
    bond_types: ArrayLike | None = None,
    charges: ArrayLike | None = None,
    *,
    infer: Inference = "rdkit",
    total_charge: int | None = 0,
) -> Built:
    """Build a sanitised molecule, or say why there is none.

    Shapes as in ``raw_molecule``. Where ``bond_types`` is None they are inferred from the positions: by RDKit's
    DetermineBonds for ``total_charge`` (see ``perceive_bonds``), or by EDM's distance look-up. Never raises for a bad sample:
    the reason names the fault in a few words.
    """
    z = np.asarray(numbers, dtype=np.int64)
    if len(z) == 0:
        return Built(None, "no atoms", None)
    if z.min() < 1 or z.max() > 118:
        return Built(None, "unknown element", None)
    if positions is not None and not np.isfinite(np.asarray(positions, dtype=np.float64)).all():
        return Built(None, "non-finite coordinates", None)
    if bond_types is None:
        if positions is None:
            raise ValueError("bonds can't be inferred without positions")
        if infer == "edm":
            bond_types = edm_bond_orders(z, positions)
        else:
            found = perceive_bonds(z, positions, total_charge=total_charge)
            if found.bonds is None:
                return Built(None, found.reason, raw_molecule(z, positions))
            bond_types, charges = found.bonds.matrix(), found.bonds.charges
    elif not np.isin(np.asarray(bond_types), (0, 1, 2, 3)).all():
        return Built(None, "unknown bond order", raw_molecule(z, positions))
    raw = raw_molecule(z, positions, bond_types, charges)
    mol, reason = sanitise(raw)
    return Built(mol, reason, raw)


def sanitise(mol: Mol) -> tuple[Mol | None, str]:
    """Return a sanitised copy of a molecule and an empty string, or None and what is wrong with it."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        problems = Chem.DetectChemistryProblems(mol)
        if problems:
            return None, _problem(mol, problems[0])
        copy = Chem.Mol(mol)
        try:
            Chem.SanitizeMol(copy)
        except (Chem.MolSanitizeException, RuntimeError) as error:
            return None, f"does not sanitise: {str(error).splitlines()[0]}"
    return copy, ""


def canonical_smiles(mol: Mol) -> str:
    """Return the canonical SMILES without hydrogens and without stereo marks.

    Uniqueness, novelty and every stored reference go through this one function, so that the same graph gives the same text.
    ``mol`` must be sanitised; an empty string when it has no atoms.
    """
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        smiles = Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False)
        # Once more through the parser: aromaticity and implicit hydrogens then no longer depend on where the graph came from.
        parsed = Chem.MolFromSmiles(smiles)
        return smiles if parsed is None else str(Chem.MolToSmiles(parsed, isomericSmiles=False))


def n_fragments(mol: Mol) -> int:
    """Count the connected parts of a molecule."""
    from rdkit import Chem

    return len(Chem.GetMolFrags(mol))


def n_radicals(mol: Mol) -> int:
    """Count the unpaired electrons of a sanitised molecule."""
    return sum(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())


def formula(numbers: ArrayLike) -> str:
    """Write the Hill formula of atomic numbers [N]: carbon, hydrogen, then the others by letter."""
    counts = Counter(symbols(np.asarray(numbers).tolist()))
    first = [s for s in ("C", "H") if "C" in counts and s in counts]
    order = first + sorted(s for s in counts if s not in first)
    return "".join(s + (str(counts[s]) if counts[s] > 1 else "") for s in order)


def symbols(numbers: Sequence[int]) -> list[str]:
    """Return the element symbols of atomic numbers; raises IndexError outside 1..118."""
    from ase.data import chemical_symbols

    return [chemical_symbols[z] for z in numbers]


def _problem(mol: Mol, problem: Any) -> str:
    if problem.GetType() == "AtomValenceException":
        atom = mol.GetAtomWithIdx(problem.GetAtomIdx())
        valence = round(sum(b.GetBondTypeAsDouble() for b in atom.GetBonds()))
        charge = atom.GetFormalCharge()
        return f"valence: {atom.GetSymbol()}{f'{charge:+d}' if charge else ''} with {valence} bonds"
    if "ekulize" in problem.GetType():
        return "can't be kekulised"
    return f"does not sanitise: {problem.GetType()}"
