"""Learning which symmetries compositions have: the templates of a data set and the metric of elements that tells them apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from moldiff.chem.orbits import Kind, kind_of
from moldiff.data.symmetries import Symmetries
from moldiff.evaluation.crystals.elements import (
    CHARGE_SCALE,
    ELECTRONEGATIVITY_SCALE,
    MENDELEEV_SCALE,
    RADIUS_SCALE,
    element_table,
)
from moldiff.evaluation.crystals.templates import Metric, Templates, orders_of, slots_of
from moldiff.training.geometries import learn_geometries

#: Of the embedding: free numbers beside the three that begin as radius, electronegativity and Mendeleev number, and their scale.
_FREE, _BEGIN, _NOISE = 13, 0.7, 0.15
#: Passes over the data, the rate of learning, how strongly elements are drawn to where they began, queries a step.
EPOCHS, RATE, DRAWN, QUERIES = 8, 0.02, 0.0005, 128
#: Centres of a template of n crystals: the root of n, at most so many.
MOST_CENTERS = 8
#: Compositions of more elements than this are not learnt from (their orders are too many).
_MOST_SLOTS = 6


@dataclass(frozen=True, eq=False)
class _Group:
    """Crystals of the same numbers of atoms: ``elements`` and ``charges`` [M, slots] in the order of slots, ``kinds`` and their
    ``rows`` in the data [M]."""

    counts: tuple[int, ...]
    elements: Tensor
    charges: Tensor
    kinds: Tensor
    rows: Tensor


def learn_templates(columns: Mapping[str, Tensor], symmetries: Symmetries, seed: int = 0, epochs: int = EPOCHS) -> Templates:
    """The templates of a store's crystals; some minutes for 26,000 of them."""
    offsets = [0, *columns["n_atoms"].long().cumsum(0).tolist()]
    types = columns["atom_types"].numpy().astype(np.int64)
    numbers = [types[a:b] for a, b in pairwise(offsets)]
    kinds = [kind_of(symmetries.orbits(i), z) for i, z in enumerate(numbers)]
    codes = {code: k for k, code in enumerate(dict.fromkeys(kind.code for kind in kinds))}
    which = torch.tensor([codes[kind.code] for kind in kinds])
    groups = _grouped(kinds, which)
    metric = learn_metric(groups, seed, epochs)
    first: dict[int, int] = {}
    for i, k in enumerate(which.tolist()):
        first.setdefault(k, i)
    place = {int(row): (g, k) for g, group in enumerate(groups) for k, row in enumerate(group.rows.tolist())}

    def points(row: int) -> Tensor:
        g, k = place[row]
        return metric.points(groups[g].elements[k], groups[g].charges[k])

    return Templates({
        **_structures(symmetries, kinds, numbers, list(first.values())), **_centers(groups, metric, len(codes)),
        **learn_geometries(columns, symmetries, kinds, numbers, which.tolist(), points),
    })  # fmt: skip


def _grouped(kinds: Sequence[Kind], which: Tensor) -> list[_Group]:
    members: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, kind in enumerate(kinds):
        members[kind.counts].append(i)
    groups = []
    for counts, rows in members.items():
        charges = []
        for i in rows:
            elements, _, states = slots_of([z for z, n in zip(kinds[i].elements, kinds[i].counts, strict=True) for _ in range(n)])
            of = dict(zip(elements, states, strict=True))
            charges.append([of[z] for z in kinds[i].elements])
        elements_of = torch.tensor([kinds[i].elements for i in rows])
        groups.append(_Group(counts, elements_of, torch.tensor(charges), which[torch.tensor(rows)], torch.tensor(rows)))
    return groups


def first_metric(seed: int) -> Metric:
    """Where the metric begins: radius, electronegativity and Mendeleev number, and a little noise."""
    table = torch.from_numpy(element_table()).float() / torch.tensor([RADIUS_SCALE, ELECTRONEGATIVITY_SCALE, MENDELEEV_SCALE])
    known = table[:, 1] > 0
    table[:, 1] = torch.where(known, table[:, 1], table[known, 1].mean())
    noise = torch.randn(len(table), _FREE, generator=torch.Generator().manual_seed(seed)) * _NOISE
    elements = torch.cat([(table - table[1:95].mean(0)) * _BEGIN, noise], 1)
    return Metric(elements, torch.tensor(0.5), torch.tensor(_BEGIN**2 * 2))


def learn_metric(groups: Sequence[_Group], seed: int = 0, epochs: int = EPOCHS) -> Metric:
    """Neighbourhood components analysis: each crystal's kind is to be that of its near neighbours of other elements."""
    begun = first_metric(seed)
    elements = torch.nn.Parameter(begun.elements.clone())
    power, log_charge = torch.nn.Parameter(begun.power.clone()), torch.nn.Parameter(begun.charge.log())
    optimiser = torch.optim.Adam([elements, power, log_charge], lr=RATE)
    rng = torch.Generator().manual_seed(seed)
    large = [g for g in groups if len(g.kinds) > 1 and len(g.counts) <= _MOST_SLOTS]
    for epoch in range(epochs):
        for k in torch.randperm(len(large), generator=rng).tolist():
            group = large[k]
            for _ in range(max(1, min(4, len(group.kinds) // 400))):
                chosen = torch.randperm(len(group.kinds), generator=rng)[:QUERIES]
                loss = _loss(Metric(elements, power, log_charge.exp()), group, chosen)
                if loss is None:
                    continue
                total = loss / 64 + DRAWN * (elements - begun.elements).square().sum()
                optimiser.zero_grad()
                total.backward()
                torch.nn.utils.clip_grad_norm_([elements, power, log_charge], 1.0)
                optimiser.step()
        for part in optimiser.param_groups:
            part["lr"] = RATE * max(0.03, 1 - epoch / epochs)
    return Metric(elements.detach(), power.detach(), log_charge.detach().exp())


def _loss(metric: Metric, group: _Group, chosen: Tensor) -> Tensor | None:
    """Minus the log probability of the right kind, summed over the chosen crystals that have a neighbour of it."""
    share = metric.shares(group.counts)
    between = (metric.elements[:, None] - metric.elements).square().sum(-1)  # [119, 119]
    asked, states = group.elements[chosen], group.charges[chosen]
    ways = []
    for order in orders_of(group.counts):
        gap = between[asked[:, list(order)][:, None], group.elements]  # [Q, M, slots]
        gap = gap + metric.charge * ((states[:, list(order)][:, None] - group.charges) / CHARGE_SCALE).square()
        ways.append(-(gap @ share))
    score = torch.stack(ways).logsumexp(0)  # [Q, M]
    own = group.elements.sort(1).values
    mine = (own[chosen][:, None] == own).all(-1)
    right = (group.kinds[chosen][:, None] == group.kinds) & ~mine
    some = right.any(1)
    if not bool(some.any()):
        return None
    score = score.masked_fill(mine, -1e9)
    lost: Tensor = (score.logsumexp(1) - score.masked_fill(~right, -1e9).logsumexp(1))[some].sum()
    return lost


def _centers(groups: Sequence[_Group], metric: Metric, n_kinds: int) -> dict[str, Tensor]:
    """A few means of each kind's points, with the number of crystals that each stands for."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for group in groups:
        points = metric.points(group.elements, group.charges)
        for kind in group.kinds.unique().tolist():
            found[kind] = _means(points[group.kinds == kind].flatten(1))
    width = metric.elements.shape[1] + 1
    every = [found[k] for k in range(n_kinds)]
    return {
        "elements": metric.elements, "power": metric.power, "charge": metric.charge,
        "n_centers": torch.tensor([len(weight) for _, weight in every], dtype=torch.int16),
        "weight": torch.cat([weight for _, weight in every]),
        "centers": torch.cat([center.reshape(-1, width) for center, _ in every]).half(),
    }  # fmt: skip


def _means(points: Tensor, rounds: int = 10) -> tuple[Tensor, Tensor]:
    """Lloyd's means of points [M, D], begun at points far from each other, and the number of points of each."""
    k = min(MOST_CENTERS, max(1, round(len(points) ** 0.5))) if len(points) > 2 else len(points)
    chosen = [0]
    for _ in range(k - 1):
        chosen.append(int(torch.cdist(points, points[chosen]).amin(1).argmax()))
    centers = points[chosen]
    for _ in range(rounds):
        nearest = torch.cdist(points, centers).argmin(1)
        centers = torch.stack([points[nearest == j].mean(0) for j in nearest.unique().tolist()])
    nearest = torch.cdist(points, centers).argmin(1)
    weight = torch.bincount(nearest, minlength=len(centers)).float()
    return centers[weight > 0], weight[weight > 0]


def _structures(
    symmetries: Symmetries, kinds: Sequence[Kind], numbers: Sequence[np.ndarray], first: Sequence[int]
) -> dict[str, Tensor]:
    """Operations, orbits and slots of one crystal of each kind, without its free coordinates."""
    sets: dict[bytes, int] = {}
    turns, sizes = [], []
    of, to, base, slot, alike = [], [], [], [], []
    for i in first:
        one = symmetries.orbits(i)
        mark = one.rotations.tobytes()
        if mark not in sets:
            sets[mark] = len(sets)
            turns.append(torch.from_numpy(one.rotations.copy()))
            sizes.append(len(one.rotations))
        place = {z: s for s, z in enumerate(kinds[i].elements)}
        of.append(sets[mark])
        to.append(torch.from_numpy(one.to.copy()).flatten())
        base.append(torch.from_numpy(one.base).float())
        slot += [place[int(z)] for z in numbers[i]]
        alike += [s for order in kinds[i].alike for s in order]
    return {
        "n_atoms": torch.tensor([len(numbers[i]) for i in first], dtype=torch.int16),
        "number": torch.tensor([symmetries.orbits(i).number for i in first], dtype=torch.int16),
        "turns": torch.tensor(of, dtype=torch.int16), "n_operations": torch.tensor(sizes, dtype=torch.int16),
        "rotations": torch.cat(turns), "to": torch.cat(to), "base": torch.cat(base), "slot": torch.tensor(slot, dtype=torch.int8),
        "n_alike": torch.tensor([len(kinds[i].alike) for i in first], dtype=torch.int16),
        "alike": torch.tensor(alike, dtype=torch.int8),
    }  # fmt: skip
