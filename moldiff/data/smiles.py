"""Tables of SMILES: CSV with a header, or SMI files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import chain, count

from moldiff.data.entry import Entry
from moldiff.data.tables import read_columns
from moldiff.errors import BadRequest

#: Names of the column that holds the SMILES (lower case), in the order of preference.
SMILES_COLUMNS = ("smiles", "canonical_smiles", "smi", "isomeric_smiles")


def read_csv(lines: Iterable[str], label: str, rows: Iterator[int] | None = None) -> Iterator[Entry]:
    """Yield the rows of a table with a column of SMILES; other columns that hold numbers become properties.

    Commas, semicolons and tabs separate. Raises BadRequest, naming the columns, when none of them is ``SMILES_COLUMNS``.
    """
    rows = count(1) if rows is None else rows
    stream = (line.replace("\0", "") for line in lines)
    head = next((line for line in stream if line.strip()), None)
    if head is None:
        return
    head = head.removeprefix("\ufeff")
    delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(chain([head], stream), delimiter=delimiter)
    names = [name.strip() for name in reader.fieldnames or ()]
    column = next((raw for key in SMILES_COLUMNS for raw in reader.fieldnames or () if raw.strip().lower() == key), None)
    if column is None:
        raise BadRequest(f"{label} has no column named smiles (its columns: {', '.join(names)[:200]})")
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            row = next(rows)
            yield Entry(row, f"{label}#{row}", row, problem=f"unreadable line: {error}")
            continue
        if values is None:
            return
        row = next(rows)
        others = [(key, value) for key, value in values.items() if key is not None and key != column]
        properties, texts, number, name = read_columns(others)
        yield _entry(row, (values[column] or "").strip(), name or f"{label}#{row}", number, properties, texts)


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
