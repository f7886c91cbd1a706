"""The prototypes of the AFLOW library, as pymatgen brings them: 288 structures, most of elements and of two of them.

Source: Mehl et al., Comput. Mater. Sci. 136, S1 (2017). A prototype serves any composition whose elements fill its orbits (the
sites that symmetry makes equal): the orbits of one element may get different ones, and those of different elements the same, so
that D0_3 (Fe3Al) also gives the Heusler alloys.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.crystals import Crystal, check_crystal, niggli, quiet
from moldiff.errors import MoldiffError
from moldiff.evaluation.crystals.baseline import described, in_order, stacked
from moldiff.evaluation.crystals.elements import atomic_volumes, dissimilarity
from moldiff.evaluation.crystals.prototypes import AFLOW, Prototype, Prototypes, swapped

#: Prototypes of more atoms in the primitive cell are left out.
MOST_ATOMS = 40
#: Ways to fill the orbits of one prototype that are tried, and that are kept.
MOST_WAYS, KEPT_WAYS = 3000, 12
#: Added to the dissimilarity of a cell that has to be repeated, and of one whose elements take other orbits than in the library.
REPEATED, REDECORATED = 1.0, 0.5


@dataclass(frozen=True, eq=False)
class Entry:
    """A prototype in its primitive Niggli cell: ``orbit`` [N] numbers the orbit of each site from 0; by orbit the number of
    sites, the element and its guessed oxidation state."""

    name: str
    crystal: Crystal
    orbit: NDArray[np.int64]
    sizes: tuple[int, ...]
    elements: NDArray[np.int64]
    charges: NDArray[np.float64]

    @cached_property
    def same(self) -> NDArray[np.bool_]:
        """Whether two orbits hold the same element, [O, O]."""
        return np.asarray(self.elements[:, None] == self.elements[None])


class AflowPrototypes(Prototypes):
    """The AFLOW prototypes of pymatgen, in the order of how unlike the swapped elements are; no data set is needed."""

    name = AFLOW

    @property
    def digest(self) -> str:
        return hashlib.sha256(_file()).hexdigest()

    def found(self, numbers: NDArray[np.int64]) -> Iterator[Prototype]:
        entries, volumes = library()
        elements, counts, charges = described(numbers)
        ways: list[tuple[float, int, int, tuple[int, ...]]] = []
        for repeat in range(1, int(np.gcd.reduce(counts)) + 1):
            if any(n % repeat for n in counts):
                continue
            wanted = tuple(n // repeat for n in counts)
            for i, entry in enumerate(entries):
                if len(entry.crystal) == sum(wanted):
                    ways += [(d + REPEATED * (repeat > 1), repeat, i, way) for d, way in _ways(entry, elements, charges, wanted)]
        for _, repeat, i, way in sorted(ways):
            yield self._made(entries[i], elements[list(way)], repeat, numbers, volumes)

    def _made(
        self, entry: Entry, new: NDArray[np.int64], repeat: int, numbers: NDArray[np.int64], volumes: NDArray[np.float64]
    ) -> Prototype:
        z = new[entry.orbit]
        scale = (volumes[z].sum() / entry.crystal.volume) ** (1 / 3)
        one = Crystal(z, entry.crystal.frac_coords, entry.crystal.lattice * scale)
        made = one
        for _ in range(repeat - 1):
            made = stacked(made, one)
        label = f"{entry.name}{swapped(zip(entry.elements.tolist(), new.tolist(), strict=True))}"
        return Prototype(in_order(niggli(made), numbers), label + (f", {repeat} cells" if repeat > 1 else ""))


def _ways(
    entry: Entry, elements: NDArray[np.int64], charges: Sequence[float], counts: Sequence[int]
) -> list[tuple[float, tuple[int, ...]]]:
    """The ways to fill the orbits with elements of these counts, least unlike first: dissimilarity and an element an orbit."""
    ways = _fillings(entry.sizes, tuple(counts))
    if not ways:
        return []
    gap = dissimilarity(elements[:, None], np.array(charges)[:, None], entry.elements[None], entry.charges[None])  # [E, O]
    chosen, sizes = np.array(ways), np.array(entry.sizes)
    total = (gap[chosen, np.arange(len(sizes))] * sizes).sum(1) / sizes.sum()
    as_known = ((chosen[:, :, None] == chosen[:, None]) == entry.same).all((1, 2))
    total = total + np.where(as_known, 0.0, REDECORATED)
    return [(float(total[m]), ways[m]) for m in np.argsort(total, kind="stable")[:KEPT_WAYS].tolist()]


@lru_cache(maxsize=20_000)
def _fillings(sizes: tuple[int, ...], counts: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All ways to give each orbit of so many sites one element, so that element e gets ``counts[e]`` sites."""
    found: list[tuple[int, ...]] = []
    left = list(counts)

    def go(way: tuple[int, ...]) -> None:
        if len(found) == MOST_WAYS:
            return
        if len(way) == len(sizes):
            found.append(way)
            return
        for e in range(len(left)):
            if left[e] >= sizes[len(way)]:
                left[e] -= sizes[len(way)]
                go((*way, e))
                left[e] += sizes[len(way)]

    go(())
    return found


@lru_cache(maxsize=1)
def library() -> tuple[tuple[Entry, ...], NDArray[np.float64]]:
    """Return the prototypes, and a volume (Å^3) for each element [119] fitted to their cells."""
    found = []
    for row in json.loads(gzip.decompress(_file())):
        entry = _entry(row)
        if entry is not None:
            found.append(entry)
    cells = [entry.crystal for entry in found]
    volumes = atomic_volumes([c.numbers for c in cells], np.array([c.volume for c in cells]))
    return tuple(found), volumes


def _file() -> bytes:
    # The package is found, not imported: that takes seconds, and reads the same file into pymatgen's own objects.
    package = find_spec("pymatgen.analysis.prototypes")
    path = Path("" if package is None else str(package.origin)).parent / "aflow_prototypes.json.gz"
    try:
        return path.read_bytes()
    except OSError:
        raise MoldiffError(f"this version of pymatgen brings no AFLOW prototypes: {path} is missing") from None


def _entry(row: dict[str, Any]) -> Entry | None:
    """Read one prototype; None for what is disordered, no crystal, or too large."""
    import spglib
    from ase.data import atomic_numbers

    given, numbers = row["snl"], []
    for site in given["sites"]:
        species = site["species"]
        if len(species) != 1 or abs(species[0]["occu"] - 1) > 1e-6 or species[0]["element"] not in atomic_numbers:
            return None
        numbers.append(atomic_numbers[species[0]["element"]])
    whole = Crystal.of(numbers, [site["abc"] for site in given["sites"]], given["lattice"]["matrix"])
    if check_crystal(whole.numbers, whole.frac_coords, whole.lattice):
        return None
    standard = quiet(spglib.standardize_cell, whole.cell, to_primitive=True, symprec=0.01)
    if standard is None or len(standard[2]) > MOST_ATOMS:
        return None
    crystal = niggli(Crystal.of(standard[2], standard[1], standard[0]))
    data = quiet(spglib.get_symmetry_dataset, crystal.cell, symprec=0.01)
    if data is None:
        return None
    first, orbit, sizes = np.unique(data.equivalent_atoms, return_inverse=True, return_counts=True)
    elements, _, charges = described(crystal.numbers)
    states = dict(zip(elements.tolist(), charges, strict=True))
    old = crystal.numbers[first]
    name = f"AFLOW {row['tags']['aflow']} (space group {int(data.number)})"
    return Entry(
        name, crystal, orbit.reshape(-1).astype(np.int64), tuple(sizes.tolist()), old, np.array([states[int(z)] for z in old])
    )
