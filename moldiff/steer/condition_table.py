"""Conditions of each sample: a table with a row a sample, from a CSV file or a list."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moldiff.control import Spec
from moldiff.errors import BadRequest
from moldiff.steer.conditions import Asked, Conditions, asked_range, checked_guidance

if TYPE_CHECKING:
    from moldiff.model_store import ModelInfo

#: Column that gives a sample's number of atoms.
SIZE = "n_atoms"


@dataclass(frozen=True)
class ConditionTable(Conditions):
    """Sample i is asked for the values of row i modulo their number, and has that row's number of atoms where it gives one.

    ``values`` spans what the rows ask of each property.
    """

    rows: tuple[tuple[Asked, ...], ...] = ()
    sizes: tuple[int | None, ...] = ()
    of_each = True

    def settings(self) -> dict[str, Any]:
        rows = [{name: low if low == high else f"{low!r}..{high!r}" for name, low, high in row} for row in self.rows]
        sizes = [] if all(size is None for size in self.sizes) else list(self.sizes)
        return {"rows": rows, "sizes": sizes, "guidance": self.guidance, **self._without()}

    def check(self, info: ModelInfo) -> None:
        super().check(info)
        for size in self.sizes:
            if size is not None and not min(info.sizes) <= size <= max(info.sizes):
                raise BadRequest(f"{SIZE} = {size} is asked for, {info.name} makes {min(info.sizes)} to {max(info.sizes)} atoms")

    def size_of(self, index: int) -> int | None:
        return self.sizes[index % len(self.sizes)]

    def wanted(self, index: int) -> tuple[Asked, ...]:
        return self.rows[index % len(self.rows)]

    def asked(self, info: ModelInfo, seed: int, index: int) -> dict[str, float]:
        return Conditions(self.rows[index % len(self.rows)], self.guidance).asked(info, seed, index)

    def check_beside(self, others: Sequence[Spec]) -> None:
        if any(size is not None for size in self.sizes):
            for other in others:
                if any(other.size_of(k) is not None for k in range(len(self.sizes))):
                    raise BadRequest(f"the conditions and {other.name} both say how many atoms a sample has: leave {SIZE} out")


def table_from(rows: str | Path | Sequence[Mapping[str, Any]], guidance: float | None = None) -> ConditionTable:
    """Read a table of conditions: a CSV file whose columns are properties (and ``n_atoms``), or mappings; empty leaves one out.

    Raises ``BadRequest``, naming file and row, for what can't be read.
    """
    if isinstance(rows, (str, Path)):
        label = Path(rows).name
        read: Sequence[Mapping[str, Any]] = _read(Path(rows), label)
    else:
        label, read = "the table of conditions", rows
    if not read:
        raise BadRequest(f"{label} has no rows of conditions")
    found, sizes = [], []
    for number, row in enumerate(read, 1):
        try:
            asked = [(name, *asked_range(name, value)) for name, value in row.items() if name != SIZE]
            sizes.append(_size(row.get(SIZE)))
        except BadRequest as error:
            raise BadRequest(f"{label}, row {number}: {error}") from None
        found.append(tuple(one for one in asked if not math.isnan(one[1])))
    names = dict.fromkeys(name for row in found for name, _, _ in row)
    if not names:
        raise BadRequest(f"{label} asks for no property")
    spans = [[one for row in found for one in row if one[0] == name] for name in names]
    values = tuple((span[0][0], min(low for _, low, _ in span), max(high for _, _, high in span)) for span in spans)
    return ConditionTable(values, checked_guidance(guidance), rows=tuple(found), sizes=tuple(sizes))


def _read(path: Path, label: str) -> list[dict[str, str | None]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file)
            if lines.fieldnames is None:
                raise BadRequest(f"{label} is empty")
            rows: list[dict[str, str | None]] = []
            for number, row in enumerate(lines, 1):
                if None in row:
                    raise BadRequest(f"{label}, row {number}: more values than the {len(lines.fieldnames)} columns")
                rows.append({str(name).strip(): (value or "").strip() or None for name, value in row.items()})
            return rows
    except OSError as error:
        raise BadRequest(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise BadRequest(f"{label} is not a CSV file") from None


def _size(value: Any) -> int | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number >= 1 or number != round(number):
        raise BadRequest(f"{SIZE} must be a whole number above 0, found {value!r}")
    return int(number)
