"""One molecule on its way from a source into the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.bonds import Bonds, check_geometry, perceive_bonds
from moldiff.chem.conformers import embed_smiles
from moldiff.chem.molecules import build_molecule, n_radicals

#: Formal charges that a store's vocabulary of charges can hold.
MAX_CHARGE = 4
#: Bond indices are int16 in the store.
MAX_ATOMS = 2**15 - 1
BondsFrom = Literal["source", "smiles", "perceived"]


class Row(Protocol):
    """One row of a source, still unread: ``row`` counts from 1; ``entry()`` reads it, in a worker process."""

    @property
    def row(self) -> int: ...

    @property
    def name(self) -> str: ...

    def entry(self) -> Entry: ...


@dataclass(frozen=True)
class Entry:
    """What a source knows of one molecule.

    ``row`` counts the source's rows from 1, ``name`` is what people call it, ``id`` its number. Either ``numbers`` [N] with
    ``positions`` [N, 3] (Å), or ``smiles`` alone for a conformer to be made; ``bonds`` as the source gives them, unjudged;
    ``total_charge`` None where it is not known; ``properties`` by column, and in ``texts`` the columns that hold no number;
    ``problem`` when this row could not be read.
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
    texts: tuple[str, ...] = ()
    problem: str = ""

    def entry(self) -> Entry:
        """Return itself: a row that needs no more reading."""
        return self


@dataclass(frozen=True)
class Outcome:
    """The system that a row became (see ``store.pack``) and where its bonds came from, or why it was rejected."""

    row: int
    name: str
    system: dict[str, Any] | None = None
    reason: str = ""
    bonds_from: BondsFrom = "perceived"
    texts: tuple[str, ...] = ()


def to_system(row: Row) -> Outcome:
    """Turn a row into a stored system: conformer made or bonds and charges perceived where missing, positions centred."""
    entry = row.entry()
    numbers, positions = entry.numbers, entry.positions
    reason, bonds, origin = entry.problem, entry.bonds, "source"
    if not reason and positions is None and entry.smiles is not None:
        made = embed_smiles(entry.smiles, seed=entry.row)
        numbers, positions, bonds, reason, origin = made.numbers, made.positions, made.bonds, made.reason, "smiles"
    if not reason and (numbers is None or positions is None):
        reason = "no atoms"
    if reason or numbers is None or positions is None:
        return Outcome(row.row, entry.name, None, reason)
    reason = check_geometry(numbers, positions)
    if not reason and len(numbers) > MAX_ATOMS:
        reason = f"more than {MAX_ATOMS} atoms"
    if reason:
        return Outcome(row.row, entry.name, None, reason)
    if bonds is not None:
        built = build_molecule(numbers, None, bonds.matrix(), bonds.charges)
        if built.mol is None:
            # Some files carry bonds that no valence rule allows (gdb9.sdf does); the geometry may still be sound.
            bonds = None
        elif n_radicals(built.mol):
            return Outcome(row.row, entry.name, None, "missing hydrogens or radicals")
    if bonds is None:
        found = perceive_bonds(numbers, positions, total_charge=entry.total_charge, smiles=entry.smiles)
        if found.bonds is None:
            return Outcome(row.row, entry.name, None, found.reason)
        bonds, origin = found.bonds, "smiles" if found.bonds.matches_smiles else "perceived"
    if len(bonds.charges) and abs(bonds.charges).max() > MAX_CHARGE:
        return Outcome(row.row, entry.name, None, f"formal charge beyond {MAX_CHARGE}")
    x = np.asarray(positions, dtype=np.float64)
    system: dict[str, Any] = {
        "atom_types": np.asarray(numbers, dtype=np.uint8),
        "positions": (x - x.mean(0)).astype(np.float32),
        "charges": bonds.charges,
        "bond_index": bonds.index,
        "bond_types": bonds.types,
        "id": entry.id,
        **{f"property.{name}": value for name, value in entry.properties.items()},
    }
    return Outcome(row.row, entry.name, system, "", origin, entry.texts)  # type: ignore[arg-type]
