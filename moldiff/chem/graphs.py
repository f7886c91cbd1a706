"""Graphs of molecules without positions, and whether positions have the stereochemistry that a graph asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moldiff.chem.bonds import bonds_of, perceive_bonds
from moldiff.errors import BadRequest

if TYPE_CHECKING:
    from rdkit.Chem import Mol


@dataclass(frozen=True, eq=False)
class Graph:
    """A molecule of which everything but the positions is known: ``numbers`` [N], ``bonds`` [N, N] kekulised orders, ``charges``
    [N], hydrogens included; ``smiles`` is its isomeric SMILES and ``mol`` RDKit's molecule in the same order of atoms."""

    smiles: str
    numbers: NDArray[np.int64]
    bonds: NDArray[np.int64]
    charges: NDArray[np.int64]
    mol: Mol

    def __len__(self) -> int:
        return len(self.numbers)


def read_graph(smiles: str) -> Graph:
    """The graph of a SMILES with all hydrogens; raises ``BadRequest`` for one that can't be read or is not one molecule."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    if mol is None or mol.GetNumAtoms() == 0:
        raise BadRequest(f"SMILES {smiles!r} does not parse")
    if any(atom.GetAtomicNum() == 0 for atom in mol.GetAtoms()):
        raise BadRequest(f"SMILES {smiles!r} has an atom that is no element")
    if len(Chem.GetMolFrags(mol)) > 1:
        raise BadRequest(f"SMILES {smiles!r} holds {len(Chem.GetMolFrags(mol))} molecules; positions are made for one")
    mol = Chem.AddHs(mol)
    found = bonds_of(mol)
    numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
    text = str(Chem.MolToSmiles(Chem.RemoveHs(mol)))
    return Graph(text, numbers, found.matrix().astype(np.int64), found.charges.astype(np.int64), mol)


def stereo_of(mol: Mol, positions: ArrayLike | None = None) -> tuple[dict[int, Any], dict[int, Any]]:
    """The handedness of atoms and the side of double bonds by index: as drawn, or as ``positions`` [N, 3] have them.

    Handedness is relative to the order of an atom's bonds, so only molecules with the same order compare.
    """
    from rdkit import Chem
    from rdkit.Geometry import Point3D

    mol = Chem.Mol(mol)
    if positions is not None:
        mol.RemoveAllConformers()
        conformer = Chem.Conformer(mol.GetNumAtoms())
        for i, x in enumerate(np.asarray(positions, dtype=np.float64).tolist()):
            conformer.SetAtomPosition(i, Point3D(*x))
        mol.AddConformer(conformer, assignId=True)
        Chem.AssignStereochemistryFrom3D(mol, replaceExistingTags=True)
    else:
        Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    hands = {
        a.GetIdx(): a.GetChiralTag() for a in mol.GetAtoms() if a.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED
    }
    sides = {b.GetIdx(): b.GetStereo() for b in mol.GetBonds() if b.GetStereo() > Chem.BondStereo.STEREOANY}
    return hands, sides


def compare_stereo(graph: Graph, positions: ArrayLike) -> str:
    """How positions meet the stereo marks of a graph: ``right``, ``mirror`` (right once reflected) or ``wrong``."""
    hands, sides = stereo_of(graph.mol)
    if not hands and not sides:
        return "right"
    found_hands, found_sides = stereo_of(graph.mol, positions)
    if any(found_sides.get(i) != side for i, side in sides.items()):
        return "wrong"
    same = [found_hands.get(i) == hand for i, hand in hands.items()]
    if all(same):
        return "right"
    return "mirror" if not any(same) and all(i in found_hands for i in hands) else "wrong"


def same_neighbours(graph: Graph, positions: ArrayLike) -> bool:
    """Whether atoms that are bonded by their distances are those that a graph bonds; orders are not looked at."""
    found = perceive_bonds(graph.numbers, positions, total_charge=int(graph.charges.sum())).bonds
    return found is not None and np.array_equal(found.matrix() > 0, graph.bonds > 0)
