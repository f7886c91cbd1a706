"""3D conformers for molecules that are known as SMILES only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.bonds import Bonds, bonds_of

#: Seconds that RDKit may spend on one embedding before it gives up.
EMBED_TIMEOUT = 10


@dataclass(frozen=True)
class Conformer:
    """One conformer: ``numbers`` [N], ``positions`` [N, 3] in Å, ``bonds``; or none of them, and the ``reason``."""

    numbers: NDArray[Any] | None = None
    positions: NDArray[np.float64] | None = None
    bonds: Bonds | None = None
    reason: str = ""


def embed_smiles(smiles: str, seed: int = 0) -> Conformer:
    """Make a conformer with all hydrogens: ETKDG version 3, then MMFF94 (UFF where MMFF lacks parameters).

    The same SMILES and seed give the same conformer. A failure is a reason, not an exception. Sources: Wang et al., J. Chem.
    Inf. Model. 60, 2044 (2020); Halgren, J. Comput. Chem. 17, 490 (1996).
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom
    from rdkit.Chem import rdForceFieldHelpers as force_fields

    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            return Conformer(reason="SMILES does not parse")
        if mol.GetNumAtoms() == 0:
            return Conformer(reason="no atoms")
        if any(atom.GetAtomicNum() == 0 for atom in mol.GetAtoms()):
            return Conformer(reason="unknown element")
        if len(Chem.GetMolFrags(mol)) > 1:
            # The mutual place of two molecules does not follow from a SMILES.
            return Conformer(reason="more than one molecule in the SMILES")
        mol = Chem.AddHs(mol)
        settings: Any = rdDistGeom.ETKDGv3()
        settings.randomSeed = seed & 0x7FFFFFFF
        settings.timeout = EMBED_TIMEOUT
        if rdDistGeom.EmbedMolecule(mol, settings) != 0:
            settings.useRandomCoords = True
            if rdDistGeom.EmbedMolecule(mol, settings) != 0:
                return Conformer(reason="no conformer could be embedded")
        if mol.GetNumAtoms() > 1:
            if force_fields.MMFFHasAllMoleculeParams(mol):
                left = force_fields.MMFFOptimizeMolecule(mol, maxIters=5000)
            elif force_fields.UFFHasAllMoleculeParams(mol):
                left = force_fields.UFFOptimizeMolecule(mol, maxIters=5000)
            else:
                return Conformer(reason="no force field for its elements")
            if left != 0:
                return Conformer(reason="force field did not converge")
        numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
        return Conformer(numbers, mol.GetConformer().GetPositions(), bonds_of(mol, matches_smiles=True))


def embed_graph(mol: Any, seed: int = 0) -> NDArray[np.float64] | None:
    """Positions [N, 3] (Å) of a molecule that has all its hydrogens: ETKDG version 3 without a force field; None where none.

    Where ETKDG finds nothing it is tried from random coordinates, and then plain distance geometry.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom

    own = Chem.Mol(mol)
    ways: list[Any] = [rdDistGeom.ETKDGv3(), rdDistGeom.ETKDGv3(), rdDistGeom.EmbedParameters()]
    with rdBase.BlockLogs():
        for k, settings in enumerate(ways):
            settings.randomSeed, settings.timeout, settings.useRandomCoords = seed & 0x7FFFFFFF, EMBED_TIMEOUT, k > 0
            settings.maxIterations = 20
            if rdDistGeom.EmbedMolecule(own, settings) == 0:
                return np.array(own.GetConformer().GetPositions(), dtype=np.float64)
    return None
