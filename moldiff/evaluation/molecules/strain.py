"""MMFF94 strain: how much energy a local minimisation in the force field takes out of a molecule.

Source: Halgren, J. Comput. Chem. 17, 490 (1996), as implemented in RDKit (Tosco, Stiefl and Landrum, J. Cheminf. 6, 37, 2014).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rdkit.Chem import Mol

MAX_ITERATIONS = 2000


def mmff_strain(mol: Mol) -> float:
    """Return the strain in kcal/mol of a sanitised molecule with hydrogens and a conformer; NaN where MMFF lacks parameters."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdForceFieldHelpers

    copy = Chem.Mol(mol)
    with rdBase.BlockLogs():
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(copy)
        if properties is None:
            return math.nan
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(copy, properties)
        if field is None:
            return math.nan
        field.Initialize()
        before = field.CalcEnergy()
        field.Minimize(maxIts=MAX_ITERATIONS)
        strain = float(before - field.CalcEnergy())
    return strain if math.isfinite(strain) else math.nan
