"""One crystal on its way from a source into the store."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from moldiff.chem.crystals import Crystal, check_crystal, niggli, primitive
from moldiff.data.entry import MAX_ATOMS, Outcome
from moldiff.data.tables import read_columns

#: Properties that every prepared crystal has, computed here, with their units.
COMPUTED = {"density": "g/cm^3", "space_group": "number"}
_NUMBERED = re.compile(r"[A-Za-z]+-(\d{1,15})")


class CrystalRow(Protocol):
    """One row of a source of crystals, still unread; see ``data.entry.Row``."""

    @property
    def row(self) -> int: ...

    @property
    def name(self) -> str: ...

    def entry(self) -> CrystalEntry: ...


@dataclass(frozen=True)
class CrystalEntry:
    """What a source knows of one crystal.

    ``row`` counts the source's rows from 1, ``name`` is what people call it, ``id`` its number; ``properties`` by column, and in
    ``texts`` the columns that hold no number; ``problem`` when this row could not be read. ``keep_size``: the source's number
    of atoms stays, as benchmarks count them; otherwise the cell becomes primitive.
    """

    row: int
    name: str
    id: int
    crystal: Crystal | None = None
    properties: Mapping[str, float] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    problem: str = ""
    keep_size: bool = False

    def entry(self) -> CrystalEntry:
        """Return itself: a row that needs no more reading."""
        return self


@dataclass(frozen=True)
class CrystalText:
    """One crystal as text, still unread: ``read`` makes it a crystal or raises ValueError with the reason."""

    row: int
    name: str
    text: str
    read: Callable[[str], Crystal]
    columns: tuple[tuple[str, object], ...] = ()
    keep_size: bool = False

    def entry(self) -> CrystalEntry:
        """Parse the text."""
        properties, texts, number, label = read_columns(self.columns)
        name = label or self.name
        if number is None:
            number = number_of(name, self.row)
        try:
            crystal = self.read(self.text)
        except ValueError as error:
            # What the row says of itself stays: a prediction that can't be read still belongs to its request.
            return CrystalEntry(self.row, name, number, None, properties, texts, problem=str(error))
        return CrystalEntry(self.row, name, number, crystal, properties, texts, keep_size=self.keep_size)


def number_of(name: str, otherwise: int) -> int:
    """Return the number in a name such as ``mp-149``, or another one where there is none."""
    found = _NUMBERED.fullmatch(name)
    return int(found.group(1)) if found else otherwise


def to_crystal_system(row: CrystalRow) -> Outcome:
    """Turn a row into a stored system: checked, in its Niggli-reduced (primitive) cell, with density and space group."""
    from moldiff.chem.symmetry import space_group

    entry = row.entry()
    crystal, reason = entry.crystal, entry.problem
    if not reason and crystal is None:
        reason = "no atoms"
    if not reason and crystal is not None:
        reason = check_crystal(crystal.numbers, crystal.frac_coords, crystal.lattice, max_atoms=MAX_ATOMS)
    if reason or crystal is None:
        return Outcome(row.row, entry.name, None, reason)
    crystal = niggli(crystal if entry.keep_size else primitive(crystal))
    computed = {"density": crystal.density, "space_group": float(space_group(crystal).number)}
    system: dict[str, Any] = {
        "atom_types": crystal.numbers.astype(np.uint8),
        "frac_coords": crystal.frac_coords.astype(np.float32),
        "lattice": crystal.lattice.astype(np.float32),
        "id": entry.id,
        **{f"property.{name}": value for name, value in {**computed, **entry.properties}.items()},
    }
    return Outcome(row.row, entry.name, system, texts=entry.texts)
