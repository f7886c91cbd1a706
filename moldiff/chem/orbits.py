"""The symmetry operations of a crystal in the basis of its own cell, and its atoms brought exactly where these want them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.crystals import Crystal
from moldiff.chem.symmetry import SYMPREC, dataset

#: Translations of operations are multiples of this part of the cell, about the origins of the tables.
_TWENTY_FOURTHS = 24
#: Atoms may lie this far (Å) from where an operation takes another to, at most.
_FAR = 0.5
#: Orders of elements that stand for one structure are looked for up to so many for an origin.
_MOST_ALIKE = 120


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


@dataclass(frozen=True)
class Kind:
    """What two crystals share that differ in elements, cell and free coordinates only: ``code`` is equal for both, and
    ``elements`` are the atomic numbers of the slots that the code distinguishes, in its order, with their ``counts``. ``alike``
    are the orders in which the same elements stand for the same structure: at least that of the slots themselves."""

    code: str
    elements: tuple[int, ...]
    counts: tuple[int, ...]
    alike: tuple[tuple[int, ...], ...]


def kind_of(found: Orbits, numbers: NDArray[np.int64]) -> Kind:
    """The kind of a crystal with these atomic numbers [N]: its operations in the basis of its cell, and where its orbits lie.

    A place is what an atom's site symmetry fixes of its coordinates, up to whole cells. Of all origins that leave the operations
    as they are the one is taken with the least list of places, so that rock salt is one kind and not two. Turns of the axes that
    the group allows are not looked for: the same structure in another basis is another kind.
    """
    turns = found.rotations.astype(np.float64)
    places = _places(turns, found.to, found.frac_coords, origins(found.rotations.tobytes(), len(turns)))
    first = found.to.min(0)
    members = {z: np.flatnonzero(numbers == z) for z in sorted(set(numbers.tolist()))}
    best: list[Any] | None = None
    orders: set[tuple[int, ...]] = set()
    for place in places:
        slots = []
        for element, atoms in members.items():
            leads = sorted(set(first[atoms].tolist()))
            sets = sorted(tuple(sorted(place[i] for i in atoms if first[i] == lead)) for lead in leads)
            slots.append((len(atoms), sets, element))
        slots.sort()
        code = [slot[:2] for slot in slots]
        if best is None or code < best:
            best, orders = code, set()
        if code == best:
            orders |= _exchanged(code, [slot[2] for slot in slots])
    assert best is not None
    elements = min(orders)
    order = np.lexsort(turns.reshape(len(turns), 9).T)
    text = repr((found.number, turns[order].astype(int).ravel().tolist(), best))
    alike = tuple(sorted(tuple(elements.index(z) for z in other) for other in orders))
    return Kind(hashlib.sha256(text.encode()).hexdigest()[:24], elements, tuple(count for count, _ in best), alike)


def _exchanged(code: list[Any], elements: list[int]) -> set[tuple[int, ...]]:
    """The orders of elements that differ within slots of one code only."""
    runs = [list(run) for _, run in groupby(range(len(code)), key=lambda i: code[i])]
    parts = [permutations([elements[i] for i in run]) for run in runs]
    return {tuple(z for part in way for z in part) for way, _ in zip(product(*parts), range(_MOST_ALIKE), strict=False)}


def _places(
    turns: NDArray[np.float64], to: NDArray[np.int8], x: NDArray[np.float64], origins: NDArray[np.float64]
) -> list[list[tuple[int, ...]]]:
    """For each origin [K, 3] the place of each atom, in 144ths of the cell."""
    stays = to == np.arange(len(x))
    free = np.einsum("gn,gij->nij", stays.astype(np.float64), turns) / stays.sum(0)[:, None, None]
    fixed = np.eye(3) - free  # [N, 3, 3]
    cells = np.einsum("nij,cj->nci", fixed, _CELLS)
    shifted = np.einsum("nij,knj->kni", fixed, x + origins[:, None])
    candidates = np.rint((shifted[:, :, None] + cells) * 144).astype(np.int64)  # [K, N, C, 3]
    outside = (candidates < 0).any(-1)
    ranked = candidates @ np.array([1_000_000, 1_000, 1]) + outside * 10**9
    least = ranked.argmin(-1)
    chosen = np.take_along_axis(candidates, least[..., None, None], 2)[:, :, 0]
    return [[tuple(atom) for atom in origin] for origin in chosen.tolist()]


_CELLS = np.array([(i, j, k) for i in range(-2, 3) for j in range(-2, 3) for k in range(-2, 3)], dtype=np.float64)


@lru_cache(maxsize=4096)
def origins(rotations: bytes, n: int) -> NDArray[np.float64]:
    """Shifts of the origin [K, 3] that leave operations as they are, up to those along axes that the group leaves free."""
    turns = np.frombuffer(rotations, dtype=np.int8).reshape(n, 3, 3).astype(np.float64)
    grid = np.stack(np.meshgrid(*[np.arange(_TWENTY_FOURTHS) / _TWENTY_FOURTHS] * 3, indexing="ij"), -1).reshape(-1, 3)
    moved = np.einsum("gij,kj->kgi", turns - np.eye(3), grid)
    allowed = grid[(np.abs(moved - np.rint(moved)) < 1e-6).all((1, 2))]
    fixed = np.eye(3) - turns.mean(0)
    seen: dict[tuple[int, ...], NDArray[np.float64]] = {}
    for shift in allowed:
        mark = np.rint((fixed @ shift) * 144).astype(int)
        seen.setdefault(tuple(mark.tolist()), shift)
    return np.array(list(seen.values()))
