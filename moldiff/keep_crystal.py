"""Parts given of a crystal: its cell, or its cell with some of its sites, that every sample keeps exactly."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moldiff.chem.crystals import Crystal, check_crystal, niggli_basis, primitive
from moldiff.chem.molecules import symbols
from moldiff.composition import TYPES, Compositions, Elements
from moldiff.control import Place, Spec
from moldiff.errors import BadRequest
from moldiff.keep import check_known, check_processes, padded, refuse_two, repeated

if TYPE_CHECKING:
    from moldiff.model_store import ModelInfo
    from moldiff.sampling.control import Control

#: Volumes an atom (Å^3) that a kept cell may leave: beyond them no known crystal lies (diamond has 5.7, caesium 110).
LEAST_VOLUME, MOST_VOLUME = 4.0, 150.0


@dataclass(frozen=True, eq=False)
class KeepCrystal(Spec):
    """Every sample has the cell of ``crystal``, vectors as in its file, and its ``sites`` (indices), which come first.

    Without sites only the cell is kept. The model works in the Niggli-reduced cell; what comes back is in the file's.
    """

    crystal: Crystal
    sites: tuple[int, ...] = ()
    resamplings: int = 1
    label: str = "the crystal"

    @property
    def name(self) -> str:  # type: ignore[override]
        """The verb that asked for it."""
        return "keep" if self.sites else "keep_cell"

    @property
    def gives(self) -> tuple[str, ...]:  # type: ignore[override]
        """Types are fixed for the kept sites only and go together with a formula, so they are not among these."""
        return ("lattice", "frac_coords") if self.sites else ("lattice",)

    @property
    def passes(self) -> int:  # type: ignore[override]
        """Every step is made ``resamplings`` times."""
        return self.resamplings

    @cached_property
    def numbers(self) -> list[int]:
        """Atomic numbers of the kept sites."""
        return [int(self.crystal.numbers[i]) for i in self.sites]

    @cached_property
    def places(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Fractional coordinates of the kept sites in the file's cell, [K, 3] in [0, 1)."""
        frac = self.crystal.frac_coords[list(self.sites)] if self.sites else np.zeros((0, 3))
        frac = (frac - np.floor(frac)).astype(np.float32)
        return np.where(frac >= 1, np.float32(0), frac)

    def settings(self) -> Any:
        digest = hashlib.sha256(np.ascontiguousarray(self.crystal.lattice).tobytes())
        digest.update(self.places.tobytes())
        return {
            "atoms": "".join(symbols(self.numbers)), "sites": list(self.sites), "sha256": digest.hexdigest(),
            "resamplings": self.resamplings,
        }  # fmt: skip

    def check(self, info: ModelInfo) -> None:
        if info.config.kind != "crystal":
            raise BadRequest(f"{info.name} makes molecules: it has no cell to keep, only a fragment")
        check_known(info, self.label, self.numbers)
        if len(self.sites) > max(info.sizes):
            most = max(info.sizes)
            raise BadRequest(f"{self.label} has {len(self.sites)} atoms to keep, {info.name} makes at most {most}")
        check_processes(info, self.gives, self.resamplings)

    def cautions(self, info: ModelInfo) -> list[str]:
        said = []
        if len(self.crystal) and len(primitive(self.crystal)) < len(self.crystal):
            said.append(f"{self.label} is a centred cell or a supercell, and {info.name} was trained on primitive ones")
        return said

    def check_beside(self, others: Sequence[Spec]) -> None:
        refuse_two(self, others)
        kept = Counter(self.numbers)
        for row in (row for other in others if isinstance(other, Compositions) for row in other.rows):
            asked = dict(row.counts)
            short = [z for z, n in kept.items() if asked.get(z, 0) < n]
            if short:
                z = short[0]
                raise BadRequest(
                    f"{row} has {asked.get(z, 0)} atoms of {symbols([z])[0]}, and {kept[z]} of {self.label} are kept: "
                    "the formula counts them too"
                )
        for other in others:
            if isinstance(other, Elements):
                left = set(kept) - set(other.allowed(sorted(kept)))
                if left:
                    names = ", ".join(symbols(sorted(left)))
                    raise BadRequest(f"what is kept holds {names}, which --elements or --exclude leave out")

    def admits(self, size: int) -> bool:
        return size >= len(self.sites) and LEAST_VOLUME <= self.crystal.volume / size <= MOST_VOLUME

    def wants(self) -> str:
        least = max(len(self.sites), 1, int(np.ceil(self.crystal.volume / MOST_VOLUME)))
        most = int(self.crystal.volume / LEAST_VOLUME)
        return f"{self.name} ({least} to {most} atoms in {self.crystal.volume:.0f} Å^3)"

    def control(self, place: Place) -> Control:
        from moldiff.sampling.inpaint import Known
        from moldiff.sampling.kept_cell import KeptCell

        basis, k, n, rows = niggli_basis(self.crystal.lattice), len(self.sites), place.size, len(place.indices)
        reduced = basis @ self.crystal.lattice
        frac = self.places.astype(np.float64) @ np.rint(np.linalg.inv(basis))
        some = place.vocabulary.values[TYPES][0]  # beyond the kept sites there only has to be some class
        truth = repeated(place, {
            "frac_coords": padded(torch.from_numpy((frac % 1).astype(np.float32)), n),
            TYPES: padded(torch.tensor(self.numbers, dtype=torch.int64), n, some),
            "lattice": torch.from_numpy(reduced.astype(np.float32)),
        })  # fmt: skip
        parts: dict[str, int | torch.Tensor] = {"lattice": torch.ones(rows, dtype=torch.bool, device=place.device)}
        if k:
            parts |= {name: k for name in ("frac_coords", TYPES) if name in place.diffusion.processes}
        matched = getattr(place.diffusion.processes["frac_coords"], "coupling", "") == "matched"
        own = basis, self.crystal.lattice.astype(np.float32), self.places
        each = [torch.from_numpy(x).expand(rows, *x.shape).to(place.device) for x in own]
        return KeptCell(Known(truth, parts), each[0], each[1], each[2], truth.atom_types[:, :k], self.resamplings, matched)


def keep_crystal_from(
    keep: Any = None,
    atoms: str | Sequence[int] | None = None,
    elements: str | Sequence[str] | None = None,
    cell: Any = None,
    resamplings: int | None = None,
    **molecular: Any,
) -> KeepCrystal | None:
    """The specification behind ``--keep`` (``--keep-atoms``, ``--keep-elements``) and ``--keep-cell`` for a crystal model.

    ``keep`` and ``cell`` are a file of one crystal (CIF, POSCAR, extxyz), a pymatgen Structure, ASE atoms, a ``Crystal`` or a
    sample; ``cell`` may be a lattice [3, 3] too. ``molecular`` are the verbs that mean something for molecules only. Raises
    ``BadRequest`` for what can't be read, sites that are not there, and verbs that do not go together.
    """
    wrong = [name for name, value in molecular.items() if value is not None]
    if wrong:
        raise BadRequest(f"--{wrong[0].replace('_', '-')} is for molecules: of a crystal keep a sublattice or the cell")
    if keep is None:
        for flag, value in (("keep-atoms", atoms), ("keep-elements", elements)):
            if value is not None:
                raise BadRequest(f"--{flag} says which sites of a crystal to keep: name its file with --keep")
        if cell is None and resamplings is not None:
            raise BadRequest("--resamplings says how to keep a structure: name its file with --keep")
    if keep is None and cell is None:
        return None
    if keep is not None and cell is not None:
        raise BadRequest("--keep keeps the cell of its crystal already: leave out --keep-cell")
    from moldiff.request import whole_number

    times = 1 if resamplings is None else whole_number("resamplings", resamplings)
    if times < 1:
        raise BadRequest(f"resamplings must be at least 1, found {times}")
    if keep is None:
        crystal, label = read_cell(cell)
        return KeepCrystal(_usable(crystal, label), (), times, label)
    crystal, label = read_crystal(keep)
    return KeepCrystal(_usable(crystal, label), _sites(crystal, label, atoms, elements), times, label)


def read_cell(source: Any) -> tuple[Crystal, str]:
    """As ``read_crystal``, or a lattice [3, 3] in Å alone."""
    if isinstance(source, (list, tuple, np.ndarray)):
        array = np.asarray(source, dtype=np.float64)
        if array.shape != (3, 3):
            raise BadRequest(f"a cell is a matrix of 3 x 3 numbers in Å, found the shape {array.shape}")
        return Crystal.of([], np.zeros((0, 3)), array), "the cell"
    return read_crystal(source)


def read_crystal(source: Any) -> tuple[Crystal, str]:
    """The one crystal of a file, a pymatgen Structure, ASE atoms, a ``Crystal`` or a sample, and what to call it."""
    from moldiff.chem.crystals import from_ase, from_structure

    if isinstance(source, Crystal):
        return source, "the crystal"
    try:
        if hasattr(source, "frac_coords") and hasattr(source, "is_ordered"):
            return from_structure(source), "the crystal"
        if hasattr(source, "get_atomic_numbers"):
            return from_ase(source), "the crystal"
    except ValueError as error:
        raise BadRequest(f"the crystal can't be kept: {error}") from None
    if hasattr(source, "to_crystal"):
        found = source.to_crystal()
        if found is None:
            raise BadRequest("the sample is no crystal")
        return found, "the sample"
    if not isinstance(source, (str, Path)):
        raise BadRequest(f"a crystal to keep is a file, a structure or atoms, found {type(source).__name__}")
    from moldiff.data.sources import read_rows

    entries = [row.entry() for row in read_rows(source, "crystal")]
    if len(entries) != 1:
        raise BadRequest(f"{source} holds {len(entries)} crystals, and one is to be kept")
    if entries[0].problem or entries[0].crystal is None:
        raise BadRequest(f"{source}: {entries[0].problem or 'no atoms'}")
    return entries[0].crystal, Path(source).name


def _usable(crystal: Crystal, label: str) -> Crystal:
    """The crystal, if its cell is one and its atoms do not overlap."""
    lone = Crystal.of([1], np.zeros((1, 3)), crystal.lattice) if not len(crystal) else crystal
    reason = check_crystal(lone.numbers, lone.frac_coords, lone.lattice)
    if reason:
        raise BadRequest(f"{label} can't be kept: {reason}")
    try:
        niggli_basis(crystal.lattice)
    except ValueError as error:
        raise BadRequest(f"{label} can't be kept: {error}") from None
    return crystal


def _sites(
    crystal: Crystal, label: str, atoms: str | Sequence[int] | None, elements: str | Sequence[str] | None
) -> tuple[int, ...]:
    """The sites to keep: those of ``atoms``, those of ``elements``, or all."""
    if atoms is not None and elements is not None:
        raise BadRequest("say which sites to keep by --keep-atoms or by --keep-elements, not by both")
    present = sorted({int(z) for z in crystal.numbers})
    if elements is not None:
        from moldiff.chem.formula import parse_elements

        try:
            wanted = parse_elements(elements)
        except ValueError as error:
            raise BadRequest(f"--keep-elements: {error}") from None
        absent = [z for z in wanted if z not in present]
        if absent:
            raise BadRequest(f"{label} has no {symbols([absent[0]])[0]} to keep (it has {', '.join(symbols(present))})")
        return tuple(i for i, z in enumerate(crystal.numbers.tolist()) if z in wanted)
    if atoms is None:
        return tuple(range(len(crystal)))
    try:
        chosen = [int(word) for word in (atoms.split(",") if isinstance(atoms, str) else atoms)]
    except (ValueError, TypeError):
        raise BadRequest(f"atoms to keep are numbers such as 0,1,2, found {atoms!r}") from None
    outside = [i for i in chosen if not 0 <= i < len(crystal)]
    if outside:
        raise BadRequest(f"{label} has no atom {outside[0]}: its {len(crystal)} atoms are counted from 0")
    if not chosen:
        raise BadRequest("--keep-atoms names no atoms; the cell alone is kept by --keep-cell")
    return tuple(sorted(set(chosen)))
