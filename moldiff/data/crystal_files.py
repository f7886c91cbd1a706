"""Files of crystals: CIF, POSCAR, extended XYZ, tables with a column of CIFs, ASE databases."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from moldiff.chem.cif import cif_blocks, read_cif
from moldiff.chem.crystals import Crystal, from_ase, from_structure
from moldiff.data.crystal_entry import CrystalEntry, CrystalRow, CrystalText, number_of
from moldiff.data.tables import find_column, read_columns, read_table
from moldiff.data.xyz import XyzRow, parse_frame, read_comment, read_xyz
from moldiff.errors import DamagedFile

#: Names of the column that holds the CIF (lower case), in the order of preference.
CIF_COLUMNS = ("cif", "cif_string", "cif.conventional_standard")
#: Keys of an ASE database row or of an extended XYZ comment that describe the file, not the crystal.
_BOOKKEEPING = {"unique_id", "ctime", "mtime", "user", "calculator", "pbc", "config_type"}


def read_cif_file(lines: Iterable[str], label: str, rows: Iterator[int] | None = None) -> Iterator[CrystalRow]:
    """Yield the crystals of a CIF, one for each data block that holds atoms."""
    rows = count(1) if rows is None else rows
    text = "".join(lines)
    if not text.strip():
        return
    blocks = list(cif_blocks(text))
    for k, block in enumerate(blocks):
        title = block.split(None, 1)[0][5:] if block[:5].lower() == "data_" else ""
        stem = _stem(label)
        yield CrystalText(next(rows), stem if len(blocks) == 1 else f"{stem}/{title or k + 1}", block, read_cif)


def read_poscar_file(lines: Iterable[str], label: str, rows: Iterator[int] | None = None) -> Iterator[CrystalRow]:
    """Yield the crystal of a VASP POSCAR or CONTCAR."""
    rows = count(1) if rows is None else rows
    text = "".join(lines)
    if text.strip():
        yield CrystalText(next(rows), _stem(label), text, read_poscar)


def read_poscar(text: str) -> Crystal:
    """Read the text of a POSCAR (VASP 5 and later); raises ValueError where it is none, or names no elements."""
    from pymatgen.io.vasp import Poscar

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            poscar = Poscar.from_str(text, read_velocities=False)
        except Exception as error:
            raise ValueError(f"unreadable POSCAR: {(str(error) or type(error).__name__).splitlines()[0][:80]}") from error
    # Without symbols pymatgen calls the species H, He, Li ...
    if not poscar.true_names:
        raise ValueError("POSCAR without element symbols (VASP 4)")
    return from_structure(poscar.structure)


def read_cif_table(lines: Iterable[str], label: str, rows: Iterator[int] | None = None) -> Iterator[CrystalRow]:
    """Yield the rows of a table with a column of CIFs; other columns that hold numbers become properties.

    The number of atoms of each cell is kept, because published benchmarks (mp_20, perov_5, carbon_24, mpts_52) count in it.
    """
    for row, values, problem in read_table(lines, label, count(1) if rows is None else rows):
        if problem:
            yield CrystalEntry(row, f"{label}#{row}", row, problem=problem)
            continue
        column = find_column(values, CIF_COLUMNS)
        others = tuple((key, value) for key, value in values.items() if key != column)
        text = str(values[column] or "") if column else ""
        label_of_row = next((str(v) for k, v in others if k.strip().lower() == "material_id" and v), f"{label}#{row}")
        if not text.strip():
            yield CrystalEntry(row, label_of_row, row, problem="no CIF")
            continue
        yield CrystalText(row, label_of_row, text, read_cif, others, keep_size=True)


@dataclass(frozen=True)
class PeriodicFrame:
    """One frame of an extended XYZ file that has a cell."""

    frame: XyzRow

    @property
    def row(self) -> int:
        """Number of the row."""
        return self.frame.row

    @property
    def name(self) -> str:
        """Name of the row."""
        return self.frame.name

    def entry(self) -> CrystalEntry:
        """Parse the frame: species, positions and ``Lattice``; numbers of the comment become properties, of a failed one too."""
        crystal, problem = None, ""
        try:
            numbers, positions, info = parse_frame(self.frame)
            crystal = _periodic(numbers, positions, info)
        except ValueError as error:
            problem = str(error)
            info = read_comment(self.frame.comment)
        scalars = (
            (k, v)
            for k, v in info.items()
            if np.ndim(v) == 0 and not isinstance(v, bool) and k not in _BOOKKEEPING and k not in ("Lattice", "Properties")
        )
        properties, texts, number, label = read_columns(scalars)
        name = label or self.name
        number = number_of(name, self.row) if number is None else number
        return CrystalEntry(self.row, name, number, crystal, properties, texts, problem)


def _periodic(numbers: Any, positions: Any, info: dict[str, Any]) -> Crystal:
    """Make the crystal of a frame; raises ValueError where it has no cell."""
    lattice = info.get("Lattice")
    if lattice is None:
        raise ValueError("no cell (the comment has no Lattice)")
    if not np.all(info.get("pbc", True)):
        raise ValueError("not periodic in three directions")
    try:
        # ASE hands the nine numbers over as the columns of a matrix.
        cell = np.asarray(lattice, dtype=np.float64).reshape(3, 3)
    except ValueError:
        raise ValueError("the Lattice is not nine numbers") from None
    cell = cell.T if np.ndim(lattice) == 2 else cell
    if not np.isfinite(cell).all():
        raise ValueError("non-finite numbers")
    if abs(np.linalg.det(cell)) < 1e-6:
        raise ValueError("zero cell")
    return Crystal.of(numbers, positions @ np.linalg.inv(cell), cell)


def read_periodic_xyz(lines: Iterable[str], label: str, rows: Iterator[int] | None = None) -> Iterator[CrystalRow]:
    """Split an extended XYZ file into frames."""
    for row in read_xyz(lines, label, rows):
        if isinstance(row, XyzRow):
            yield PeriodicFrame(row)
        else:
            yield CrystalEntry(row.row, row.name, row.id, problem=row.problem)


def read_ase_db(path: Path, rows: Iterator[int] | None = None) -> Iterator[CrystalRow]:
    """Yield the periodic structures of an ASE database; its key-value pairs that hold numbers become properties.

    Raises DamagedFile for a file that is none.
    """
    from ase.db import connect

    rows = count(1) if rows is None else rows
    try:
        database: Any = connect(path, type="db", use_lock_file=False)
        found = iter(database.select(include_data=False))
        while (record := next(found, None)) is not None:
            yield _of_record(record, next(rows), path.name)
    except Exception as error:
        # sqlite3, KeyError, ValueError ... whatever a damaged or foreign file provokes.
        raise DamagedFile(f"{path.name} can't be read as an ASE database: {str(error)[:80]}") from error


def _of_record(record: Any, row: int, label: str) -> CrystalEntry:
    pairs = [(k, v) for k, v in record.key_value_pairs.items() if not isinstance(v, bool) and k not in _BOOKKEEPING]
    if record.get("energy") is not None and "energy" not in record.key_value_pairs:
        pairs.append(("energy", record.energy))
    properties, texts, number, name = read_columns(pairs)
    name = name or f"{label}#{record.id}"
    try:
        crystal = from_ase(record.toatoms())
    except ValueError as error:
        return CrystalEntry(row, name, int(record.id), problem=str(error))
    return CrystalEntry(row, name, int(record.id) if number is None else number, crystal, properties, texts)


def _stem(label: str) -> str:
    name = Path(label).name
    stem = name.removesuffix(".gz")
    for ending in (".cif", ".vasp", ".poscar", ".contcar"):
        stem = stem[: -len(ending)] if stem.lower().endswith(ending) else stem
    return stem or name
