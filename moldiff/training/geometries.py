"""Learning the geometries of symmetries: what the crystals of a template have in common beside their operations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moldiff.chem.aligned import Laid, near
from moldiff.chem.orbits import Kind
from moldiff.core.periodic import log_lattice
from moldiff.data.symmetries import Symmetries
from moldiff.evaluation.crystals.elements import atomic_volumes

#: A geometry stands for so many crystals at least: it is their mean, and no crystal's own.
FEWEST = 2
#: Crystals are of one geometry where their atoms lie within this root mean square distance, in units of the cube root of the
#: volume per atom (StructureMatcher's tolerance is 0.5), and no number of their cells' shapes differs by more than the second.
WITHIN, SHAPES = 0.25, 0.35
#: Geometries of a template that a crystal is compared with, the commonest first.
_MOST = 12


class _Geometry:
    """Crystals that lie upon each other: their rows, coordinates in the template's order, and six numbers of their cells."""

    def __init__(self, row: int, laid: Laid, six: NDArray[np.float64]) -> None:
        self.reference, self.rows, self.x, self.sixes = laid, [row], [laid.x], [six]

    def add(self, row: int, x: NDArray[np.float64], six: NDArray[np.float64]) -> None:
        self.rows.append(row)
        self.x.append(x)
        self.sixes.append(six)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean coordinates [N, 3]: those of each crystal lie next to the reference's."""
        return np.asarray(np.mean(self.x, 0)) % 1


def learn_geometries(
    columns: Mapping[str, Tensor],
    symmetries: Symmetries,
    kinds: Sequence[Kind],
    numbers: Sequence[NDArray[np.int64]],
    which: Sequence[int],
    points: Callable[[int], Tensor],
) -> dict[str, Tensor]:
    """The columns of ``evaluation.crystals.geometries`` for the templates that crystals have (``which`` of each crystal).

    ``points`` gives the embedded slots [slots, D] of a crystal. Crystals of a template are laid upon each other
    (``chem.aligned``) and go to the first geometry that they are near to (leader clustering, Hartigan 1975), else they begin one;
    those of fewer than ``FEWEST`` crystals are left out.
    """
    lattices = columns["lattice"].double().reshape(-1, 3, 3)
    sixes = log_lattice(lattices).numpy()
    volumes = atomic_volumes(list(numbers), lattices.det().abs().numpy())
    members: defaultdict[int, list[int]] = defaultdict(list)
    for row, template in enumerate(which):
        members[template].append(row)
    found: list[list[_Geometry]] = [[] for _ in members]
    for template, rows in members.items():
        if len(rows) >= FEWEST:
            laid = [_laid(symmetries, kinds, numbers, row) for row in rows]
            cells = lattices[rows].numpy() / np.cbrt(lattices[rows].det().abs().numpy() / len(numbers[rows[0]]))[:, None, None]
            found[template] = _clusters(rows, laid, cells, sixes)
    every = [one for of in found for one in of]
    packing = [
        np.median([sixes[row, 5] - np.log(volumes[numbers[row]].sum()) for row in one.rows]) for one in every
    ]
    shapes = [np.mean(one.sixes, 0)[:5] for one in every]
    width = points(0).shape[1]
    return {
        "volumes": torch.from_numpy(np.asarray(volumes)).float(),
        "n_geometries": torch.tensor([len(of) for of in found], dtype=torch.int16),
        "geometry_weight": torch.tensor([float(len(one.rows)) for one in every]),
        "geometry_cell": torch.tensor(np.array([[*s, p] for s, p in zip(shapes, packing, strict=True)]).reshape(-1, 6)).float(),
        "geometry_places": torch.from_numpy(np.concatenate([np.zeros((0, 3)), *(one.mean for one in every)])).float(),
        "geometry_points": torch.cat(
            [torch.zeros(0, width), *(torch.stack([points(row) for row in one.rows]).mean(0) for one in every)]
        ).half(),
    }


def _laid(symmetries: Symmetries, kinds: Sequence[Kind], numbers: Sequence[NDArray[np.int64]], row: int) -> Laid:
    place = {z: s for s, z in enumerate(kinds[row].elements)}
    return Laid.of(symmetries.orbits(row), np.array([place[int(z)] for z in numbers[row]]))


def _clusters(
    rows: Sequence[int], laid: Sequence[Laid], cells: NDArray[np.float64], sixes: NDArray[np.float64]
) -> list[_Geometry]:
    """The geometries of a template's crystals, the commonest first; the first crystal's order of atoms is the template's."""
    found: list[_Geometry] = []
    for row, one, cell in zip(rows, laid, cells, strict=True):
        found.sort(key=lambda geometry: -len(geometry.rows))
        for geometry in found[:_MOST]:
            if np.abs(geometry.sixes[0][:5] - sixes[row, :5]).max() > SHAPES:
                continue
            way = near(geometry.reference, one, cell, enough=1e-4)
            if way is not None and way[0] < WITHIN:
                geometry.add(row, way[1], sixes[row])
                break
        else:
            ordered = near(laid[0], one, cell)
            if ordered is not None:
                found.append(_Geometry(row, laid[0].moved(ordered[1]), sixes[row]))
    return sorted((one for one in found if len(one.rows) >= FEWEST), key=lambda one: -len(one.rows))
