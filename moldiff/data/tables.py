"""Property columns of people's files: which values are numbers, and which column is the row's own number."""

from __future__ import annotations

import math
from collections.abc import Iterable

#: Columns (lower case) that number the rows; they become the system's id instead of a property.
ID_COLUMNS = ("id", "index", "idx", "mol_id", "gdb_id", "gdb_idx")
NAME_COLUMNS = ("name", "title", "_name")
_UNKNOWN = {"", "nan", "na", "n/a", "none", "null", "-", "?"}


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
