"""Space groups: the symmetry that spglib finds, the conventional symmetrised cell, and labels of prototypes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.crystals import Crystal, check_crystal, formula_of, quiet

#: Tolerance (Å) of the symmetry of a generated structure; 0.01, usual for relaxed ones, finds P1 in nearly every sample.
SYMPREC = 0.1
#: Space groups that are mirror images of each other: the second of each pair stands for both in a prototype's label, because
#: StructureMatcher does not tell them apart either.
_ENANTIOMORPHS = {
    76: 78, 91: 95, 92: 96, 144: 145, 151: 153, 152: 154, 169: 170, 171: 172, 178: 179, 180: 181, 212: 213,
}  # fmt: skip


_RECENT: dict[tuple[bytes, bytes, bytes, float], Any] = {}


@dataclass(frozen=True)
class SpaceGroup:
    """A space group: its ``number`` 1..230, its international (short) ``symbol`` and its crystal ``system``."""

    number: int
    symbol: str

    @property
    def system(self) -> str:
        """Name of the crystal system."""
        bounds = (2, 15, 74, 142, 167, 194, 230)
        names = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
        return next(name for bound, name in zip(bounds, names, strict=True) if self.number <= bound)


@dataclass(frozen=True)
class Symmetrised:
    """The conventional cell of a crystal after symmetrising it.

    ``crystal`` is the whole conventional cell in the standard setting, ``group`` its space group, ``rotations`` int [K, 3, 3]
    and ``translations`` [K, 3] its operations, ``asymmetric`` the indices of one atom of each orbit, ``wyckoffs`` the letter of
    each atom.
    """

    crystal: Crystal
    group: SpaceGroup
    rotations: NDArray[np.int64]
    translations: NDArray[np.float64]
    asymmetric: NDArray[np.int64]
    wyckoffs: tuple[str, ...]


def space_group(crystal: Crystal, symprec: float = SYMPREC) -> SpaceGroup:
    """Return the space group within ``symprec`` (Å); P1 where spglib finds none."""
    found = dataset(crystal, symprec)
    return SpaceGroup(1, "P1") if found is None else SpaceGroup(int(found.number), str(found.international))


def space_group_number(text: str) -> int | None:
    """The number of a space group given by number or international symbol (short or full); None for what is none."""
    if text.isdecimal():
        return int(text) if 1 <= int(text) <= 230 else None
    from pymatgen.symmetry.groups import SpaceGroup as Tables

    try:
        return int(Tables(text).int_number)
    except ValueError:
        return None


def symmetrise(crystal: Crystal, symprec: float = SYMPREC) -> Symmetrised | None:
    """Return the conventional symmetrised cell, or None where spglib finds no symmetry beyond P1.

    A tolerance at which spglib merges atoms, so that they overlap or the composition changes, is halved until it does not.
    """
    while symprec > 1e-4:
        found = dataset(crystal, symprec)
        if found is None or found.number == 1:
            return None
        made = Crystal.of(found.std_types, found.std_positions, found.std_lattice)
        again = dataset(made, 1e-4)
        sound = formula_of(made.numbers, reduced=True) == crystal.reduced_formula and not check_crystal(
            made.numbers, made.frac_coords, made.lattice
        )
        if sound and again is not None and again.number == found.number:
            return Symmetrised(
                made,
                SpaceGroup(int(again.number), str(again.international)),
                np.asarray(again.rotations, dtype=np.int64),
                np.asarray(again.translations, dtype=np.float64),
                np.unique(np.asarray(again.crystallographic_orbits)),
                tuple(again.wyckoffs),
            )
        symprec /= 2
    return None


def prototype_label(crystal: Crystal, symprec: float = SYMPREC) -> str:
    """Label the prototype of a crystal: space group and, for each element, how many atoms each of its orbits has.

    ``225|Cl:1|Na:1`` is rock salt: multiplicities are those of the primitive cell, so that cells and supercells agree, origins
    and axes play no part, and mirror images share a label. Coarser than StructureMatcher in parameters that symmetry leaves free,
    finer where noise hides symmetry.
    """
    from ase.data import chemical_symbols

    found = dataset(crystal, symprec)
    if found is None:
        counts = np.unique(crystal.numbers, return_counts=True)
        parts = [f"{chemical_symbols[z]}:{'+'.join(['1'] * n)}" for z, n in zip(*(c.tolist() for c in counts), strict=True)]
        return "|".join(["1", *sorted(parts)])
    # Orbits hold all atoms of the given cell; dividing by the number of primitive cells in it makes the label one of the crystal.
    n_cells = len(crystal) / max(1, len(set(np.asarray(found.mapping_to_primitive).tolist())))
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    for orbit in np.unique(np.asarray(found.crystallographic_orbits)):
        members = np.flatnonzero(np.asarray(found.crystallographic_orbits) == orbit)
        sizes[chemical_symbols[int(crystal.numbers[members[0]])]].append(round(len(members) / n_cells))
    parts = [f"{symbol}:{'+'.join(str(n) for n in sorted(s))}" for symbol, s in sorted(sizes.items())]
    return "|".join([str(_ENANTIOMORPHS.get(int(found.number), int(found.number))), *parts])


def fingerprint(crystal: Crystal, symprec: float = SYMPREC) -> str:
    """Return the text whose hash stands for a crystal in coarse look-ups: reduced formula and prototype label."""
    return f"{crystal.reduced_formula} {prototype_label(crystal, symprec)}"


@lru_cache(maxsize=1)
def _spglib() -> Any:
    import os

    # spglib writes warnings on every cell without symmetry to stderr.
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    import spglib

    return spglib


def dataset(crystal: Crystal, symprec: float) -> Any:
    """Find the symmetry of a crystal; the last few results are kept, since group and label are asked one after the other."""
    key = (crystal.numbers.tobytes(), crystal.frac_coords.tobytes(), crystal.lattice.tobytes(), symprec)
    if key not in _RECENT:
        while len(_RECENT) >= 8:
            _RECENT.pop(next(iter(_RECENT)))
        near = crystal.min_distance
        # A tolerance near the distance between atoms would merge them.
        tolerance = max(near / 4 if near < 2 * symprec else symprec, 1e-6)
        _RECENT[key] = quiet(_spglib().get_symmetry_dataset, crystal.cell, symprec=tolerance)
    return _RECENT[key]
