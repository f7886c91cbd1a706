"""Crystals as arrays, and their ways to and from pymatgen and ASE; cells that are right, reduced, primitive."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

#: Atoms closer than this (Å) overlap: no two nuclei of a crystal are, at any pressure that people reach.
MIN_DISTANCE = 0.5
#: A cell below this volume (Å^3) is no cell.
MIN_VOLUME = 0.1
#: Tolerance (Å) for finding the primitive cell of a structure whose numbers are meant to be exact.
PRIMITIVE_TOLERANCE = 0.01
_IMAGES = np.array(list(product((-1.0, 0.0, 1.0), repeat=3)))
_AMU_PER_A3 = 1.66053906660


@dataclass(frozen=True)
class Crystal:
    """A crystal: ``numbers`` int64 [N], ``frac_coords`` float64 [N, 3], ``lattice`` float64 [3, 3] with rows in Å."""

    numbers: NDArray[np.int64]
    frac_coords: NDArray[np.float64]
    lattice: NDArray[np.float64]

    @classmethod
    def of(cls, numbers: ArrayLike, frac_coords: ArrayLike, lattice: ArrayLike) -> Crystal:
        """Build a crystal from anything array-like; raises ValueError for wrong shapes."""
        z = np.asarray(numbers, dtype=np.int64).reshape(-1)
        return cls(
            z,
            np.asarray(frac_coords, dtype=np.float64).reshape(len(z), 3),
            np.asarray(lattice, dtype=np.float64).reshape(3, 3),
        )

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def cell(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """The triple (lattice, fractional coordinates, numbers) that spglib takes."""
        return self.lattice, self.frac_coords, self.numbers

    @property
    def volume(self) -> float:
        """Volume of the cell (Å^3)."""
        return abs(float(np.linalg.det(self.lattice)))

    @property
    def positions(self) -> NDArray[np.float64]:
        """Cartesian coordinates [N, 3] (Å)."""
        return np.asarray(self.frac_coords @ self.lattice, dtype=np.float64)

    @property
    def density(self) -> float:
        """Mass density (g/cm^3)."""
        from ase.data import atomic_masses

        return float(atomic_masses[self.numbers].sum()) * _AMU_PER_A3 / self.volume

    @property
    def lengths(self) -> NDArray[np.float64]:
        """Lengths of the cell vectors [3] (Å)."""
        return np.asarray(np.linalg.norm(self.lattice, axis=1))

    @property
    def angles(self) -> NDArray[np.float64]:
        """Angles alpha, beta, gamma of the cell [3] (degrees)."""
        u = self.lattice / self.lengths[:, None]
        cosines = np.clip([u[1] @ u[2], u[0] @ u[2], u[0] @ u[1]], -1, 1)
        return np.asarray(np.degrees(np.arccos(cosines)), dtype=np.float64)

    @cached_property
    def min_distance(self) -> float:
        """Least distance between two atoms, periodic images of the same atom included (Å)."""
        return min_distance(self.frac_coords, self.lattice)

    @property
    def formula(self) -> str:
        """Formula of the cell, elements by electronegativity: ``Li4 Fe4 P4 O16`` is written ``Li4Fe4P4O16``."""
        return formula_of(self.numbers)

    @property
    def reduced_formula(self) -> str:
        """The same, divided by the greatest common divisor of the counts."""
        return formula_of(self.numbers, reduced=True)


def formula_of(numbers: ArrayLike, *, reduced: bool = False) -> str:
    """Write the formula of atomic numbers [N], elements in the order of electronegativity (Pauling), as is usual for crystals."""
    from pymatgen.core import Element

    z, counts = np.unique(np.asarray(numbers, dtype=np.int64), return_counts=True)
    if reduced and len(counts):
        counts = counts // np.gcd.reduce(counts)
    elements = [Element.from_Z(int(k)) for k in z]
    order = sorted(range(len(z)), key=lambda i: (_electronegativity(elements[i]), elements[i].symbol))
    return "".join(elements[i].symbol + (str(counts[i]) if counts[i] > 1 else "") for i in order)


def check_crystal(numbers: ArrayLike, frac_coords: ArrayLike, lattice: ArrayLike, *, max_atoms: int | None = None) -> str:
    """Say why arrays are no crystal that can be used, or return an empty string.

    ``numbers`` [N], ``frac_coords`` [N, 3], ``lattice`` [3, 3] (Å). Checked: some atoms, no more than ``max_atoms``, finite
    numbers, known elements, a cell with a volume, and no overlap (``MIN_DISTANCE``).
    """
    z, f, cell = np.asarray(numbers), np.asarray(frac_coords, dtype=np.float64), np.asarray(lattice, dtype=np.float64)
    if len(z) == 0:
        return "no atoms"
    if max_atoms is not None and len(z) > max_atoms:
        return f"more than {max_atoms} atoms"
    if f.shape != (len(z), 3) or cell.shape != (3, 3):
        return "coordinates or lattice of the wrong shape"
    if not (np.isfinite(f).all() and np.isfinite(cell).all()):
        return "non-finite numbers"
    if z.min() < 1 or z.max() > 118:
        return "unknown element"
    lengths = np.linalg.norm(cell, axis=1)
    volume = abs(float(np.linalg.det(cell)))
    # A flat cell has a volume of rounding errors only; compare with that of a box of the same lengths.
    if volume < MIN_VOLUME or volume < 1e-3 * float(np.prod(lengths)):
        return "zero cell"
    if lengths.max() > 1e4 or np.abs(f).max() > 1e6:
        return "numbers out of range"
    if min_distance(f, cell) < MIN_DISTANCE:
        return "overlapping atoms"
    return ""


def min_distance(frac_coords: ArrayLike, lattice: ArrayLike) -> float:
    """Return the least distance between two atoms of a crystal, images of the same atom included (Å).

    The cell is Niggli-reduced first: in a reduced cell the nearest image lies within one cell of the wrapped difference.
    """
    f, cell = np.asarray(frac_coords, dtype=np.float64), np.asarray(lattice, dtype=np.float64)
    reduced = _niggli_lattice(cell)
    f = f @ cell @ np.linalg.inv(reduced)
    shortest = float(np.linalg.norm(_IMAGES[np.abs(_IMAGES).sum(1) > 0] @ reduced, axis=1).min())
    i, j = np.triu_indices(len(f), 1)
    best = shortest
    # A block of pairs at a time keeps cells of thousands of atoms within memory.
    for start in range(0, len(i), 20_000):
        d = f[i[start : start + 20_000]] - f[j[start : start + 20_000]]
        d -= np.round(d)
        x = (d[:, None, :] + _IMAGES) @ reduced
        best = min(best, float(np.sqrt((x * x).sum(-1).min())))
    return best


def closeness(crystal: Crystal) -> float:
    """Return the least distance between atoms, their images among them, over the sum of their covalent radii (Cordero et al.
    2008, as in ASE). Images up to one cell away are looked at, as is right for reduced cells."""
    from ase.data import covalent_radii

    offset = crystal.frac_coords[:, None] - crystal.frac_coords[None]
    offset -= np.round(offset)
    steps = np.arange(-1, 2)
    images = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    away = np.linalg.norm((offset[:, :, None] + images) @ crystal.lattice, axis=-1)
    n = len(crystal)
    away[np.arange(n), np.arange(n), len(images) // 2] = np.inf
    radii = np.array([covalent_radii[z] if z < len(covalent_radii) else 1.5 for z in crystal.numbers.tolist()])
    return float((away.min(-1) / (radii[:, None] + radii)).min())


def niggli(crystal: Crystal) -> Crystal:
    """Return the same crystal in its Niggli cell.

    The cell is right-handed in the standard orientation (a along x, b in the xy plane), coordinates lie in [0, 1). Nothing is
    mirrored. Source: Krivy and Gruber, Acta Cryst. A32, 297 (1976); Grosse-Kunstleve, Sauter and Adams, Acta Cryst. A60, 1
    (2004), as in spglib.
    """
    reduced = _niggli_lattice(crystal.lattice)
    frac = crystal.frac_coords @ crystal.lattice @ np.linalg.inv(reduced)
    if np.linalg.det(reduced) < 0:
        # The same points in the opposite basis: a change of basis, no reflection of the crystal.
        reduced, frac = -reduced, -frac
    return Crystal(crystal.numbers, wrap(frac), standard_orientation(reduced))


def niggli_basis(lattice: ArrayLike) -> NDArray[np.int64]:
    """Whole numbers [3, 3] with determinant 1 or -1 that make a lattice's Niggli cell: its rows are ``basis @ lattice``.

    The Niggli cell is right-handed and not turned. Fractional coordinates f of the lattice are f @ inverse(basis) of the Niggli
    cell, whose own are g @ basis of the lattice. Raises ValueError for a cell so flat that it can't be reduced exactly.
    """
    cell = np.asarray(lattice, dtype=np.float64)
    reduced = _niggli_lattice(cell)
    exact = reduced @ np.linalg.inv(cell)
    basis = np.rint(exact).astype(np.int64)
    if not np.allclose(exact, basis, atol=1e-3) or abs(round(float(np.linalg.det(basis)))) != 1:
        raise ValueError("a cell that can't be reduced")
    return basis if np.linalg.det(reduced) > 0 else -basis


def primitive(crystal: Crystal, tolerance: float = PRIMITIVE_TOLERANCE) -> Crystal:
    """Return the primitive cell (spglib, positions not idealised), or the crystal itself where there is no smaller one."""
    import spglib

    if np.gcd.reduce(np.unique(crystal.numbers, return_counts=True)[1]) == 1:
        return crystal
    found = quiet(spglib.standardize_cell, crystal.cell, to_primitive=True, no_idealize=True, symprec=tolerance)
    if found is None or len(found[2]) >= len(crystal):
        return crystal
    lattice, frac, numbers = found
    return Crystal.of(numbers, frac, lattice)


def standard_orientation(lattice: ArrayLike) -> NDArray[np.float64]:
    """Rotate a right-handed cell [3, 3] so that a lies along x and b in the xy plane with a positive y."""
    r = np.linalg.qr(np.asarray(lattice, dtype=np.float64).T, mode="r")
    cell = (r * np.sign(np.diag(r))[:, None]).T
    return np.where(np.abs(cell) < 1e-12, 0.0, cell)


def wrap(frac_coords: NDArray[np.float64]) -> NDArray[np.float64]:
    """Wrap fractional coordinates into [0, 1), also after they are rounded to single precision."""
    f = frac_coords - np.floor(frac_coords)
    return np.where(f.astype(np.float32) >= 1, 0.0, f)


def to_structure(crystal: Crystal) -> Structure:
    """Return a pymatgen Structure."""
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(crystal.lattice), crystal.numbers.tolist(), crystal.frac_coords)


def from_structure(structure: Structure) -> Crystal:
    """Take the arrays of a pymatgen Structure; raises ValueError for partial occupancy or a species that is no element."""
    if not structure.is_ordered:
        raise ValueError("partial occupancy")
    numbers = [_atomic_number(site.specie) for site in structure]
    return Crystal.of(numbers, structure.frac_coords, structure.lattice.matrix)


def to_ase(crystal: Crystal) -> Atoms:
    """Return periodic ASE Atoms."""
    from ase import Atoms

    return Atoms(numbers=crystal.numbers, scaled_positions=crystal.frac_coords, cell=crystal.lattice, pbc=True)


def from_ase(atoms: Atoms) -> Crystal:
    """Take the arrays of ASE Atoms; raises ValueError where they are not periodic in three directions or have no cell."""
    if not all(atoms.pbc):
        raise ValueError("not periodic in three directions")
    cell = np.asarray(atoms.cell[:], dtype=np.float64)
    if atoms.cell.rank < 3:
        raise ValueError("zero cell")
    occupancy = atoms.info.get("occupancy")
    if occupancy and any(abs(sum(site.values()) - 1) > 1e-6 or len(site) > 1 for site in occupancy.values()):
        raise ValueError("partial occupancy")
    frac = np.linalg.solve(cell.T, np.asarray(atoms.get_positions(), dtype=np.float64).T).T
    return Crystal.of(atoms.get_atomic_numbers(), frac, cell)


def quiet(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function of spglib; None where it finds nothing, in the old and the new way of saying so."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if type(error).__module__.split(".")[0] != "spglib":
                raise
            return None


def _niggli_lattice(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the vectors of the Niggli cell, not rotated; the cell itself where the reduction fails (nearly flat cells)."""
    import spglib

    # The tolerance is in Å^2: relative to the size of the cell it is that of pymatgen.
    reduced = quiet(spglib.niggli_reduce, lattice, eps=1e-5 * abs(float(np.linalg.det(lattice))) ** (1 / 3))
    if reduced is None:
        reduced = quiet(spglib.delaunay_reduce, lattice)
    return lattice if reduced is None else np.asarray(reduced, dtype=np.float64)


def _atomic_number(specie: Any) -> int:
    number = getattr(specie, "Z", None)
    if number is None or type(specie).__name__ == "DummySpecies":
        raise ValueError("unknown element")
    return int(number)


def _electronegativity(element: Any) -> float:
    """Return Pauling's electronegativity, infinite for the noble gases that have none (pymatgen would warn of each)."""
    value = element.data.get("X")
    return float(value) if value is not None and value == value else float("inf")
