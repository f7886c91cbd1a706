"""Crystals of a given symmetry: the way from noise to data within the structures that a space group and its orbits allow.

The operations of the group, written in the cell's own basis, take atoms to atoms. What they leave of a displacement of the atoms,
or of a cell, is its mean over the group (``core.symmetry``). Noise is made symmetric by that mean, and so is every prediction of
the network, so that all states of the way have the symmetry: the space group constrained generation of Jiao et al. 2024
(DiffCSP++), with the mean in the basis of the primitive cell in place of the parameters of a conventional one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.periodic import torus_log, wrap
from moldiff.core.rng import Streams
from moldiff.core.symmetry import Group
from moldiff.denoisers.base import Denoiser, reorder
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.control import Control, Step


class Projected:
    """A denoiser whose predictions of coordinates and cells keep the symmetry of a state that has it."""

    def __init__(self, denoiser: Denoiser, group: Group, labels: Sequence[str] = ()) -> None:
        self.denoiser, self.group, self.labels = denoiser, group, list(labels)

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        said = self.denoiser(xt, t, previous)
        now = xt.frac_coords
        way = self.group.shared(said.frac_coords - now)
        return said.replace(frac_coords=now + way, lattice=self.group.cell(said.lattice))

    def reorder(self, index: Tensor) -> None:
        """Row k from now on is what row ``index[k]`` was."""
        self.group = self.group[index]
        self.labels = [self.labels[k] for k in index.tolist()] if self.labels else []
        reorder(self.denoiser, index)


class Symmetric(Control):
    """Holds the states of crystals, of coordinates ``frac_coords`` and cell ``lattice``, in the symmetry of ``group``.

    ``base`` [S, N, 3] are structures that have it, from which noise begins. ``labels`` say of each row what it was given.
    """

    def __init__(self, group: Group, base: Tensor, labels: Sequence[str] = ()) -> None:
        self.group, self.base, self.labels = group, base, list(labels)
        self.inner: Projected | None = None

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        self.inner = Projected(denoiser, self.group, self.labels)
        return self.inner

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        begun = wrap(self.base + self.group.way(xt.frac_coords))
        return xt.replace(frac_coords=begun, lattice=self.group.cell(xt.lattice))

    def step(self, now: Step, after: AtomBatch) -> AtomBatch:
        group = self.group if self.inner is None else self.inner.group
        way = group.shared(torus_log(now.before.frac_coords, after.frac_coords))
        return after.replace(frac_coords=wrap(now.before.frac_coords + way), lattice=group.cell(after.lattice))

    def facts(self, row: int) -> Mapping[str, Any]:
        """The symmetry that the system in a row was given."""
        labels = self.labels if self.inner is None else self.inner.labels
        return {"symmetry": labels[row]} if labels else {}
