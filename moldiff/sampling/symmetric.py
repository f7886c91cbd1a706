"""Crystals of a given symmetry: the way from noise to data within the structures that a space group and its orbits allow.

The operations of the group, written in the cell's own basis, take atoms to atoms. What they leave of a displacement of the atoms,
or of a cell, is its mean over the group (``core.symmetry``). Noise is made symmetric by that mean, and so is every prediction of
the network, so that all states of the way have the symmetry: the space group constrained generation of Jiao et al. 2024
(DiffCSP++), with the mean in the basis of the primitive cell in place of the parameters of a conventional one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.periodic import torus_log, wrap
from moldiff.core.rng import Streams
from moldiff.core.symmetry import Group
from moldiff.denoisers.base import Denoiser, reorder
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.control import Control, Step
from moldiff.sampling.prototypes import Sleeping


@dataclass(frozen=True, eq=False)
class Beginnings:
    """Structures that rows begin at in place of noise: row r at ``truth`` (encoded, with the symmetry of its group), noised to
    the grid's first time that is not above ``begins[r]``; one with a number above 1 begins from noise, one with 0 stays as it is.
    A call of the network never has fewer than ``fewest`` rows (``sampling.prototypes.Sleeping``)."""

    truth: AtomBatch
    begins: Tensor
    fewest: int | None = None


class Projected:
    """A denoiser whose predictions of coordinates and cells keep the symmetry of a state that has it."""

    def __init__(self, denoiser: Denoiser, group: Group, facts: Sequence[Mapping[str, Any]] = ()) -> None:
        self.denoiser, self.group, self.facts = denoiser, group, list(facts)

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        said = self.denoiser(xt, t, previous)
        now = xt.frac_coords
        way = self.group.shared(said.frac_coords - now)
        return said.replace(frac_coords=now + way, lattice=self.group.cell(said.lattice))

    @property
    def part(self) -> Callable[[Tensor], Denoiser] | None:
        """What is asked about some of the rows, by their numbers; None where the denoiser can't be asked so."""
        part = getattr(self.denoiser, "part", None)
        return None if part is None else lambda rows: Projected(part(rows), self.group[rows])

    def reorder(self, index: Tensor) -> None:
        """Row k from now on is what row ``index[k]`` was."""
        self.group = self.group[index]
        self.facts = [self.facts[k] for k in index.tolist()] if self.facts else []
        reorder(self.denoiser, index)


class Symmetric(Control):
    """Holds the states of crystals, of coordinates ``frac_coords`` and cell ``lattice``, in the symmetry of ``group``.

    ``base`` [S, N, 3] are structures that have it, from which noise begins, but for rows that have a structure to begin at in
    ``known``. ``said`` are facts of each row: what it was given.
    """

    def __init__(
        self, group: Group, base: Tensor, said: Sequence[Mapping[str, Any]] = (), known: Beginnings | None = None
    ) -> None:
        self.group, self.base, self.said, self.known = group, base, list(said), known
        self.inner: Projected | None = None
        self.sleeping: Sleeping | None = None

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        self.inner = Projected(denoiser, self.group, self.said)
        if self.known is None:
            return self.inner
        self.sleeping = Sleeping(self.inner, diffusion, self.known.truth, self.known.begins, self.known.fewest)
        return self.sleeping

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        begun = wrap(self.base + self.group.way(xt.frac_coords))
        if self.known is not None:  # a row that sleeps stands where it will wake
            asleep = (self.known.begins <= 1)[:, None, None]
            begun = torch.where(asleep, self.known.truth.frac_coords, begun)
        return xt.replace(frac_coords=begun, lattice=self.group.cell(xt.lattice))

    def step(self, now: Step, after: AtomBatch) -> AtomBatch:
        group = self.group if self.inner is None else self.inner.group
        way = group.shared(torus_log(now.before.frac_coords, after.frac_coords))
        after = after.replace(frac_coords=wrap(now.before.frac_coords + way), lattice=group.cell(after.lattice))
        return after if self.sleeping is None else self._woken(self.sleeping, group, now, after)

    def _woken(self, known: Sleeping, group: Group, now: Step, after: AtomBatch) -> AtomBatch:
        """The state with the rows that wake at ``now.s`` noised from what they begin at, within their symmetry."""
        rows = ((now.t > known.begins) & (now.s <= known.begins)).nonzero().flatten()
        if not len(rows):
            return after
        truth, group, rng = known.truth[rows], group[rows], now.rng.subset(rows.tolist())
        way = group.way(rng.uniform(truth, "frac_coords")) * truth.mask[..., None]
        noised = now.diffusion.noise(truth.replace(frac_way=way), now.s[rows], rng)
        return after.replace(
            frac_coords=after.frac_coords.index_copy(0, rows, noised.frac_coords),
            lattice=after.lattice.index_copy(0, rows, group.cell(noised.lattice)),
        )

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        if self.sleeping is None:
            return x0
        still, truth = (self.sleeping.begins <= 0)[:, None, None], self.sleeping.truth
        return x0.replace(
            frac_coords=torch.where(still, truth.frac_coords, x0.frac_coords),
            lattice=torch.where(still, truth.lattice, x0.lattice),
        )

    def facts(self, row: int) -> Mapping[str, Any]:
        """What the system in a row was given."""
        said = self.said if self.inner is None else self.inner.facts
        return said[row] if said else {}
