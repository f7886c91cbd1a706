"""One molecule on its way from a source into the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.bonds import Bonds, perceive_bonds


@dataclass(frozen=True)
class Entry:
    """What a source knows of one molecule.

    ``row`` counts the source's rows from 0, ``name`` is what people call it, ``id`` its number. Either ``numbers`` [N] with
    ``positions`` [N, 3] (Å), or ``smiles`` alone for a conformer to be made; ``bonds`` where the source gives them;
    ``total_charge`` None where it is not known; ``properties`` by column; ``problem`` when the source could not read this
    row.
    """

    row: int
    name: str
    id: int
    numbers: NDArray[Any] | None = None
    positions: NDArray[Any] | None = None
    smiles: str | None = None
    bonds: Bonds | None = None
    total_charge: int | None = None
    properties: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Outcome:
    """The system that an entry became (see ``store.pack``), or why it was rejected."""

    entry_row: int
    name: str
    system: dict[str, Any] | None
    reason: str = ""
    matches_smiles: bool = False


def to_system(entry: Entry) -> Outcome:
    """Turn an entry into a stored system: bonds and charges perceived where missing, positions centred at their mean."""
    if entry.problem:
        return Outcome(entry.row, entry.name, None, entry.problem)
    if entry.numbers is None or entry.positions is None:
        return Outcome(entry.row, entry.name, None, "no atoms")
    bonds, reason = entry.bonds, ""
    if bonds is None:
        found = perceive_bonds(entry.numbers, entry.positions, total_charge=entry.total_charge, smiles=entry.smiles)
        bonds, reason = found.bonds, found.reason
    if bonds is None:
        return Outcome(entry.row, entry.name, None, reason)
    positions = np.asarray(entry.positions, dtype=np.float64)
    system: dict[str, Any] = {
        "atom_types": np.asarray(entry.numbers, dtype=np.uint8),
        "positions": (positions - positions.mean(0)).astype(np.float32),
        "charges": bonds.charges,
        "bond_index": bonds.index,
        "bond_types": bonds.types,
        "id": entry.id,
        **{f"property.{name}": value for name, value in entry.properties.items()},
    }
    return Outcome(entry.row, entry.name, system, matches_smiles=bonds.matches_smiles)
