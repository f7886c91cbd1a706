"""The closing prediction read as one graph: the likeliest in which every valence is right and all atoms hang together.

A network says of every bond and charge how likely its classes are, each by itself. Reading each by itself, one bond that is a
little likelier single than double spoils a molecule. Among the graphs that keep to a table of valences and are connected, the
likeliest one, with classes as independent as the network gives them, is an integer linear program of some hundred variables that
SciPy's HiGHS solves in hundredths of a second. Graphs that are right as they are read stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from moldiff.core.batch import AtomBatch
from moldiff.core.vocabulary import Vocabulary
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.control import Control

#: Sums of bond orders that are right, by (atomic number, formal charge); an element that is absent may have any.
Valences = Mapping[tuple[int, int], Sequence[int]]

#: No class costs more than this (nats): what is known costs as much to change, and so does not change.
FAR = 40.0
#: A graph less likely than the one that was read by more than this (nats) is another molecule, and the read one is kept.
MOST = 30.0
#: Where more atoms than this are wrong, what was read is no molecule yet, and no graph of it is looked for.
WRONG = 8
#: Times that pieces of a graph are asked to hang together and the program is solved again; nodes of the search each time.
CUTS, NODES = 6, 200


class JointGraph(Control):
    """Reads bonds and charges together. Elements stay as they are read; the total charge moves towards zero or not at all, or is
    ``total`` where that is given.

    A system for which there is no right graph within ``most`` nats of the one read stays as it is.
    """

    def __init__(self, vocabulary: Vocabulary, valences: Valences, most: float = MOST, total: int | None = None) -> None:
        self.vocabulary, self.valences, self.most, self.total = vocabulary, valences, most, total

    def read(self, prediction: AtomBatch, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        if "bond_types" not in diffusion.categorical:
            return x0
        free = "charges" in diffusion.categorical
        physical = self.vocabulary.decode(x0).to("cpu")
        names = ("bond_types", "charges")[: 1 + free]
        odds = {name: prediction.data[name].float().cpu().log_softmax(-1).double() for name in names}
        made = {name: x0.data[name].cpu().clone() for name in odds}
        for row, size in enumerate(physical.n_atoms.tolist()):
            n = slice(0, size)
            read = Graph(
                physical.atom_types[row, n].numpy(),
                physical.charges[row, n].numpy() if "charges" in physical else np.zeros(size, dtype=np.int64),
                physical.bond_types[row, n, n].numpy(),
            )
            finite = all(bool(value[row].isfinite().all()) for value in odds.values())
            charged = free and self.total is not None and int(read.charges.sum()) != self.total
            if not finite or (read.right(self.valences) and not charged) or read.wrong(self.valences) > WRONG:
                continue
            bonds = 0.5 * (odds["bond_types"][row, n, n] + odds["bond_types"][row, n, n].transpose(0, 1))
            charges = (self.vocabulary.values["charges"], odds["charges"][row, n].numpy()) if free else ((), None)
            chances = Chances(self.vocabulary.values["bond_types"], bonds.numpy(), *charges)
            found = likeliest(read, chances, self.valences, self.most, self.total if free else None)
            if found is not None:
                made["bond_types"][row, n, n] = torch.from_numpy(found[0])
                if free:
                    made["charges"][row, n] = torch.from_numpy(found[1])
        return x0.replace(**{name: value.to(x0.device) for name, value in made.items()})


@dataclass(frozen=True, eq=False)
class Graph:
    """A molecule's ``numbers`` [N], ``charges`` [N] and bond orders ``bonds`` [N, N]."""

    numbers: NDArray[np.int64]
    charges: NDArray[np.int64]
    bonds: NDArray[np.int64]

    def wrong(self, valences: Valences) -> int:
        """The number of atoms that do not keep to the table."""
        known = {z for z, _ in valences}
        atoms = zip(self.numbers.tolist(), self.charges.tolist(), self.bonds.sum(-1).tolist(), strict=True)
        return sum(z in known and v not in valences.get((z, q), ()) for z, q, v in atoms)

    def right(self, valences: Valences) -> bool:
        """Whether all atoms keep to the table and hang together."""
        return not self.wrong(valences) and int(connected_components(self.bonds > 0, directed=False)[0]) == 1


@dataclass(frozen=True, eq=False)
class Chances:
    """Log probabilities: ``bonds`` [N, N, O] of each of ``orders``, ``charges`` [N, Q] of each of ``values``."""

    orders: Sequence[int]
    bonds: NDArray[np.float64]
    values: Sequence[int] = ()
    charges: NDArray[np.float64] | None = None


def likeliest(
    read: Graph, chances: Chances, valences: Valences, most: float = MOST, total: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Classes of bonds [N, N] and charges [N] of the likeliest right graph with the elements of ``read``.

    Their sum is ``total``, or without it between that of ``read`` and 0. None where there is none within ``most`` nats of
    ``read``. Where charges are given (``chances.charges`` is None), those that
    come back mean nothing.
    """
    n, known = len(read.numbers), {z for z, _ in valences}
    first, second = np.triu_indices(n, 1)
    none, kinds = chances.orders.index(0), np.array([k for k, order in enumerate(chances.orders) if order])
    odds = np.clip(chances.bonds[first, second], -FAR, 0)
    drawn = np.array([chances.orders.index(int(order)) for order in read.bonds[first, second]])
    price = odds[:, [none]] - odds  # of each order where there could be no bond
    charged = chances.charges if chances.charges is not None else np.zeros((n, 1))
    states = [  # what an atom may be: its place, the class of its charge, the charge, the sum of its orders (None: any)
        (i, c, q, v)
        for i, z in enumerate(read.numbers.tolist())
        for c, q in (enumerate(chances.values) if chances.charges is not None else [(0, int(read.charges[i]))])
        for v in (valences.get((z, q), ()) if z in known else (None,))
    ]
    now = int(read.charges.sum())
    low, high = (min(now, 0), max(now, 0)) if total is None else (total, total)
    if len({s[0] for s in states}) < n or _never(states, n, low, high):
        return None
    pair, kind = (part.ravel() for part in np.broadcast_arrays(np.arange(len(first))[:, None], kinds[None]))
    order = np.array(chances.orders, dtype=float)[kind]
    atom = np.array([s[0] for s in states])
    cost = np.concatenate([price[pair, kind], [-max(charged[i, c], -FAR) for i, c, _, _ in states]])
    b, s = np.arange(len(pair)), len(pair) + np.arange(len(states))
    entries = [  # rows: orders minus valence of each atom, one state an atom, one order a pair, the total charge
        (first[pair], b, order),
        (second[pair], b, order),
        (atom, s, np.array([-float(v or 0) for *_, v in states])),
        (n + atom, s, np.ones(len(s))),
        (2 * n + pair, b, np.ones(len(b))),
        (np.full(len(s), 2 * n + len(first)), s, np.array([float(q) for _, _, q, _ in states])),
    ]
    row, column, value = (np.concatenate(part) for part in zip(*entries, strict=True))
    rules = coo_array((value, (row, column)), shape=(2 * n + len(first) + 1, len(cost))).tocsr()
    any_sum = np.array([z not in known for z in read.numbers.tolist()])
    least = np.concatenate([np.zeros(n), np.ones(n), np.zeros(len(first)), [low]])
    greatest = np.concatenate([np.where(any_sum, np.inf, 0.0), np.ones(n), np.ones(len(first)), [high]])
    constraints = [LinearConstraint(rules, least, greatest)]
    price_now = float(price[np.arange(len(drawn)), drawn].sum())
    if chances.charges is not None:
        price_now -= sum(max(float(charged[i, chances.values.index(int(q))]), -FAR) for i, q in enumerate(read.charges))
    constraints.append(LinearConstraint(cost[None], -np.inf, price_now + most))
    for _ in range(CUTS):
        options = {"node_limit": NODES}  # and no limit of time, which would make samples depend on the machine
        solved = milp(cost, integrality=np.ones(len(cost)), bounds=Bounds(0, 1), constraints=constraints, options=options)
        if solved.status != 0:
            return None
        chosen = solved.x > 0.5
        graph, at = np.full((n, n), none, dtype=np.int64), np.flatnonzero(chosen[: len(b)])
        graph[first[pair[at]], second[pair[at]]] = graph[second[pair[at]], first[pair[at]]] = kind[at]
        pieces, label = connected_components(graph != none, directed=False)
        if pieces == 1:
            return graph, np.array([c for _, c, _, _ in states])[chosen[len(b) :]]
        for piece in range(pieces):
            across = (label[first] == piece) != (label[second] == piece)
            cut = np.concatenate([across[pair].astype(float), np.zeros(len(s))])
            constraints.append(LinearConstraint(cut[None], 1, np.inf))
    return None


def _never(states: Sequence[tuple[int, int, int, int | None]], n: int, low: int, high: int) -> bool:
    """Whether the sum of the valences is odd whatever the states, as it is with an odd number of electrons and no charge."""
    parities: list[set[int]] = [set() for _ in range(n)]
    for i, _, q, v in states:
        parities[i] |= {0, 1} if v is None else {(v - q) % 2}
    return low == high and all(len(p) == 1 for p in parities) and (sum(p.pop() for p in parities) + low) % 2 == 1
