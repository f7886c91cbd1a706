"""Groups of symmetry operations of crystals, in the basis of each one's own cell, and what they leave of noise and of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from moldiff.core.periodic import lattice_from_log, log_lattice

#: Noise of an orbit's first atom is stretched by this many cells before its site symmetry acts, so that it is uniform there too.
_STRETCH = 24.0
#: Operations of a primitive cell, at most: groups are padded to so many, whatever else is in the batch.
MOST = 48


@dataclass(frozen=True, eq=False)
class Operations:
    """The operations of one crystal of N atoms: ``rotations`` int8 [G, 3, 3] of fractional coordinates (columns), and the atom
    ``to`` int8 [G, N] that each operation takes each atom to. Translations follow from a structure that has the symmetry."""

    rotations: Tensor
    to: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """The operations of S crystals, padded: ``rotations`` float [S, G, 3, 3], ``to`` int64 [S, G, N], and which of the G are
    ``real`` (float [S, G], 1 or 0). A crystal of which no symmetry is asked has the identity alone."""

    rotations: Tensor
    to: Tensor
    real: Tensor

    @classmethod
    def of(cls, each: Sequence[Operations | None], n: int, device: torch.device | str = "cpu") -> Group:
        """The groups of crystals that are padded to ``n`` atoms; None for one of which no symmetry is asked."""
        s, g = len(each), max((MOST, *(len(one.to) for one in each if one is not None)))
        rotations = torch.eye(3).repeat(s, g, 1, 1)
        to = torch.arange(n).repeat(s, g, 1)
        real = torch.zeros(s, g)
        real[:, 0] = 1
        for k, one in enumerate(each):
            if one is not None:
                size, atoms = one.to.shape
                rotations[k, :size], to[k, :size, :atoms], real[k, :size] = one.rotations.float(), one.to.long(), 1
        return cls(rotations.to(device), to.to(device), real.to(device))

    def __getitem__(self, index: Tensor) -> Group:
        """The groups of some of the crystals."""
        return Group(self.rotations[index], self.to[index], self.real[index])

    @cached_property
    def _back(self) -> Tensor:
        back: Tensor = torch.linalg.inv(self.rotations).round()
        return back

    @cached_property
    def _weight(self) -> Tensor:
        return self.real / self.real.sum(1, keepdim=True)

    @cached_property
    def _leads(self) -> Tensor:
        """The number of atoms of its orbit for the first atom of each orbit, 0 for the others: [S, N]."""
        first = self.to.amin(1)  # the identity is among the operations
        n = self.to.shape[2]
        return (first == torch.arange(n, device=first.device)) * (first[:, :, None] == first[:, None, :]).sum(-1)

    @cached_property
    def _metric(self) -> Tensor:
        """The mean of W x W over the operations, which is a metric's way to its own mean: [S, 3, 3, 3, 3]."""
        w = self.rotations.double()
        each = w[:, :, :, :, None, None] * w[:, :, None, None, :, :]  # W_ja W_kb at [j, a, k, b]
        return (each * self._weight.double()[:, :, None, None, None, None]).sum(1)

    def shared(self, field: Tensor) -> Tensor:
        """What the group leaves of displacements in fractional coordinates [S, N, 3]: their mean over the operations.

        Under what comes back a crystal keeps its symmetry; a field that is symmetric already comes back as it is. Sums are made
        entry by entry, so that a crystal's bits do not depend on the others.
        """
        s, g, n = self.to.shape
        moved = field[:, None].expand(s, g, n, 3).gather(2, self.to[..., None].expand(s, g, n, 3))
        turned = sum(self._back[:, :, None, :, j] * moved[..., j, None] for j in range(3))
        return (turned * self._weight[:, :, None, None]).sum(1)

    def cell(self, six: Tensor) -> Tensor:
        """The cells whose metric is the mean of these cells' over the operations, of the same volume: numbers [S, 6] of
        ``core.periodic.log_lattice``. No gradient flows."""
        with torch.no_grad():
            return log_lattice(self.exact(lattice_from_log(six.double()))).to(six.dtype)

    def exact(self, lattice: Tensor) -> Tensor:
        """The same of cells [S, 3, 3] (rows), lower triangular."""
        rows = lattice.double()
        metric = (rows[:, :, None] * rows[:, None]).sum(-1)
        mean = (self._metric * metric[:, :, None, :, None]).sum((1, 3))
        ratio = (metric.det() / mean.det()).log() / 3  # and no power, whose last bits depend on a number's place in the batch
        mean = mean * ratio.exp()[:, None, None]
        found: Tensor = torch.linalg.cholesky(mean).to(lattice.dtype)
        return found

    def way(self, noise: Tensor) -> Tensor:
        """A symmetric displacement [S, N, 3] of uniform ``noise`` [S, N, 3] in [0, 1).

        The first atom of each orbit moves by at most half a cell, uniformly within the places that its site symmetry leaves; the
        operations take its way to the others, whose ways may be longer than half a cell.
        """
        leads = self._leads[..., None].to(noise.dtype)
        free = self.shared(noise * _STRETCH * leads)
        return self.shared((free - free.round()) * leads)
