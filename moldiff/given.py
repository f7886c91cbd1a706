"""Fields given and structures to begin with: a graph, positions, molecules to vary, two molecules to go between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moldiff.control import Place, Spec
from moldiff.errors import BadRequest
from moldiff.keep import FIELDS, check_known, check_processes, refuse_two
from moldiff.sampling.inpaint import Inpaint, Known
from moldiff.sampling.variations import FromBetween, FromNoised
from moldiff.structures import Structure, as_structures, encoded_rows

if TYPE_CHECKING:
    from moldiff.chem.graphs import Graph
    from moldiff.conformers import GraphGiven
    from moldiff.model_store import ModelInfo
    from moldiff.sampling.control import Control

GRAPH_FIELDS = ("atom_types", "charges", "bond_types")
#: Variations of this strength are mostly other molecules that still resemble the given one (benchmarks/variations.py).
STRENGTH = 0.6


def check_size(info: ModelInfo, label: str, n: int) -> None:
    """Raise ``BadRequest`` for a structure larger or smaller than a model can make."""
    if not min(info.sizes) <= n <= max(info.sizes):
        raise BadRequest(f"{label} has {n} atoms, {info.name} makes {min(info.sizes)} to {max(info.sizes)}")


def molecules_only(info: ModelInfo, what: str) -> None:
    """Raise ``BadRequest`` where a model makes crystals."""
    if info.config.kind != "molecule":
        raise BadRequest(f"{info.name} makes crystals: {what} is for molecules")


@dataclass(frozen=True, eq=False)
class PositionsGiven(Spec):
    """Sample i has the positions of structure i modulo their number, exactly; types, charges and bonds are made."""

    structures: tuple[Structure, ...]
    shown: str = "noisy"  # places shown clean did worse, even in training (docs/experiments.md)
    name = "positions"
    gives = ("positions",)

    def settings(self) -> Any:
        return {"structures": [s.digest() for s in self.structures], "shown": self.shown}

    def check(self, info: ModelInfo) -> None:
        molecules_only(info, "a file of positions")
        for s in self.structures:
            check_size(info, s.name, len(s))
        check_processes(info, self.gives, 1)

    def check_beside(self, others: Sequence[Spec]) -> None:
        refuse_two(self, others)

    def size_of(self, index: int) -> int | None:
        return len(self.structures[index % len(self.structures)])

    def facts(self, index: int) -> Mapping[str, Any]:
        return {"source": self.structures[index % len(self.structures)].name}

    def control(self, place: Place) -> Control:
        known = Known(encoded_rows(place, self.structures, ["positions"]), {"positions": place.size})
        return Inpaint(known, shown=self.shown)


@dataclass(frozen=True, eq=False)
class Like(Spec):
    """Sample i is a variation of structure i modulo their number: noised to time ``strength`` and back again."""

    structures: tuple[Structure, ...]
    strength: float
    name = "like"
    gives = FIELDS

    @property
    def begins(self) -> float:  # type: ignore[override]
        """The way back begins where noising ended."""
        return self.strength

    def settings(self) -> Any:
        return {"structures": [s.digest() for s in self.structures], "strength": self.strength}

    def check(self, info: ModelInfo) -> None:
        molecules_only(info, "varying a molecule")
        for s in self.structures:
            check_known(info, s.name, s.numbers, s.charges, () if s.bonds is None else s.bonds)
            check_size(info, s.name, len(s))

    def check_beside(self, others: Sequence[Spec]) -> None:
        refuse_two(self, others)

    def size_of(self, index: int) -> int | None:
        return len(self.structures[index % len(self.structures)])

    def facts(self, index: int) -> Mapping[str, Any]:
        return {"source": self.structures[index % len(self.structures)].name}

    def control(self, place: Place) -> Control:
        names = [name for name in FIELDS if name in place.diffusion.processes]
        return FromNoised(encoded_rows(place, self.structures, names), self.strength)


@dataclass(frozen=True, eq=False)
class Between(Spec):
    """Sample i of n lies between two structures of equal size: i / (n - 1) of the way from the first to the second.

    Atom k of the one becomes atom k of the other; ``superposed`` finds an order and a place for which that is little.
    """

    first: Structure
    second: Structure
    n: int = 0
    strength: float = 0.6
    name = "between"
    sampler = "ddim"
    gives = FIELDS

    def for_n(self, n: int) -> Spec:
        return replace(self, n=n)

    @property
    def begins(self) -> float:  # type: ignore[override]
        """The way back begins where noising ended."""
        return self.strength

    def settings(self) -> Any:
        return {"structures": [self.first.digest(), self.second.digest()], "n": self.n, "strength": self.strength}

    def check(self, info: ModelInfo) -> None:
        Like((self.first, self.second), self.strength).check(info)
        if len(self.first) != len(self.second):
            sizes = f"{len(self.first)} and {len(self.second)} atoms"
            raise BadRequest(f"molecules of {sizes}: there is a way only between equal sizes")

    def check_beside(self, others: Sequence[Spec]) -> None:
        refuse_two(self, others)

    def size_of(self, index: int) -> int | None:
        return len(self.first)

    def facts(self, index: int) -> Mapping[str, Any]:
        return {"weight": self._weight(index)}

    def _weight(self, index: int) -> float:
        return min(index, self.n - 1) / max(1, self.n - 1)

    def control(self, place: Place) -> Control:
        names = [name for name in FIELDS if name in place.diffusion.processes]
        a, b = (encoded_rows(place, [s], names) for s in (self.first, self.second))
        weight = torch.tensor([self._weight(i) for i in place.indices], device=place.device)
        return FromBetween(a, b, weight, self.strength, place.seed)


def superposed(first: Structure, second: Structure, rounds: int = 10) -> Structure:
    """The second structure turned onto the first, its atoms put in the order in which they lie nearest to the first's.

    Turning and matching alternate, from both handednesses of the principal axes; atoms of another element cost 1 Å more.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.transform import Rotation

    a = first.positions.astype(np.float64) - first.positions.mean(0)
    b = second.positions.astype(np.float64) - second.positions.mean(0)
    other = 1.0 * (first.numbers[:, None] != second.numbers[None, :])
    axes_a, axes_b = (np.linalg.svd(x, full_matrices=False)[2] for x in (a, b))
    best: tuple[float, Any, Any] | None = None
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        turn = axes_b.T @ np.diag([*signs, 1.0]) @ axes_a
        turn = turn if np.linalg.det(turn) > 0 else axes_b.T @ np.diag([*signs, -1.0]) @ axes_a
        y = b @ turn
        for _ in range(rounds):
            cost = np.square(np.linalg.norm(a[:, None] - y[None], axis=-1)) + other
            order = linear_sum_assignment(cost)[1]
            y = Rotation.align_vectors(a, b[order])[0].apply(b)
        total = float((np.square(a - y[order]).sum(-1) + other[np.arange(len(a)), order]).sum())
        if best is None or total < best[0]:
            best = total, order, y[order] + first.positions.mean(0)
    assert best is not None
    _, order, x = best
    bonds = None if second.bonds is None else second.bonds[np.ix_(order, order)]
    return Structure(second.name, second.numbers[order], x.astype(np.float32), bonds, second.charges[order])


def between_from(between: Any, strength: float | None) -> Between | None:
    """The specification behind ``--between`` and ``--strength``; None without.

    ``between`` is a file of two molecules, or two files, molecules, atoms or samples. Raises ``BadRequest`` for any other number
    of molecules.
    """
    if between is None or (isinstance(between, (list, tuple)) and not between):
        return None
    parts = between if isinstance(between, (list, tuple)) else [between]
    ends = [one for part in parts for one in as_structures(part)]
    if len(ends) != 2:
        raise BadRequest(f"a way leads from one molecule to one other, found {len(ends)}: name two with --between")
    a, b = ends
    share = checked_strength(STRENGTH if strength is None else strength)
    return Between(a, superposed(a, b) if len(a) == len(b) else b, strength=share)


def like_from(like: Any, strength: float | None) -> Like | None:
    """The specification behind ``--like`` and ``--strength``; None without."""
    if like is None:
        if strength is not None:
            raise BadRequest("--strength says how far to go from a molecule: name its file with --like")
        return None
    return Like(tuple(as_structures(like)), checked_strength(STRENGTH if strength is None else strength))


def checked_strength(strength: float) -> float:
    """``strength`` if it lies in (0, 1]: the time to noise to."""
    if not 0 < strength <= 1:
        raise BadRequest(f"strength must lie above 0 and be at most 1, found {strength:g}")
    return float(strength)


def graph_from(smiles: str | Graph | None, begin: str = "embedding") -> GraphGiven | None:
    """The specification behind ``--smiles``, whose way begins as the model's does; None without."""
    from moldiff.chem.graphs import Graph, read_graph
    from moldiff.conformers import GraphGiven

    return None if smiles is None else GraphGiven(smiles if isinstance(smiles, Graph) else read_graph(smiles), begin=begin)


def positions_from(positions: str | Path | Any | None) -> PositionsGiven | None:
    """The specification behind ``--positions``; None without."""
    return None if positions is None else PositionsGiven(tuple(as_structures(positions, perceive=False)))
