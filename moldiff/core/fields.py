"""THE table: every field that a system can carry.

Batching, noise, loss, rotation tests and saving all read this table; nothing else lists the fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from moldiff.errors import unknown

Scope = Literal["atom", "pair", "system"]
Transform = Literal["scalar", "vector", "fractional", "lattice"]


@dataclass(frozen=True)
class Field:
    """One field: its scope, how it transforms under rotation, its unit and, for classes, its largest vocabulary.

    ``shape`` is what follows the scope's axes: [S, N, *shape] for atoms, [S, N, N, *shape] for pairs, [S, *shape]
    for systems. A ``None`` in it stands for an axis whose length a batch chooses (conditions).
    """

    name: str
    scope: Scope
    transform: Transform
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    unit: str
    categorical: bool = False
    values: tuple[int, ...] = ()
    padding: int = 0


FIELDS: dict[str, Field] = {
    f.name: f
    for f in (
        Field("positions", "atom", "vector", (3,), torch.float32, "Å"),
        Field("atom_types", "atom", "scalar", (), torch.int64, "atomic number", True, tuple(range(1, 119))),
        Field("charges", "atom", "scalar", (), torch.int64, "e", True, tuple(range(-4, 5))),
        Field("bond_types", "pair", "scalar", (), torch.int64, "bond order", True, (0, 1, 2, 3)),
        Field("frac_coords", "atom", "fractional", (3,), torch.float32, "cell vectors"),
        # in training on ways that are not drawn atom by atom: where the noise lies, seen from the clean coordinates (else NaN)
        Field("frac_way", "atom", "fractional", (3,), torch.float32, "cell vectors"),
        Field("lattice", "system", "lattice", (3, 3), torch.float32, "Å"),
        # what a network is told of entries that are not noise but known: 1 where they are, 0 elsewhere
        Field("given_atoms", "atom", "scalar", (2,), torch.float32, "1 where known: the classes, the place"),
        Field("given_pairs", "pair", "scalar", (), torch.float32, "1 where known"),
        Field("conditions", "system", "scalar", (None,), torch.float32, "as declared by the model"),
    )
}


def field(name: str) -> Field:
    """Look a field up by name; an unknown name raises ``BadRequest`` with the known ones."""
    if name not in FIELDS:
        raise unknown("field", name, FIELDS)
    return FIELDS[name]
