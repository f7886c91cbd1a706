"""Tables of SMILES: CSV with a header, or SMI files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

from moldiff.data.entry import Entry
from moldiff.data.tables import find_column, read_columns, read_table

#: Names of the column that holds the SMILES (lower case), in the order of preference.
SMILES_COLUMNS = ("smiles", "canonical_smiles", "smi", "isomeric_smiles")


def read_csv(lines: Iterable[str], label: str, rows: Iterator[int] | None = None) -> Iterator[Entry]:
    """Yield the rows of a table with a column of SMILES; other columns that hold numbers become properties.

    Commas, semicolons and tabs separate. Raises BadRequest, naming the columns, when none of them is ``SMILES_COLUMNS``.
    """
    for row, values, problem in read_table(lines, label, count(1) if rows is None else rows, SMILES_COLUMNS):
        if problem:
            yield Entry(row, f"{label}#{row}", row, problem=problem)
            continue
        column = find_column(values, SMILES_COLUMNS)
        others = [(key, value) for key, value in values.items() if key != column]
        properties, texts, number, name = read_columns(others)
        smiles = (values[column] or "").strip() if column else ""
        yield _entry(row, smiles, name or f"{label}#{row}", number, properties, texts)


def read_smi(lines: Iterable[str], label: str, rows: Iterator[int] | None = None) -> Iterator[Entry]:
    """Yield the lines of a SMI file: a SMILES and, behind white space, a name."""
    rows = count(1) if rows is None else rows
    for line in lines:
        if line.strip():
            row = next(rows)
            smiles, _, name = line.strip().partition(" " if " " in line.strip() else "\t")
            yield _entry(row, smiles, name.strip() or f"{label}#{row}", None, {}, ())


def _entry(row: int, smiles: str, name: str, number: int | None, properties: dict[str, float], texts: tuple[str, ...]) -> Entry:
    return Entry(
        row=row,
        name=name,
        id=row if number is None else number,
        smiles=smiles or None,
        properties=properties,
        texts=texts,
        problem="" if smiles else "no SMILES",
    )
