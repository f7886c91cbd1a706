"""The baseline of crystal structure prediction: take the structure of the most similar known compound and swap its elements.

For a wanted composition the known crystals with the same numbers of atoms of each kind are looked up (smaller cells are repeated
where there are none), every way to swap the elements is scored by how unlike the swapped ones are, and the best templates are
returned with their volume scaled. Templates that share a space group support each other: among near ones the commonest prototype
wins. Nothing is learnt but the volumes of the elements. The idea is old; in this form see Hautier et al., Inorg. Chem. 50, 656
(2011), and Wei et al., npj Comput. Mater. 8, 258 (2022).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations, product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moldiff.chem.crystals import Crystal, niggli
from moldiff.evaluation.crystals.elements import atomic_volumes, dissimilarity, element_table, oxidation_states

if TYPE_CHECKING:
    from moldiff.data.store import Store

#: Temperature of the votes: a template this much less similar counts 1/e.
TEMPERATURE = 0.35
#: Templates that vote.
NEIGHBOURS = 60
#: Ways to swap elements that are tried for each template.
_MOST_SWAPS = 720
Counts = tuple[int, ...]


@dataclass(frozen=True)
class _Group:
    """Known crystals with the same numbers of atoms of each kind: ``elements`` and ``charges`` [K, E], ``index`` [K]."""

    elements: NDArray[np.int64]
    charges: NDArray[np.float64]
    index: NDArray[np.int64]


@dataclass(frozen=True)
class Template:
    """One way to make the wanted crystal: from training crystal ``index``, whose elements are ``swap``ped (old, new), repeated
    ``repeat`` times; ``distance`` is how unlike the compounds are, ``share`` the part of the votes that its prototype has
    among the templates of as many repeats."""

    index: int
    swap: tuple[tuple[int, int], ...]
    distance: float
    repeat: int = 1
    share: float = 1.0


class SubstitutionBaseline:
    """Predicts crystals by substitution in those of a store's split.

    ``predict(numbers, k)`` gives up to k predictions, the best first; ``templates`` says which known crystals they come from.
    Raises BadRequest, through the store, for a data set that is none.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        z, offsets = store.tensor("atom_types").numpy().astype(np.int64), store.atom_offsets.tolist()
        lattice = store.tensor("lattice").numpy().astype(np.float64)
        cells = [z[a:b] for a, b in pairwise(offsets)]
        self.volumes = atomic_volumes(cells, np.abs(np.linalg.det(lattice)))
        groups: defaultdict[Counts, list[tuple[NDArray[np.int64], tuple[float, ...], int]]] = defaultdict(list)
        self.prototypes = _prototypes(store)
        for i, numbers in enumerate(cells):
            elements, counts, charges = described(numbers)
            groups[counts].append((elements, charges, i))
        self.groups = {
            counts: _Group(
                np.stack([e for e, _, _ in rows]),
                np.array([q for _, q, _ in rows], dtype=np.float64),
                np.array([i for _, _, i in rows], dtype=np.int64),
            )
            for counts, rows in groups.items()
        }

    def predict(self, numbers: ArrayLike, k: int = 1, *, exclude: int | None = None) -> list[Crystal]:
        """Return up to ``k`` crystals of atomic numbers [N], from different prototypes as far as there are any.

        Empty where no known crystal has such numbers of atoms. ``exclude`` leaves out one training crystal (for tuning).
        """
        return [self.build(template, numbers) for template in self.templates(numbers, k, exclude=exclude)]

    def templates(self, numbers: ArrayLike, k: int = 1, *, exclude: int | None = None) -> list[Template]:
        """Return the templates of ``predict``, the best first."""
        z = np.asarray(numbers, dtype=np.int64)
        elements, counts, charges = described(z)
        divisor = int(np.gcd.reduce(counts))
        found: list[Template] = []
        for repeat in [r for r in range(1, divisor + 1) if divisor % r == 0]:
            group = self.groups.get(tuple(n // repeat for n in counts))
            if group is not None:
                # Repeated cells can only give structures with a smaller primitive cell, so they come after all others.
                found += self._vote(self._score(group, elements, np.array(charges), counts, repeat, exclude))
            if len(found) >= k:
                break
        return found[:k]

    def build(self, template: Template, numbers: ArrayLike) -> Crystal:
        """Make the crystal of a template: volume scaled to that of the new elements, atoms in the order of ``numbers``."""
        a, b = self.store.atom_offsets[template.index : template.index + 2].tolist()
        z = self.store.tensor("atom_types")[a:b].numpy().astype(np.int64)
        frac = self.store.tensor("frac_coords")[a:b].numpy().astype(np.float64)
        lattice = self.store.tensor("lattice")[template.index].numpy().astype(np.float64)
        swap = dict(template.swap)
        swapped = np.array([swap[int(old)] for old in z], dtype=np.int64)
        ratio = self.volumes[swapped].sum() / self.volumes[z].sum()
        lattice = lattice * ratio ** (1 / 3)
        made = Crystal(swapped, frac, lattice)
        for _ in range(template.repeat - 1):
            made = stacked(made, Crystal(swapped, frac, lattice))
        made = niggli(made)
        return in_order(made, np.asarray(numbers, dtype=np.int64))

    def _score(
        self,
        group: _Group,
        elements: NDArray[np.int64],
        charges: NDArray[np.float64],
        counts: Counts,
        repeat: int,
        exclude: int | None,
    ) -> list[Template]:
        weights = np.sqrt(np.array(counts, dtype=np.float64))
        weights /= weights.sum()
        best = np.full(len(group.index), np.inf)
        which = np.zeros(len(group.index), dtype=np.int64)
        orders = list(_orders(counts))
        for number, order in enumerate(orders):
            gap = dissimilarity(elements[list(order)], charges[list(order)], group.elements, group.charges)
            total = gap @ weights
            better = total < best
            best[better], which[better] = total[better], number
        nearest = np.argsort(best, kind="stable")[: NEIGHBOURS + 1].tolist()
        return [
            Template(
                int(group.index[m]),
                tuple(
                    (int(old), int(new))
                    for old, new in zip(group.elements[m], elements[list(orders[int(which[m])])], strict=True)
                ),
                float(best[m]),
                repeat,
            )
            for m in nearest
            if int(group.index[m]) != exclude
        ][:NEIGHBOURS]

    def _kind(self, template: Template) -> int:
        return int(self.prototypes[template.index])

    def _vote(self, found: Sequence[Template]) -> list[Template]:
        """Order templates by the votes for their prototype; the nearest one of each comes first, then the others."""
        if not found:
            return []
        least = min(t.distance for t in found)
        votes: defaultdict[int, float] = defaultdict(float)
        for t in found:
            votes[self._kind(t)] += float(np.exp(-(t.distance - least) / TEMPERATURE))
        total = sum(votes.values())
        found = [replace(t, share=votes[self._kind(t)] / total) for t in found]
        first: dict[int, Template] = {}
        rest = []
        for t in sorted(found, key=lambda t: t.distance):
            if self._kind(t) in first:
                rest.append(t)
            else:
                first[self._kind(t)] = t
        return sorted(first.values(), key=lambda t: -votes[self._kind(t)]) + rest


def described(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], Counts, tuple[float, ...]]:
    """Return elements, counts and guessed oxidation states of a cell, sorted by count and then by electronegativity."""
    z, n = np.unique(numbers, return_counts=True)
    order = np.lexsort((z, element_table()[z, 1], n))
    z, n = z[order], n[order]
    divisor = int(np.gcd.reduce(n))
    states = oxidation_states(tuple(zip(z.tolist(), (n // divisor).tolist(), strict=True)))
    return z.astype(np.int64), tuple(n.tolist()), states


def _prototypes(store: Store) -> NDArray[np.int64]:
    """Return a number for the kind of structure of each crystal: its space group, where the store knows it."""
    if "space_group" in store.properties:
        return store.column("space_group").numpy().astype(np.int64)
    return np.arange(len(store), dtype=np.int64)


def _orders(counts: Counts) -> list[tuple[int, ...]]:
    """Return the orders of elements that keep the counts: permutations within runs of the same count."""
    runs: list[list[int]] = []
    for i, n in enumerate(counts):
        if runs and counts[runs[-1][0]] == n:
            runs[-1].append(i)
        else:
            runs.append([i])
    orders = []
    for parts in product(*(permutations(run) for run in runs)):
        orders.append(tuple(i for part in parts for i in part))
        if len(orders) == _MOST_SWAPS:
            break
    return orders


def stacked(lower: Crystal, upper: Crystal) -> Crystal:
    """Put a copy of a cell on top of another along the shortest cell vector, which keeps the cell compact."""
    axis = int(np.argmin(upper.lengths))
    lattice = lower.lattice.copy()
    lattice[axis] += upper.lattice[axis]
    shift = lower.lattice[axis]
    positions = np.vstack([lower.positions, upper.positions + shift])
    return Crystal(np.concatenate([lower.numbers, upper.numbers]), positions @ np.linalg.inv(lattice), lattice)


def in_order(crystal: Crystal, numbers: NDArray[np.int64]) -> Crystal:
    """Sort the atoms of a crystal so that its numbers are those wanted, in their order."""
    mine, theirs = np.argsort(crystal.numbers, kind="stable"), np.argsort(numbers, kind="stable")
    place = np.empty(len(numbers), dtype=np.int64)
    place[theirs] = mine
    return Crystal(crystal.numbers[place], crystal.frac_coords[place], crystal.lattice)
