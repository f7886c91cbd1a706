"""Geometries that a model has learnt for its templates: where a structure of a symmetry begins, in place of noise.

A geometry is the mean of at least two training crystals of one template that lie upon each other (``training.geometries``):
mean free coordinates, the mean shape of the cell, and how densely it is packed beside volumes fitted to the elements. It holds no
crystal of its own and no composition but a mean of embedded elements, by which it is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from moldiff.core.periodic import lattice_from_log

#: Of a template's geometries those below this share of its chance are left out.
LEAST = 0.05


class Geometries:
    """The geometries of U templates.

    ``columns``: ``n_geometries`` [U]; of each geometry ``geometry_weight`` (the crystals it stands for), ``geometry_cell`` [6]
    (five numbers of ``core.periodic.log_lattice``, and the log of the volume over that of the elements), flat
    ``geometry_places`` [., 3] in the order of the template's atoms, and flat ``geometry_points`` [., D + 1] slot by slot; and
    the ``volumes`` of the elements [119] in Å^3.
    """

    def __init__(self, columns: Mapping[str, Tensor], n_atoms: Sequence[int], n_slots: Sequence[int]) -> None:
        self.columns = dict(columns)
        self.first = [0, *columns["n_geometries"].long().cumsum(0).tolist()]
        atoms, slots = [], []
        for template, (a, b) in enumerate(pairwise(self.first)):
            atoms += [n_atoms[template]] * (b - a)
            slots += [n_slots[template]] * (b - a)
        self._place, self._point = ([0, *torch.tensor(each, dtype=torch.long).cumsum(0).tolist()] for each in (atoms, slots))

    @cached_property
    def n(self) -> int:
        """How many there are."""
        return int(self.first[-1])

    def shares(self, template: int, points: Tensor, share: Tensor) -> list[tuple[float, int]]:
        """The geometries of a template for the slots at ``points`` [slots, D + 1] that count by ``share`` [slots], and the
        part of the template's chance that each has; empty where the template has none."""
        each = range(self.first[template], self.first[template + 1])
        if not each:
            return []
        centers = torch.stack([self.columns["geometry_points"][self._point[g] : self._point[g + 1]].float() for g in each])
        weight = self.columns["geometry_weight"][each.start : each.stop].log()
        chance = (weight - (centers - points).square().sum(-1) @ share).softmax(0)
        chance = chance.where(chance >= LEAST, torch.zeros(()))
        chance = chance / chance.sum()
        return [(value, g) for value, g in zip(chance.tolist(), each, strict=True) if value > 0]

    def places(self, geometry: int) -> Tensor:
        """Its fractional coordinates [N, 3] in the order of the template's atoms."""
        return self.columns["geometry_places"][self._place[geometry] : self._place[geometry + 1]]

    def cell(self, geometry: int, numbers: Sequence[int]) -> Tensor:
        """Its cell [3, 3] in Å for atoms of these atomic numbers."""
        six = self.columns["geometry_cell"][geometry].double().clone()
        six[5] += self.columns["volumes"].double()[torch.tensor(list(numbers))].sum().log()
        made: Tensor = lattice_from_log(six[None])[0].float()
        return made
