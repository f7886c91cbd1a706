"""Pictures of single molecules for a report: structural formulas as SVG, and mol blocks for the 3D view."""

from __future__ import annotations

from typing import Any

from moldiff.chem.molecules import raw_molecule
from moldiff.evaluation.molecules.sets import Examined

SIZE = 150


def formula_svg(sample: Examined) -> str:
    """Draw the structural formula of a sample, valid or not; an empty string where it has no bonds or can't be laid out."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDepictor
    from rdkit.Chem.Draw import rdMolDraw2D

    mol = _molecule(sample)
    if mol is None or (mol.GetNumBonds() == 0 and mol.GetNumAtoms() > 1):
        return ""
    with rdBase.BlockLogs():
        try:
            flat = Chem.RemoveHs(mol, sanitize=False)
            flat.RemoveAllConformers()
            flat.UpdatePropertyCache(strict=False)
            Chem.FastFindRings(flat)
            rdDepictor.Compute2DCoords(flat)
            drawer = rdMolDraw2D.MolDraw2DSVG(SIZE, SIZE)
            options: Any = drawer.drawOptions()
            options.prepareMolsBeforeDrawing = False
            options.clearBackground = False
            drawer.DrawMolecule(flat)
            drawer.FinishDrawing()
        except (RuntimeError, ValueError):
            return ""
    text = str(drawer.GetDrawingText())
    return text[text.index("<svg") :].strip()


def mol_block(sample: Examined) -> str:
    """Return the sample as a V2000 mol block with its coordinates, or an empty string where it has none that can be written."""
    from rdkit import Chem, rdBase

    positions = sample.entry.positions
    # The format has ten columns for a coordinate and three for a number of atoms.
    if positions is None or not sample.verdict.finite or abs(positions).max(initial=0) > 9999 or len(positions) > 999:
        return ""
    mol = _molecule(sample)
    if mol is None:
        return ""
    with rdBase.BlockLogs():
        try:
            return str(Chem.MolToMolBlock(mol, includeStereo=False, kekulize=False))
        except (RuntimeError, ValueError):
            return ""


def _molecule(sample: Examined) -> Any:
    entry, bonds = sample.entry, sample.bonds
    if entry.numbers is None or not len(entry.numbers) or not sample.verdict.formula:
        return None
    orders = None if bonds is None else bonds.matrix()
    positions = entry.positions if sample.verdict.finite else None
    try:
        mol = raw_molecule(entry.numbers, positions, orders, None if bonds is None else bonds.charges)
    except ValueError:
        return None
    mol.UpdatePropertyCache(strict=False)
    return mol
