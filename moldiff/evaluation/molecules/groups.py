"""Functional groups by SMARTS, counted once a molecule."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rdkit.Chem import Mol

#: Name and SMARTS; a molecule may have several of them, and ``none`` stands for one that has not any.
GROUPS: dict[str, str] = {
    "alkene": "[CX3;!$(C=[!#6])]=[CX3;!$(C=[!#6])]",
    "alkyne": "C#C",
    "allene": "C=C=C",
    "arene": "c1ccccc1",
    "heteroarene, 5": "[n,o,s;r5]",
    "heteroarene, 6": "[n,o,s;r6]",
    "cyclopropane": "C1CC1",
    "cyclobutane": "C1CCC1",
    "epoxide": "C1OC1",
    "aziridine": "C1NC1",
    "oxetane": "C1COC1",
    "azetidine": "C1CNC1",
    "alcohol": "[OX2H][CX4]",
    "enol": "[OX2H][CX3]=[CX3]",
    "phenol": "[OX2H]c",
    "ether": "[OX2;!r3]([#6;!$(C=[O,N,S])])[#6;!$(C=[O,N,S])]",
    "acetal": "[CX4]([OX2])[OX2]",
    "aldehyde": "[CX3H1,CX3H2]=O",
    "ketone": "[#6][CX3](=O)[#6]",
    "carboxylic acid": "[CX3](=O)[OX2H]",
    "carboxylate": "[CX3](=O)[O-]",
    "ester": "[CX3](=O)[OX2][#6]",
    "carbonate": "[OX2][CX3](=O)[OX2]",
    "anhydride": "[CX3](=O)[OX2][CX3]=O",
    "amide": "[CX3](=O)[NX3]",
    "imide": "[CX3](=O)[NX3][CX3]=O",
    "urea": "[NX3][CX3](=O)[NX3]",
    "carbamate": "[NX3][CX3](=O)[OX2]",
    "primary amine": "[NX3;H2;!$(NC=[O,N,S])][#6]",
    "secondary amine": "[NX3;H1;!r3;!$(NC=[O,N,S])]([#6])[#6]",
    "tertiary amine": "[NX3;H0;!r3;!$(NC=[O,N,S])]([#6])([#6])[#6]",
    "ammonium": "[NX4+]",
    "imine": "[CX3;!$(C[O,N,S])]=[NX2;!$(N[O,N])]",
    "amidine": "[NX3][CX3]=[NX2]",
    "imidate": "[OX2][CX3]=[NX2]",
    "nitrile": "C#N",
    "oxime": "[CX3]=[NX2][OX2]",
    "hydrazone": "[CX3]=[NX2][NX3]",
    "hydrazine": "[NX3][NX3]",
    "hydroxylamine": "[NX3][OX2]",
    "azo": "[#6][NX2]=[NX2][#6]",
    "azide": "N=[N+]=[N-]",
    "diazo": "[C]=[N+]=[N-]",
    "nitro": "[NX3+](=O)[O-]",
    "nitroso": "[NX2]=O",
    "N-oxide": "[#7+;!$([#7](=O)[O-])][O-]",
    "peroxide": "[OX2][OX2]",
    "fluoride": "[#6]F",
    "chloride": "[#6]Cl",
    "bromide": "[#6]Br",
    "iodide": "[#6]I",
    "thiol": "[SX2H]",
    "thioether": "[SX2]([#6])[#6]",
    "thiocarbonyl": "[#6]=[SX1]",
    "sulfoxide": "[SX3]=O",
    "sulfone": "[SX4](=O)(=O)",
    "phosphate": "P(=O)(O)O",
    "none": "",
}
NAMES = tuple(GROUPS)


@cache
def _patterns() -> list[Mol]:
    from rdkit import Chem

    return [Chem.MolFromSmarts(smarts) for smarts in GROUPS.values() if smarts]


def functional_groups(mol: Mol) -> list[int]:
    """Return the indices into ``NAMES`` of the groups that a sanitised molecule has."""
    found = [i for i, pattern in enumerate(_patterns()) if mol.HasSubstructMatch(pattern)]
    return found or [len(NAMES) - 1]
