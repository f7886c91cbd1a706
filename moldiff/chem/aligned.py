"""Two crystals of one kind (``chem.orbits.kind_of``) laid upon each other: which atom is which, about which origin."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from moldiff.chem.orbits import Orbits, origins

#: Displacements that should be one another's images agree to this part of the cell.
_CLOSE = 1e-3
_CELLS = np.array([(i, j, k) for i in (0, 1, -1) for j in (0, 1, -1) for k in (0, 1, -1)], dtype=np.float64)
#: The cost of what can't be laid upon each other.
_NEVER = 1e6


@dataclass(frozen=True, eq=False)
class Laid:
    """A crystal of N atoms with G operations in an order that all crystals of its kind share.

    ``turns`` float [G, 3, 3] and ``to`` int [G, N] as in ``Orbits``, ``x`` [N, 3] its coordinates, ``slot`` [N] the place of each
    atom's element among ``Kind.elements``, and ``orbits`` the atoms of each orbit, the first of them its lead.
    """

    turns: NDArray[np.float64]
    to: NDArray[np.int64]
    x: NDArray[np.float64]
    slot: NDArray[np.int64]
    orbits: tuple[NDArray[np.int64], ...] = field(init=False)

    def __post_init__(self) -> None:
        first = self.to.min(0)
        object.__setattr__(self, "orbits", tuple(np.flatnonzero(first == lead) for lead in np.unique(first)))

    @classmethod
    def of(cls, found: Orbits, slot: NDArray[np.int64]) -> Laid:
        """A crystal with the slot of each atom."""
        order = np.lexsort(found.rotations.reshape(len(found.to), 9).T)
        turns = found.rotations[order].astype(np.float64)
        return cls(turns, found.to[order].astype(np.int64), np.asarray(found.frac_coords), slot)

    def __len__(self) -> int:
        return len(self.slot)

    def moved(self, x: NDArray[np.float64]) -> Laid:
        """The same with other coordinates."""
        return Laid(self.turns, self.to, x, self.slot)


def near(
    reference: Laid, other: Laid, cell: NDArray[np.float64], enough: float = 0.0
) -> tuple[float, NDArray[np.float64]] | None:
    """The least root mean square distance of the atoms, in units of ``cell`` [3, 3], over all ways to lay ``other`` upon
    ``reference``, with the coordinates [N, 3] of ``other`` in the reference's order, next to its own; None where there is no way.

    A way is an origin that leaves the operations as they are (along axes that the group leaves free: any), and for each orbit
    another of the same slot, whose lead may be any atom of the same site symmetry: displacements then have the symmetry. The
    search ends where the distance is not above ``enough``.
    """
    best: tuple[float, NDArray[np.float64]] | None = None
    free = reference.turns.mean(0)  # what the group leaves of a translation
    polar = bool(np.abs(free).max() > 1e-6)
    for origin in origins(reference.turns.astype(np.int8).tobytes(), len(reference.turns)):
        shifts = [origin]
        if polar:
            rare = int(np.bincount(reference.slot).argmin())
            lead = reference.x[np.flatnonzero(reference.slot == rare)[0]]
            shifts = [origin + free @ _short(lead - x - origin) for x in other.x[other.slot == rare]]
        for shift in shifts:
            for _ in range(2 if polar else 1):
                way = _way(reference, other, other.x + shift, cell)
                if way is None:
                    break
                distance = float(np.sqrt(np.square(way @ cell).sum(-1).mean()))
                if best is None or distance < best[0]:
                    best = distance, reference.x + way
                shift = shift - free @ way.mean(0)
            if best is not None and best[0] <= enough:
                return best
    return best


def _way(reference: Laid, other: Laid, x: NDArray[np.float64], cell: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The displacements [N, 3] from the reference's atoms to those of ``other`` at ``x`` that suit them best."""
    ways = np.zeros_like(x)
    for slot in range(int(reference.slot.max()) + 1):
        ours = [orbit for orbit in reference.orbits if reference.slot[orbit[0]] == slot]
        theirs = [orbit for orbit in other.orbits if other.slot[orbit[0]] == slot]
        if len(ours) != len(theirs):
            return None
        found = [[_of_orbit(reference, a, other, b, x, cell) for b in theirs] for a in ours]
        cost = np.array([[_NEVER if one is None else one[0] for one in row] for row in found])
        rows, columns = linear_sum_assignment(cost)
        for i, j in zip(rows.tolist(), columns.tolist(), strict=True):
            one = found[i][j]
            if one is None:
                return None
            ways[one[1]] = one[2]
    return ways


def _of_orbit(
    reference: Laid, ours: NDArray[np.int64], other: Laid, theirs: NDArray[np.int64], x: NDArray[np.float64],
    cell: NDArray[np.float64],
) -> tuple[float, NDArray[np.int64], NDArray[np.float64]] | None:  # fmt: skip
    """The least sum of squared distances of two orbits, the atoms of the first (an image for each operation) and their ways."""
    if len(ours) != len(theirs):
        return None
    images = reference.to[:, ours[0]]
    stays = images == ours[0]
    leads = theirs[((other.to[:, theirs] == theirs) == stays[:, None]).all(0)]
    ways = _short(x[leads] - reference.x[ours[0]])[:, None] + _CELLS  # [L, 27, 3]
    left = np.abs(np.einsum("gij,lcj->glci", reference.turns[stays], ways) - ways).max((0, 3), initial=0.0)
    # one that does not stay leaves the place that its site symmetry fixes
    length = np.where(left < _CLOSE, np.square(ways @ cell).sum(-1), np.inf)
    if not np.isfinite(length).any():
        return None
    way = np.take_along_axis(ways, length.argmin(1)[:, None, None], 1)[:, 0]
    turned = np.einsum("gij,lj->lgi", reference.turns, way)
    off = np.abs(_short(x[other.to[:, leads].T] - reference.x[images] - turned)).max((1, 2))
    cost = np.square(turned @ cell).sum((1, 2)) * len(ours) / len(images)
    cost = np.where((off < _CLOSE) & np.isfinite(length.min(1)), cost, np.inf)
    best = int(cost.argmin())
    return (float(cost[best]), images, turned[best]) if np.isfinite(cost[best]) else None


def _short(way: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(way - np.rint(way))
