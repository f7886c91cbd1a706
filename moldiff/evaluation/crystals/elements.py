"""How alike two elements are in a compound: oxidation state, radius, electronegativity, place in the periodic table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

#: Scales that make the parts of the dissimilarity comparable: one unit of each is a clear difference.
CHARGE_SCALE, RADIUS_SCALE, ELECTRONEGATIVITY_SCALE, MENDELEEV_SCALE = 2.0, 0.35, 0.5, 12.0
#: More combinations of oxidation states than this are not tried.
_MOST = 20_000
#: Cells that the prior on the volumes of the elements weighs as much as.
_PRIOR = 0.5


@lru_cache(maxsize=1)
def element_table() -> NDArray[np.float64]:
    """Return radius (covalent, Å), electronegativity (Pauling; 0 where unknown) and Mendeleev number by atomic number [119, 3].

    Sources: Cordero et al., Dalton Trans. 2832 (2008), as in ASE; Pettifor, Solid State Commun. 51, 31 (1984), as in pymatgen.
    """
    from ase.data import covalent_radii
    from pymatgen.core import Element

    table = np.zeros((119, 3))
    for z in range(1, 119):
        data = Element.from_Z(z).data
        radius = float(covalent_radii[z]) if z < len(covalent_radii) else 1.7
        table[z] = radius, _number(data.get("X")), _number(data.get("Mendeleev no"))
    return table


@lru_cache(maxsize=1)
def _states() -> dict[int, tuple[int, ...]]:
    """Return the common oxidation states of each element, those of most use first."""
    from pymatgen.core import Element

    states: dict[int, tuple[int, ...]] = {}
    for z in range(1, 119):
        element = Element.from_Z(z)
        common = [int(q) for q in element.common_oxidation_states]
        icsd = [int(q) for q in element.icsd_oxidation_states]
        states[z] = tuple(dict.fromkeys(common + icsd))
    return states


@lru_cache(maxsize=200_000)
def oxidation_states(composition: tuple[tuple[int, int], ...]) -> tuple[float, ...]:
    """Guess the oxidation state of each element of a reduced composition ((Z, count), ...); zeros for metals and alloys.

    Of the combinations of known states that balance, that one in which charge follows electronegativity and the commonest states
    are used.
    """
    if len(composition) == 1:
        return (0.0,)
    electronegativity = element_table()[:, 1]
    options = [_states()[z][:6] for z, _ in composition]
    if any(not o for o in options) or np.prod([len(o) for o in options]) > _MOST:
        return (0.0,) * len(composition)
    x = [electronegativity[z] for z, _ in composition]
    best, least = (0.0,) * len(composition), float("inf")
    for ranks in product(*(range(len(o)) for o in options)):
        charges = [o[r] for o, r in zip(options, ranks, strict=True)]
        if sum(q * n for q, (_, n) in zip(charges, composition, strict=True)) != 0:
            continue
        wrong = any(qa > 0 > qb and xa > xb for qa, xa in zip(charges, x, strict=True) for qb, xb in zip(charges, x, strict=True))
        cost = sum(ranks) + 100 * wrong
        if cost < least:
            best, least = tuple(float(q) for q in charges), cost
    return best if least < 100 else (0.0,) * len(composition)


def unbalanced(composition: Sequence[tuple[int, int]]) -> bool:
    """Tell whether no known oxidation states balance a composition ((Z, count), ...): NaCl2, not NaCl, Fe3O4 or an alloy.

    The most electronegative element is the anion; atoms of one element may differ in their states (Fe3O4). Metals alone, and
    single elements, need no balance.
    """
    from pymatgen.core import Element

    if len(composition) < 2 or all(Element.from_Z(z).is_metal for z, _ in composition):
        return False
    electronegativity = element_table()[:, 1]
    anion = max((z for z, _ in composition), key=lambda z: electronegativity[z])
    low = high = 0
    for z, n in composition:
        states = [q for q in _states()[z] if (q < 0) == (z == anion) or q == 0]
        if not states:
            states = list(_states()[z])
        if not states:
            return False  # a noble gas, of which nothing is known
        low, high = low + n * min(states), high + n * max(states)
    return not low <= 0 <= high


def dissimilarity(
    z: NDArray[np.int64], charges: NDArray[np.float64], others: NDArray[np.int64], other_charges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how unlike elements with oxidation states are, elementwise over arrays that broadcast; 0 for the same element."""
    table = element_table()
    a, b = table[z], table[others]
    gap = (
        np.abs(charges - other_charges) / CHARGE_SCALE
        + np.abs(a[..., 0] - b[..., 0]) / RADIUS_SCALE
        + np.abs(a[..., 1] - b[..., 1]) / ELECTRONEGATIVITY_SCALE
        + np.abs(a[..., 2] - b[..., 2]) / MENDELEEV_SCALE
    )
    return np.where((z == others) & (charges == other_charges), 0.0, gap)


@lru_cache(maxsize=1)
def _default_volumes() -> NDArray[np.float64]:
    radii = element_table()[:, 0]
    return np.asarray(4 / 3 * np.pi * radii**3 * 1.6)


def atomic_volumes(numbers: Sequence[NDArray[np.int64]], volumes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit a volume (Å^3) for each element [119] so that their sums give the ``volumes`` [K] of cells.

    Not negative. Volumes of the covalent radii are a prior that weighs as much as a few cells, for elements that are rare or
    never occur apart.
    """
    from scipy.optimize import nnls

    counts = np.stack([np.bincount(z, minlength=119) for z in numbers]).astype(np.float64)
    sizes = counts.sum(1)
    x, y = counts / sizes[:, None], volumes / sizes
    prior = _default_volumes()
    # The normal equations are as small as the periodic table, whatever the number of cells.
    gram, right = x.T @ x + _PRIOR * np.eye(119), x.T @ y + _PRIOR * prior
    lower = np.linalg.cholesky(gram)
    fitted, _ = nnls(lower.T, np.linalg.solve(lower, right))
    return np.maximum(np.asarray(fitted, dtype=np.float64), 2.0)


def _number(value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        return 0.0
    return number if number == number else 0.0
