"""The symmetry operations of a crystal in the basis of its own cell, and its atoms brought exactly where these want them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.crystals import Crystal
from moldiff.chem.symmetry import SYMPREC, dataset

#: Translations of operations are multiples of this part of the cell, about the origins of the tables.
_TWENTY_FOURTHS = 24
#: Atoms may lie this far (Å) from where an operation takes another to, at most.
_FAR = 0.5


@dataclass(frozen=True, eq=False)
class Orbits:
    """A crystal of N atoms with G operations x -> W x + w about an origin of the tables.

    ``number`` is the space group, ``rotations`` int8 [G, 3, 3] the W in the basis of the cell, ``shifts`` int8 [G, 3] the w in
    twenty-fourths, ``to`` int8 [G, N] the atom that each takes each atom to, ``letters`` the Wyckoff letters [N], and
    ``frac_coords`` [N, 3] the atoms about that origin where the operations agree exactly.
    """

    number: int
    rotations: NDArray[np.int8]
    shifts: NDArray[np.int8]
    to: NDArray[np.int8]
    letters: str
    frac_coords: NDArray[np.float64]

    @property
    def base(self) -> NDArray[np.float64]:
        """A structure with this symmetry that says nothing else of the crystal: its free coordinates are zero, [N, 3]."""
        back = np.rint(np.linalg.inv(self.rotations.astype(np.float64)))
        shared = np.einsum("gij,gnj->ni", back, self.frac_coords[self.to]) / len(self.to)
        return np.asarray((self.frac_coords - shared) % 1)


def orbits(crystal: Crystal, symprec: float = SYMPREC) -> Orbits | None:
    """Return the operations of a crystal within ``symprec`` (Å) and its symmetric coordinates; None where spglib finds none."""
    found = dataset(crystal, symprec)
    if found is None:
        return None
    origin = np.linalg.solve(found.transformation_matrix, found.origin_shift)
    turn = np.asarray(found.rotations, dtype=np.float64)
    shift = found.translations + origin - turn @ origin
    shift = np.rint(shift * _TWENTY_FOURTHS) / _TWENTY_FOURTHS
    x = crystal.frac_coords + origin
    image = np.einsum("gij,nj->gni", turn, x) + shift[:, None]
    way = image[:, :, None] - x
    away = np.linalg.norm((way - np.rint(way)) @ crystal.lattice, axis=-1)
    away[:, crystal.numbers[:, None] != crystal.numbers[None]] = np.inf
    to = away.argmin(-1)
    if away.min(-1).max() > _FAR or any(len(set(row)) != len(crystal) for row in to.tolist()):
        return None
    back = np.rint(np.linalg.inv(turn))
    asked = np.einsum("gij,gnj->gni", back, x[to] - shift[:, None]) - x
    x = x + (asked - np.rint(asked)).mean(0)
    return Orbits(
        int(found.number),
        turn.astype(np.int8),
        (np.rint(shift * _TWENTY_FOURTHS).astype(np.int64) % _TWENTY_FOURTHS).astype(np.int8),
        to.astype(np.int8),
        "".join(found.wyckoffs),
        x,
    )
