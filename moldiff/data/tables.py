"""Tables of people's files: their rows, which values are numbers, and which column is the row's own number."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from moldiff.errors import BadRequest

#: Columns (lower case) that number the rows; they become the system's id instead of a property.
ID_COLUMNS = ("id", "index", "idx", "mol_id", "gdb_id", "gdb_idx")
NAME_COLUMNS = ("name", "title", "_name", "material_id")
_UNKNOWN = {"", "nan", "na", "n/a", "none", "null", "-", "?"}
#: Longest cell of a table (characters): a CIF or a JSON text fits.
_LONGEST = 10_000_000


def read_header(lines: Iterable[str]) -> tuple[list[str], str, Iterator[str]]:
    """Read the header of a table: its columns as they stand, the delimiter, and all lines again from the header on.

    Commas, semicolons and tabs separate. No columns where the table is empty.
    """
    stream = (line.replace("\0", "") for line in lines)
    head = next((line for line in stream if line.strip()), None)
    if head is None:
        return [], ",", iter(())
    head = head.removeprefix("\ufeff")
    delimiter = max(",;\t", key=head.count)
    return next(csv.reader([head], delimiter=delimiter), []), delimiter, chain([head], stream)


def find_column(names: Iterable[str], wanted: Sequence[str]) -> str | None:
    """Return the first of the ``wanted`` names (lower case) that a table has, as the table writes it."""
    known = list(names)
    return next((name for key in wanted for name in known if name is not None and name.strip().lower() == key), None)


def read_table(
    lines: Iterable[str], label: str, rows: Iterator[int], wanted: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str | None], str]]:
    """Yield the rows of a table with a header: number, values by column, and a problem where the line can't be read.

    Raises BadRequest, naming the columns, when ``wanted`` are given and the table has none of them.
    """
    names, delimiter, stream = read_header(lines)
    if not names:
        return
    if wanted and find_column(names, wanted) is None:
        listed = ", ".join(name.strip() for name in names)[:200]
        raise BadRequest(f"{label} has no column named {wanted[0]} (its columns: {listed})")
    csv.field_size_limit(_LONGEST)
    reader = csv.DictReader(stream, delimiter=delimiter)
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield next(rows), {}, f"unreadable line: {error}"
            continue
        if values is None:
            return
        yield next(rows), {key: value for key, value in values.items() if key is not None}, ""


def read_columns(pairs: Iterable[tuple[str, object]]) -> tuple[dict[str, float], tuple[str, ...], int | None, str]:
    """Sort named values into properties, names of text columns, the row's id and the row's name.

    A value that stands for "unknown" is NaN; one that is no number puts its column among the texts. Id and name are None and
    empty where no column gives them.
    """
    properties: dict[str, float] = {}
    texts: list[str] = []
    number: int | None = None
    label = ""
    for raw_name, raw_value in pairs:
        name, value = str(raw_name).strip(), str(raw_value if raw_value is not None else "").strip()
        if not name:
            continue
        if name.lower() in NAME_COLUMNS:
            label = value
            continue
        known = as_number(value)
        if name.lower() in ID_COLUMNS:
            if known is not None and known == known and abs(known) < 2**53 and known == int(known):
                number = int(known)
            else:
                label = label or value
        elif known is None:
            texts.append(name)
        else:
            properties[name] = known
    return properties, tuple(texts), number, label


def as_number(value: str) -> float | None:
    """Read a number; NaN for the usual marks of an unknown value or an infinity, None for other text."""
    if value.lower() in _UNKNOWN:
        return math.nan
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else math.nan
