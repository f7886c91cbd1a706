"""Diffusion of the cell in its symmetric logarithm: rotation-invariant, and of a volume that grows with the number of atoms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.periodic import inverse, lattice_from_log, log_lattice, six_from_symmetric
from moldiff.core.rng import Streams
from moldiff.diffusion.gaussian import Gaussian, Parameterization
from moldiff.diffusion.schedules import Schedule
from moldiff.errors import BadRequest

#: Of MP-20's Niggli-reduced cells (training part): five shape numbers and the log of the volume per atom in Å^3.
MEAN = (0.02, 0.03, 0.0, -0.09, -0.29, 2.91)
STD = (0.23, 0.20, 0.23, 0.15, 0.34, 0.38)


class LogLattice(Gaussian):
    """Gaussian diffusion of the six numbers of ``core.periodic.log_lattice``, standardised by the data's ``mean`` and ``std``.

    x_0 is the matrix [S, 3, 3] in Å; x_t and predictions are [S, 6]: five numbers of shape and the log of the volume (not
    standardised, so that they mean the same for any number of atoms). ``mean`` and ``std`` are those of the data with the
    volume taken per atom; a cell of N atoms is noised towards the mean with volume N exp(mean[5]), which makes the prior depend
    on N. Turning the crystal changes nothing, since the numbers do not see it (the log-polar lattice of Luo et al. 2024,
    CrystalFlow, and Jiao et al. 2024, DiffCSP++).

    The network is shown a cell in Å at the data's own spread at every t, and answers with a matrix M L (L the cell that it saw):
    the raw output of unit variance is the symmetric part of M read as six numbers. So what it says turns as its input does.
    """

    def __init__(
        self,
        name: str,
        schedule: Schedule,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        parameterization: Parameterization = "karras",
        weight: float = 1.0,
        max_weight: float = 1e6,
    ) -> None:
        super().__init__(name, schedule, parameterization, 1.0, False, weight, max_weight)
        for what, numbers in (("mean", mean), ("std", std)):
            if len(numbers) != 6 or not all(math.isfinite(x) for x in numbers):
                wanted = "six numbers, five of shape and the log of the volume per atom"
                raise BadRequest(f"{what} of the lattice must be {wanted}, found {list(numbers)}")
        if min(std) <= 0:
            raise BadRequest(f"std of the lattice must be positive, found {list(std)}")
        self.mean, self.std = tuple(mean), tuple(std)
        self._statistics: dict[torch.device, Tensor] = {}

    def _center(self, like: AtomBatch) -> tuple[Tensor, Tensor]:
        """Mean [S, 6] for each system's number of atoms, and std [6]."""
        if like.device not in self._statistics:  # a copy to a GPU for every call would wait for it
            self._statistics[like.device] = torch.tensor([self.mean, self.std], device=like.device)
        mean, std = self._statistics[like.device]
        size = like.n_atoms.clamp_min(1).log()
        return torch.cat([mean[:5].expand(len(size), 5), (mean[5] + size)[:, None]], -1), std

    def _standard(self, six: Tensor, like: AtomBatch) -> Tensor:
        mean, std = self._center(like)
        return (six - mean) / std

    def _physical(self, z: Tensor, like: AtomBatch) -> Tensor:
        mean, std = self._center(like)
        return mean + std * z

    def _inner(self, xt: AtomBatch) -> AtomBatch:
        return xt.replace(**{self.name: self._standard(xt.data[self.name], xt)})

    def _cell(self, six: Tensor) -> Tensor:
        # far outside of any crystal exp would leave float32's range; an untrained network may get there
        shape, size = six[..., :5].clamp(-4, 4), six[..., 5:].clamp(-2, 14)
        return lattice_from_log(torch.cat([shape, size], -1))

    def clean(self, x0: AtomBatch) -> Tensor:
        """The standardised numbers of the clean cell, [S, 6]."""
        return self._standard(log_lattice(x0.data[self.name]), x0)

    def draw(self, like: AtomBatch, rng: Streams) -> Tensor:
        return rng.normal(like, self.name, (6,))

    def prior(self, like: AtomBatch, rng: Streams) -> Tensor:
        return self._physical(super().prior(like, rng), like)

    def noise(self, x0: AtomBatch, t: Tensor, rng: Streams) -> Tensor:
        return self._physical(super().noise(x0, t, rng), x0)

    def renoise(self, xt: AtomBatch, t: Tensor, u: Tensor, rng: Streams) -> Tensor:
        return self._physical(super().renoise(self._inner(xt), t, u, rng), xt)

    def network_input(self, xt: AtomBatch, t: Tensor) -> Tensor:
        """The cell [S, 3, 3] in Å (symmetric orientation) whose numbers are x_t's, brought to unit spread."""
        return self._cell(self._physical(super().network_input(self._inner(xt), t), xt))

    def to_clean(self, raw: Tensor, xt: AtomBatch, t: Tensor) -> Tensor:
        strain = raw @ inverse(self.network_input(xt, t))
        return self._physical(super().to_clean(six_from_symmetric(strain), self._inner(xt), t), xt)

    def self_condition(self, prediction: Tensor) -> Tensor:
        """The predicted cell, [S, 3, 3] in Å."""
        return self._cell(prediction)

    def known(self, x0: AtomBatch, xt: AtomBatch) -> Tensor:
        return log_lattice(x0.data[self.name])

    def loss(self, prediction: Tensor, x0: AtomBatch, xt: AtomBatch, t: Tensor) -> Tensor:
        return super().loss(self._standard(prediction, x0), x0, xt, t)

    def step(
        self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor, rng: Streams, eta: float = 1.0
    ) -> Tensor:
        inner = super().step(self._inner(xt), self._standard(prediction, xt), t, s, rng, eta)
        return self._physical(inner, xt)

    def finish(self, prediction: Tensor, batch: AtomBatch) -> Tensor:
        """The predicted cell, [S, 3, 3] in Å."""
        return self._cell(prediction)
