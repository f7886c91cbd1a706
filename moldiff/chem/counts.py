"""What a molecular graph has how often: multiple bonds by their elements, bonds to hydrogen, atoms (no RDKit).

How many double bonds of which kind a molecule has tells more of its gap than its formula does, and a network learns to follow
such a number at once, since it stands in the graph that it draws (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

#: Names of the counts of bonds, by the elements of both ends and the kekulised order.
BONDS: dict[str, tuple[int, int, int]] = {
    "double_CC": (6, 6, 2),
    "double_CN": (6, 7, 2),
    "double_CO": (6, 8, 2),
    "double_NN": (7, 7, 2),
    "double_NO": (7, 8, 2),
    "triple_CC": (6, 6, 3),
    "triple_CN": (6, 7, 3),
    "single_HN": (1, 7, 1),
    "single_HO": (1, 8, 1),
}
#: Names of the counts of atoms, by element.
ATOMS: dict[str, int] = {"atoms_H": 1, "atoms_N": 7, "atoms_O": 8}
NAMES = (*BONDS, *ATOMS)


def graph_counts(system: Mapping[str, Any]) -> dict[str, float]:
    """How often each of ``NAMES`` occurs in a system: ``atom_types`` [N] (atomic numbers), ``bond_types`` [N, N] kekulised."""
    z, bonds = np.asarray(system["atom_types"], dtype=np.int64), np.asarray(system["bond_types"])
    first, second = np.nonzero(np.triu(bonds, 1))
    low, high = np.minimum(z[first], z[second]), np.maximum(z[first], z[second])
    order = bonds[first, second]
    found = {name: float(((low == a) & (high == b) & (order == k)).sum()) for name, (a, b, k) in BONDS.items()}
    return {**found, **{name: float((z == element).sum()) for name, element in ATOMS.items()}}
