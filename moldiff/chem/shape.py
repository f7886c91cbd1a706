"""Shapes that a graph forbids: centres of four bonds that are flat, double bonds that are twisted (no RDKit)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Of a tetrahedral centre 4/3, of real molecules of QM9 hardly ever below; 0 where all bonds lie in a plane.
LEAST_DEPTH = 0.3
#: Degrees by which a double bond may be twisted.
MOST_TWIST = 30.0


def least_depth(bonds: ArrayLike, positions: ArrayLike) -> float:
    """How far from a plane the bonds of the flattest atom with four neighbours are; infinite where there is none.

    The least eigenvalue of the sum of u u^T over the unit vectors u to its neighbours. ``bonds`` [N, N] orders, ``positions``
    [N, 3] in Å.
    """
    found = np.inf
    for vectors in (u for u in _directions(bonds, positions) if len(u) == 4):
        found = min(found, float(np.linalg.eigvalsh(vectors.T @ vectors)[0]))
    return found


def most_twist(bonds: ArrayLike, positions: ArrayLike) -> float:
    """The angle in degrees, 0 to 90, by which the most twisted double bond of ``bonds`` [N, N] is off its plane; 0 without one.

    Neighbours in line with the bond, as in cumulated double bonds, have no plane and are left out.
    """
    b, x = np.asarray(bonds), np.asarray(positions, dtype=np.float64)
    found = 0.0
    for i, j in np.argwhere(np.triu(b) == 2).tolist():
        axis = _unit(x[j] - x[i])
        sides = []
        for here, there in ((i, j), (j, i)):
            across = [x[k] - x[here] for k in np.flatnonzero(b[here]).tolist() if k != there]
            across = [v - axis * (v @ axis) for v in across]
            sides.append([_unit(v) for v in across if np.linalg.norm(v) > 0.2])
        for v in sides[0]:
            for w in sides[1]:
                found = max(found, float(np.degrees(np.arccos(min(1.0, abs(float(v @ w)))))))
    return found


def has_shape(bonds: ArrayLike, positions: ArrayLike) -> bool:
    """Whether no centre of four bonds is flat and no double bond twisted, by ``LEAST_DEPTH`` and ``MOST_TWIST``."""
    return least_depth(bonds, positions) >= LEAST_DEPTH and most_twist(bonds, positions) <= MOST_TWIST


def _directions(bonds: ArrayLike, positions: ArrayLike) -> Iterator[NDArray[np.float64]]:
    b, x = np.asarray(bonds), np.asarray(positions, dtype=np.float64)
    for i in range(len(b)):
        yield np.array([_unit(x[j] - x[i]) for j in np.flatnonzero(b[i]).tolist()]).reshape(-1, 3)


def _unit(v: NDArray[np.float64]) -> NDArray[np.float64]:
    return v / max(float(np.linalg.norm(v)), 1e-9)
