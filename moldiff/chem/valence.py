"""Which valences an atom may have at its formal charge, and which atoms of a molecule keep to it (no RDKit)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Sums of kekulised bond orders that count as stable, by (atomic number, formal charge). What is absent is unstable.
VALENCES: dict[tuple[int, int], tuple[int, ...]] = {
    (1, 0): (1,),
    (5, 0): (3,),
    (5, -1): (4,),
    (6, 0): (4,),
    (6, 1): (3,),
    (6, -1): (3,),
    (7, 0): (3,),
    (7, 1): (4,),
    (7, -1): (2,),
    (8, 0): (2,),
    (8, 1): (3,),
    (8, -1): (1,),
    (9, 0): (1,),
    (9, -1): (0,),
    (14, 0): (4,),
    (15, 0): (3, 5),
    (15, 1): (4,),
    (15, -1): (2,),
    (16, 0): (2, 4, 6),
    (16, 1): (3, 5),
    (16, -1): (1,),
    (17, 0): (1,),
    (17, -1): (0,),
    (35, 0): (1,),
    (35, -1): (0,),
    (53, 0): (1, 3, 5),
    (53, -1): (0,),
}


def stable_atoms(numbers: ArrayLike, bond_types: ArrayLike, charges: ArrayLike | None = None) -> NDArray[np.bool_]:
    """Tell for each atom whether its valence fits its element and formal charge.

    ``numbers`` [N]; ``bond_types`` [N, N] symmetric kekulised orders 0..3; ``charges`` [N], zero when None. Returns bool [N];
    a molecule is stable when all of its atoms are. Radicals, and elements outside ``VALENCES``, are unstable.
    """
    z = np.asarray(numbers, dtype=np.int64)
    q = np.zeros_like(z) if charges is None else np.asarray(charges, dtype=np.int64)
    valence = np.asarray(bond_types, dtype=np.int64).sum(axis=-1) if len(z) else z
    rows = zip(z.tolist(), q.tolist(), valence.tolist(), strict=True)
    return np.array([v in VALENCES.get((a, c), ()) for a, c, v in rows], dtype=np.bool_)
