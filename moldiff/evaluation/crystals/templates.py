"""Symmetries that a model has learnt for compositions: space groups with the orbits of each element, and how likely each is.

A template says which operations a crystal has and which atoms they take to which; cell and free coordinates are the network's to
make (``sampling.symmetric``), from noise or from a learnt geometry (``geometries``). Which template a composition has is learnt
as the classes of a nearest mean classifier (Mensink et al. 2013) in a learnt metric of elements (neighbourhood components
analysis, Goldberger et al. 2004): each template has a few centres, of each slot's embedding, and a composition is the likelier of
it the nearer its elements lie to one of them.
Structure prediction by a template and a generative network is that of Jiao et al. 2024 (DiffCSP++).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise, permutations, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moldiff.core.symmetry import Group, Operations
from moldiff.errors import DamagedFile
from moldiff.evaluation.crystals.elements import CHARGE_SCALE, element_table, oxidation_states
from moldiff.evaluation.crystals.geometries import Geometries

#: Ways to give a composition's elements to the slots of a template that are tried, at most.
_MOST_ORDERS = 720
#: A cell of fewer atoms is said to be the likelier one from this ratio on; 5 % of MP-20's own primitive cells of several formula
#: units have it (600 of the validation part).
CLEARLY = 5.0


@dataclass(frozen=True, eq=False)
class GivenSymmetry:
    """A symmetry for a composition of N atoms: its space group, ``operations`` on the atoms in their order, a structure ``base``
    [N, 3] that has it, and its ``probability`` among all that the composition may have. ``key`` tells it from others.
    ``cell`` [3, 3] is that of a learnt geometry, of which ``base`` then are the coordinates; None without one."""

    number: int
    operations: Operations
    base: Tensor
    probability: float
    key: tuple[int, tuple[int, ...]]
    cell: Tensor | None = None

    @property
    def label(self) -> str:
        """The space group, and the template with the order of elements in its slots."""
        return f"{self.number}:{self.key[0]}:{'-'.join(map(str, self.key[1]))}"


@dataclass(frozen=True, eq=False)
class Metric:
    """How far two slots lie apart: ``elements`` [119, D] embed atomic numbers, ``power`` is that of a slot's share of the atoms
    by which it counts, ``charge`` the weight of the oxidation states."""

    elements: Tensor
    power: Tensor
    charge: Tensor

    def shares(self, counts: Sequence[int]) -> Tensor:
        """By how much each slot counts, [slots]."""
        share = torch.tensor(counts, dtype=torch.float32)
        return (share / share.sum() * len(counts)).pow(self.power)

    def points(self, elements: Tensor, charges: Tensor) -> Tensor:
        """The slots of atomic numbers [...] with oxidation states [...] as points [..., D + 1]."""
        state = charges / CHARGE_SCALE * self.charge.clamp_min(0).sqrt()
        return torch.cat([self.elements[elements], state[..., None]], -1)


class Templates:
    """The templates of a model; made by ``training.templates``, kept as ``templates.safetensors``.

    ``columns``: of each of U templates ``n_atoms``, ``number`` (space group), ``turns`` (which of the sets of rotations it has),
    ``n_centers``, ``n_alike``; of each set ``n_operations``, of its operations ``rotations`` [., 3, 3]; ``to``, flat, operation
    by operation and atom by atom; of each atom ``base`` [., 3] and ``slot``; of each centre ``weight`` and, flat, its points
    ``centers`` [., D + 1], slot by slot; ``alike``, flat, the orders of a template's elements that stand for one structure, slot
    by slot; ``elements``, ``power`` and ``charge`` of the metric; and the columns of ``Geometries``, where there are any.
    """

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = dict(columns)
        long = {name: columns[name].long() for name in ("n_atoms", "turns", "n_operations", "n_centers")}
        self._atom = _starts(long["n_atoms"])
        self._turn = _starts(long["n_operations"])
        self._to = _starts(long["n_operations"][long["turns"]] * long["n_atoms"])
        self._center = _starts(long["n_centers"])
        self.metric = Metric(columns["elements"].float(), columns["power"].float(), columns["charge"].float())

    def __len__(self) -> int:
        return len(self.columns["n_atoms"])

    @classmethod
    def load(cls, path: Path) -> Templates:
        """Read a file; raises ``DamagedFile`` for one that is none."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return cls(load_file(path))
        except (OSError, SafetensorError, KeyError, IndexError, RuntimeError) as error:
            raise DamagedFile(f"{path} holds no templates: {str(error).splitlines()[0]}") from None

    def save(self, path: Path) -> None:
        """Write the file that ``load`` reads."""
        from safetensors.torch import save

        from moldiff.data.store import write_atomically

        write_atomically(path, save({name: value.contiguous() for name, value in self.columns.items()}))

    @cached_property
    def counts(self) -> list[tuple[int, ...]]:
        """The atoms of each slot of each template, ascending."""
        slots = self.columns["slot"].tolist()
        return [tuple(_run_lengths(slots[a:b])) for a, b in pairwise(self._atom)]

    @cached_property
    def geometries(self) -> Geometries | None:
        """What its templates' crystals have in common beside their operations."""
        if "n_geometries" not in self.columns:
            return None
        return Geometries(self.columns, self.columns["n_atoms"].tolist(), [len(counts) for counts in self.counts])

    def shares(self, template: int, slots: Sequence[int], numbers: Sequence[int]) -> list[tuple[float, int]]:
        """The learnt geometries of a template whose slots have these elements of a composition, each with its share."""
        if self.geometries is None:
            return []
        elements, counts, charges = slots_of(numbers)
        charge = dict(zip(elements, charges, strict=True))
        points = self.metric.points(torch.tensor(list(slots)), torch.tensor([charge[z] for z in slots]))
        return self.geometries.shares(template, points, self.metric.shares(counts))

    @cached_property
    def _alike(self) -> list[int]:
        return _starts(torch.tensor([len(c) for c in self.counts]) * self.columns["n_alike"].long())

    @cached_property
    def _of_counts(self) -> dict[tuple[int, ...], list[int]]:
        found: dict[tuple[int, ...], list[int]] = {}
        for k, counts in enumerate(self.counts):
            found.setdefault(counts, []).append(k)
        return found

    @cached_property
    def _points(self) -> list[int]:
        sizes = torch.tensor([len(c) for c in self.counts]) * self.columns["n_centers"].long()
        return _starts(sizes)

    def ranking(self, numbers: Sequence[int], groups: Sequence[int] = ()) -> list[tuple[float, int, tuple[int, ...]]]:
        """The symmetries of a composition of atomic numbers [N], the likeliest first: (probability, template, elements of slots).

        ``groups`` are the space groups to choose from (none: all). Empty where no template has such numbers of atoms.
        """
        elements, _, _ = slots_of(numbers)
        known, orders, scores = self._scores(numbers, groups)
        if not known:
            return []
        chances = scores.flatten().softmax(0).reshape(len(known), -1)
        found = []
        for k, chance in zip(known, chances.tolist(), strict=True):
            for order, value in self._different(k, orders, chance):
                found.append((value, k, tuple(elements[i] for i in order)))
        return sorted(found, key=lambda one: -one[0])

    def smaller(self, numbers: Sequence[int]) -> int:
        """How many cells of fewer atoms a cell of this composition most likely consists of.

        1 where it may well be primitive, and where no template has its numbers of atoms.

        The likelier cell is that whose templates have more learnt crystals near the composition, ``CLEARLY`` times as many.
        """
        elements, counts, _ = slots_of(numbers)
        found = {}
        for cells in (d for d in range(1, math.gcd(*counts) + 1) if math.gcd(*counts) % d == 0):
            part = [z for z, n in zip(elements, counts, strict=True) for _ in range(n // cells)]
            _, _, scores = self._scores(part)
            found[cells] = float(scores.flatten().logsumexp(0)) if len(scores) else -math.inf
        best = max(found, key=lambda cells: (found[cells], -cells))
        return best if math.isfinite(found[1]) and found[best] > found[1] + math.log(CLEARLY) else 1

    def _scores(
        self, numbers: Sequence[int], groups: Sequence[int] = ()
    ) -> tuple[list[int], list[tuple[int, ...]], Tensor]:
        """The templates that a composition may have, the orders of its elements, and the score of each with each [K, P]."""
        elements, counts, charges = slots_of(numbers)
        known = self._of_counts.get(counts, [])
        if groups:
            known = [k for k in known if int(self.columns["number"][k]) in groups]
        if not known:
            return [], [], torch.zeros(0, 0)
        orders = list(orders_of(counts))
        asked = self.metric.points(torch.tensor(elements), torch.tensor(charges))  # [slots, D + 1]
        index = torch.tensor(orders)  # [P, slots]
        share = self.metric.shares(counts)
        scores = []
        for k in known:
            a, b = self._points[k], self._points[k + 1]
            centers = self.columns["centers"][a:b].float().reshape(-1, len(counts), asked.shape[1])
            gap = (centers[:, :, None] - asked).square().sum(-1)  # [C, slots, elements]
            each = gap[:, torch.arange(len(counts)), index] @ share  # [C, P]
            weight = self.columns["weight"][self._center[k] : self._center[k + 1]].float()
            scores.append((weight.log()[:, None] - each).logsumexp(0))
        return known, orders, torch.stack(scores).double()

    def _different(
        self, template: int, orders: Sequence[tuple[int, ...]], chance: Sequence[float]
    ) -> list[tuple[tuple[int, ...], float]]:
        """One order of each set of those that stand for one structure, the likeliest, with the chance of all of them."""
        a, b = self._alike[template], self._alike[template + 1]
        alike = self.columns["alike"][a:b].reshape(-1, len(orders[0])).tolist()
        if len(alike) == 1:
            return list(zip(orders, chance, strict=True))
        of = dict(zip(orders, chance, strict=True))
        found = []
        for order in sorted(orders, key=lambda one: -of.get(one, 0.0)):
            same = {tuple(order[i] for i in other) for other in alike} & set(of)
            if order in of:
                found.append((order, sum(of[one] for one in same)))
                for one in same:
                    del of[one]
        return found

    def of_size(self, n_atoms: int, groups: Sequence[int] = ()) -> list[tuple[int, int]]:
        """The templates of so many atoms, of these space groups (none: all), and how many learnt crystals have each."""
        numbers, sizes = self.columns["number"].tolist(), self.columns["n_atoms"].tolist()
        every = [k for k, n in enumerate(sizes) if n == n_atoms and (not groups or numbers[k] in groups)]
        return [(k, round(float(self.columns["weight"][self._center[k] : self._center[k + 1]].sum()))) for k in every]

    def pattern(self, template: int) -> tuple[GivenSymmetry, Tensor]:
        """A template for atoms in its own order, and the slots [N] of these."""
        slot = self.columns["slot"][self._atom[template] : self._atom[template + 1]].long()
        slots = tuple(range(len(self.counts[template])))
        return self.symmetry(template, slots, slot.tolist()), slot

    def symmetry(
        self, template: int, slots: tuple[int, ...], numbers: Sequence[int], probability: float = 1.0, geometry: int | None = None
    ) -> GivenSymmetry:
        """A template for atoms in the order of ``numbers``, the element ``slots[s]`` in slot s, and one of its geometries."""
        a, b = self._atom[template], self._atom[template + 1]
        which = int(self.columns["turns"][template])
        turns = self.columns["rotations"][self._turn[which] : self._turn[which + 1]]
        to = self.columns["to"][self._to[template] : self._to[template + 1]].reshape(len(turns), b - a).long()
        free = {z: [i for i, s in enumerate(self.columns["slot"][a:b].tolist()) if slots[s] == z] for z in slots}
        order = torch.tensor([free[z].pop(0) for z in numbers])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        moved = Operations(turns, place[to[:, order]])
        number, base, cell = int(self.columns["number"][template]), self.columns["base"][a:b], None
        if geometry is not None and self.geometries is not None:
            base, cell = self.geometries.places(geometry), self.geometries.cell(geometry, numbers)
            cell = Group.of([moved], len(numbers)).exact(cell[None])[0]
        return GivenSymmetry(number, moved, base[order], probability, (template, slots), cell)


def slots_of(numbers: Sequence[int]) -> tuple[list[int], tuple[int, ...], list[float]]:
    """The elements of a cell, their counts, ascending, and their guessed oxidation states."""
    z, n = np.unique(np.asarray(numbers, dtype=np.int64), return_counts=True)
    order = np.lexsort((z, element_table()[z, 1], n))
    elements, counts = z[order].tolist(), n[order].tolist()
    divisor = math.gcd(*counts)
    states = oxidation_states(tuple((e, c // divisor) for e, c in zip(elements, counts, strict=True)))
    return elements, tuple(counts), list(states)


def orders_of(counts: Sequence[int]) -> list[tuple[int, ...]]:
    """The orders of slots that keep these ascending counts."""
    runs = [[i for i, _ in run] for _, run in groupby(enumerate(counts), key=lambda one: one[1])]
    orders = (tuple(i for part in parts for i in part) for parts in product(*(permutations(run) for run in runs)))
    return [order for order, _ in zip(orders, range(_MOST_ORDERS), strict=False)]


def spread(chances: Sequence[float], n: int) -> list[int]:
    """Places in a list of ``chances``, n of them, the first of each before the next: how often each occurs follows its chance.

    The method of greatest divisors (D'Hondt): a smaller n gives the beginning of a larger one's.
    """
    taken = [0] * len(chances)
    found = []
    for _ in range(n):
        k = max(range(len(chances)), key=lambda j: (chances[j] / (taken[j] + 1), -j))
        taken[k] += 1
        found.append(k)
    return found


def _starts(counts: Tensor) -> list[int]:
    return [0, *counts.cumsum(0).tolist()]


def _run_lengths(slots: Sequence[int]) -> list[int]:
    return [slots.count(s) for s in range(max(slots) + 1)]
