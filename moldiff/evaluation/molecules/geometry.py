"""Bond lengths, angles and torsions of a molecule, by the atoms that make them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moldiff.chem.bonds import Bonds
from moldiff.chem.molecules import symbols

Index = NDArray[np.int64]
Array = NDArray[np.float64]
#: A torsion is undefined where one of its angles is straight; beyond this one (degrees) it is left out.
STRAIGHT = 170.0
_DASH = {1: "-", 2: "=", 3: "#"}


@dataclass(frozen=True)
class Internals:
    """The internal coordinates of a bond graph: ``bonds`` [B, 2], ``angles`` [A, 3] (centre second), ``torsions`` [T, 4]
    (heavy atoms about a bond that is not triple), each with its ``*_labels`` (``C-N``, ``H-C=O`` by elements, torsions by their
    central bond)."""

    bonds: Index
    angles: Index
    torsions: Index
    bond_labels: list[str]
    angle_labels: list[str]
    torsion_labels: list[str]


def internals(numbers: ArrayLike, bonds: Bonds) -> Internals:
    """List the internal coordinates of a molecule with atomic numbers [N] and its bonds."""
    z = np.asarray(numbers, dtype=np.int64)
    names = symbols(z.tolist())
    orders = bonds.matrix()
    neighbours = [np.flatnonzero(row).tolist() for row in orders]
    pairs = [tuple(p) for p in bonds.index.tolist()]
    angles = [(i, j, k) for j, near in enumerate(neighbours) for a, i in enumerate(near) for k in near[a + 1 :]]
    torsions = [
        (i, j, k, m)
        for j, k in pairs
        if orders[j, k] < 3 and z[j] > 1 and z[k] > 1
        for i in neighbours[j]
        if i != k and z[i] > 1
        for m in neighbours[k]
        if m not in (i, j) and z[m] > 1
    ]

    def bond_label(i: int, j: int) -> str:
        a, b = sorted((i, j), key=lambda atom: z[atom])
        return f"{names[a]}{_DASH.get(int(orders[i, j]), '~')}{names[b]}"

    def angle_label(i: int, j: int, k: int) -> str:
        a, b = sorted((i, k), key=lambda atom: z[atom])
        return f"{names[a]}-{names[j]}-{names[b]}"

    return Internals(
        np.array(pairs, dtype=np.int64).reshape(-1, 2),
        np.array(angles, dtype=np.int64).reshape(-1, 3),
        np.array(torsions, dtype=np.int64).reshape(-1, 4),
        [bond_label(i, j) for i, j in pairs],
        [angle_label(*t) for t in angles],
        [bond_label(j, k) for _, j, k, _ in torsions],
    )


def bond_lengths(positions: ArrayLike, bonds: Index) -> Array:
    """Return lengths [B] in Å of atom pairs [B, 2]."""
    x = np.asarray(positions, dtype=np.float64)
    return np.asarray(np.linalg.norm(x[bonds[:, 0]] - x[bonds[:, 1]], axis=-1))


def bond_angles(positions: ArrayLike, angles: Index) -> Array:
    """Return angles [A] in degrees, 0..180, of atom triples [A, 3]; NaN where two atoms coincide."""
    x = np.asarray(positions, dtype=np.float64)
    u, v = x[angles[:, 0]] - x[angles[:, 1]], x[angles[:, 2]] - x[angles[:, 1]]
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (u * v).sum(-1) / (np.linalg.norm(u, axis=-1) * np.linalg.norm(v, axis=-1))
    return np.asarray(np.degrees(np.arccos(cosine.clip(-1, 1))))


def torsion_angles(positions: ArrayLike, torsions: Index) -> Array:
    """Return signed torsions [T] in degrees, -180..180, of atom quadruples [T, 4]; NaN where an angle is almost straight."""
    x = np.asarray(positions, dtype=np.float64)
    i, j, k, m = (x[torsions[:, c]] for c in range(4))
    axis = k - j
    n1, n2 = np.cross(j - i, axis), np.cross(axis, m - k)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = axis / np.linalg.norm(axis, axis=-1, keepdims=True)
        value = np.degrees(np.arctan2((np.cross(n1, n2) * unit).sum(-1), (n1 * n2).sum(-1)))
    first, second = bond_angles(x, torsions[:, :3]), bond_angles(x, torsions[:, 1:])
    bad = ~((first < STRAIGHT) & (second < STRAIGHT) & (first > 180 - STRAIGHT) & (second > 180 - STRAIGHT))
    return np.where(bad, np.nan, value)


def torsion_difference(a: Array, b: Array) -> Array:
    """Return the smallest differences |a - b| of torsions in degrees, on the circle."""
    return np.abs((a - b + 180) % 360 - 180)


def rmsd(a: ArrayLike, b: ArrayLike) -> float:
    """Return the smallest RMSD (Å) of two structures [N, 3] over translations and proper rotations, atom by atom.

    No permutation of equivalent atoms is tried. Source: Kabsch, Acta Cryst. A32, 922 (1976).
    """
    p, q = (np.asarray(x, dtype=np.float64) for x in (a, b))
    p, q = p - p.mean(0), q - q.mean(0)
    u, s, vt = np.linalg.svd(p.T @ q)
    s[-1] *= np.sign(np.linalg.det(u @ vt))
    square = (p**2).sum() + (q**2).sum() - 2 * s.sum()
    return float(np.sqrt(max(square, 0.0) / len(p)))
