"""SDF and MOL files, record by record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from moldiff.chem.bonds import Bonds, bonds_of
from moldiff.data.entry import Entry
from moldiff.data.tables import read_columns

if TYPE_CHECKING:
    from rdkit.Chem import Mol


@dataclass(frozen=True)
class SdfRow:
    """One record as text; ``complete`` tells whether its end mark was there."""

    row: int
    name: str
    text: str
    complete: bool = True

    def entry(self) -> Entry:
        """Parse the record: atoms, positions, bonds and charges as they are written, numeric data fields as properties."""
        from rdkit import Chem, rdBase

        block, _, tail = self.text.partition("M  END")
        if not _:
            return Entry(self.row, self.name, self.row, problem="truncated record" if not self.complete else "not an SDF record")
        properties, texts, number, label = read_columns(_fields(tail))
        name = label or self.name
        with rdBase.BlockLogs():
            mol = Chem.MolFromMolBlock(block + "M  END\n", sanitize=False, removeHs=False, strictParsing=False)
        if mol is None:
            return Entry(self.row, name, self.row, properties=properties, problem="not a readable SDF record")
        numbers = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()], dtype=np.int64)
        if len(numbers) == 0:
            return Entry(self.row, name, self.row, properties=properties, problem="no atoms")
        positions = mol.GetConformer().GetPositions()
        problem = _flat(mol, numbers, positions)
        bonds: Bonds | None = None
        if mol.GetNumBonds() and not problem:
            bonds, problem = _written_bonds(mol)
        charge = sum(atom.GetFormalCharge() for atom in mol.GetAtoms())
        return Entry(
            row=self.row,
            name=name,
            id=self.row if number is None else number,
            numbers=numbers,
            positions=positions,
            bonds=bonds,
            # Without bonds and charges a file says nothing of the total charge.
            total_charge=charge if mol.GetNumBonds() or charge else None,
            properties=properties,
            texts=texts,
            problem=problem,
        )


def read_sdf(lines: Iterable[str], label: str, rows: Iterator[int] | None = None) -> Iterator[SdfRow]:
    """Split lines into records; ``label`` names those without a title and ``rows`` numbers them."""
    rows = count(1) if rows is None else rows
    record: list[str] = []
    for line in lines:
        if line.startswith("$$$$"):
            yield _record(record, label, next(rows), True)
            record = []
        else:
            record.append(line.rstrip("\r\n"))
    if any(line.strip() for line in record):
        # A MOL file, and the last record of a careless SDF, have no end mark.
        yield _record(record, label, next(rows), any(line.startswith("M  END") for line in record))


def _record(lines: list[str], label: str, row: int, complete: bool) -> SdfRow:
    title = lines[0].strip() if lines else ""
    return SdfRow(row, title[:80] or f"{label}#{row}", "\n".join(lines), complete)


def _fields(tail: str) -> Iterator[tuple[str, str]]:
    """Read the data fields behind a record's molecule."""
    name: str | None = None
    values: list[str] = []
    for line in [*tail.splitlines(), ""]:
        if line.startswith(">") and "<" in line:
            name, values = line[line.index("<") + 1 : line.rindex(">") if line.rindex(">") > 0 else None], []
        elif name is not None and not line.strip():
            yield name, " ".join(values)
            name = None
        elif name is not None:
            values.append(line.strip())


def _flat(mol: Mol, numbers: np.ndarray, positions: np.ndarray) -> str:
    """Return a reason when the coordinates are those of a drawing."""
    if not mol.GetConformer().Is3D() and len(numbers) > 1 and np.all(positions[:, 2] == 0):
        lengths = [
            np.linalg.norm(positions[b.GetBeginAtomIdx()] - positions[b.GetEndAtomIdx()])
            for b in mol.GetBonds()
            if 1 in (b.GetBeginAtom().GetAtomicNum(), b.GetEndAtom().GetAtomicNum())
        ]
        # Flat molecules exist; their bonds to hydrogen are short, those of a drawing are as long as all others.
        if not np.all(positions == 0) and (not lengths or min(lengths) > 1.3) and mol.GetNumBonds():
            return "2D coordinates"
    return ""


def _written_bonds(mol: Mol) -> tuple[Bonds | None, str]:
    from rdkit import Chem, rdBase

    plain = {Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE}
    kinds = {bond.GetBondType() for bond in mol.GetBonds()}
    if not kinds <= plain | {Chem.BondType.AROMATIC}:
        return None, "unknown bond type"
    with rdBase.BlockLogs():
        try:
            if Chem.BondType.AROMATIC in kinds:
                mol.UpdatePropertyCache(strict=False)
            return bonds_of(mol), ""
        except Chem.MolSanitizeException:
            return None, "can't be kekulised"
