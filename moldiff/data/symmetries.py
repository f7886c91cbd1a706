"""The symmetry of every crystal of a data set, found once and kept beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save as serialise
from safetensors.torch import load_file
from torch import Tensor

from moldiff.chem.crystals import Crystal
from moldiff.chem.orbits import Orbits, orbits
from moldiff.core.symmetry import Operations
from moldiff.data.store import write_atomically
from moldiff.data.workers import map_stream, n_cores

#: Seconds that spglib may take for one crystal; one that takes longer counts as without symmetry.
_LIMIT = 20.0


class Symmetries:
    """What ``chem.orbits`` finds of M crystals, packed: of each its space group, operations, Wyckoff letters and coordinates.

    A crystal for which nothing is found has the identity alone and its coordinates as they are.
    """

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = dict(columns)
        operations, atoms = (columns[name].long() for name in ("n_operations", "n_atoms"))
        self._operation = [0, *operations.cumsum(0).tolist()]
        self._atom = [0, *atoms.cumsum(0).tolist()]
        self._to = [0, *(operations * atoms).cumsum(0).tolist()]

    def __len__(self) -> int:
        return len(self.columns["n_atoms"])

    def operations(self, index: int) -> Operations:
        """The operations of one crystal."""
        n = int(self.columns["n_atoms"][index])
        turns = self.columns["rotations"][self._operation[index] : self._operation[index + 1]]
        return Operations(turns, self.columns["to"][self._to[index] : self._to[index + 1]].reshape(len(turns), n))

    def frac_coords(self, index: int) -> Tensor:
        """Its coordinates [N, 3], exactly symmetric, about an origin of the tables."""
        return self.columns["frac_coords"][self._atom[index] : self._atom[index + 1]]

    def orbits(self, index: int) -> Orbits:
        """All that is known of one crystal."""
        turns, a, b = self.operations(index), self._atom[index], self._atom[index + 1]
        shifts = self.columns["shifts"][self._operation[index] : self._operation[index + 1]]
        letters = bytes(self.columns["letters"][a:b].tolist()).decode()
        arrays = (turns.rotations.numpy(), shifts.numpy(), turns.to.numpy())
        return Orbits(int(self.columns["number"][index]), *arrays, letters, self.frac_coords(index).numpy().astype(np.float64))


def pack_symmetries(found: Sequence[Orbits]) -> dict[str, np.ndarray]:
    """The columns of ``Symmetries``."""
    return {
        "n_atoms": np.array([len(one.letters) for one in found], dtype=np.int16),
        "n_operations": np.array([len(one.to) for one in found], dtype=np.int16),
        "number": np.array([one.number for one in found], dtype=np.int16),
        "rotations": np.concatenate([one.rotations for one in found]),
        "shifts": np.concatenate([one.shifts for one in found]),
        "to": np.concatenate([one.to.ravel() for one in found]),
        "letters": np.frombuffer("".join(one.letters for one in found).encode(), dtype=np.uint8).copy(),
        "frac_coords": np.concatenate([one.frac_coords for one in found]).astype(np.float32),
    }


def symmetries_of(columns: Mapping[str, Tensor], folder: Path | None = None, n_processes: int | None = None) -> Symmetries:
    """The symmetries of the crystals of a store's columns; found in processes, and kept in ``folder`` for the next time."""
    parts = [columns[name].contiguous() for name in ("n_atoms", "atom_types", "frac_coords", "lattice")]
    mark = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]
    path = None if folder is None else folder / f"symmetries-{mark}.safetensors"
    if path is not None and path.is_file():
        return Symmetries(load_file(path))
    print("finding the symmetry of each crystal", flush=True)
    found = list(_found(parts, n_cores() if n_processes is None else n_processes))
    packed = pack_symmetries(found)
    if path is not None:
        with suppress(OSError):  # a folder that can't be written to costs the time again, and nothing else
            write_atomically(path, serialise(packed))
    return Symmetries({name: torch.from_numpy(value) for name, value in packed.items()})


def _found(parts: Sequence[Tensor], n_processes: int) -> list[Orbits]:
    sizes, types, frac, lattice = (part.numpy() for part in parts)
    offsets = [0, *np.cumsum(sizes.astype(np.int64)).tolist()]
    crystals = [
        Crystal(types[a:b].astype(np.int64), frac[a:b].astype(np.float64), lattice[k].astype(np.float64))
        for k, (a, b) in enumerate(pairwise(offsets))
    ]
    results = map_stream(orbits, crystals, n_processes=n_processes, time_limit=_LIMIT, chunk_size=64)
    return [
        result.value if result.ok and result.value is not None else plain(one)
        for one, result in zip(crystals, results, strict=True)
    ]


def plain(crystal: Crystal) -> Orbits:
    """A crystal of which no symmetry is known."""
    n = len(crystal)
    turns, shifts = np.eye(3, dtype=np.int8)[None], np.zeros((1, 3), dtype=np.int8)
    return Orbits(1, turns, shifts, np.arange(n, dtype=np.int8)[None], "a" * n, crystal.frac_coords)
