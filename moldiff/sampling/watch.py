"""Watching a denoiser for numbers that are none: a spoilt system is known even where its final classes look sound."""

from __future__ import annotations

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.denoisers.base import Denoiser


class Watched:
    """A denoiser that remembers which systems of a batch ever had a non-finite prediction: ``spoilt``, bool [S].

    A call may hold the S systems several times over, one after another, as guidance makes it.
    """

    def __init__(self, denoiser: Denoiser, n_systems: int, device: torch.device) -> None:
        self.denoiser = denoiser
        self.spoilt = torch.zeros(n_systems, dtype=torch.bool, device=device)

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        prediction = self.denoiser(xt, t, previous)
        self.spoilt |= _spoilt(prediction).reshape(-1, len(self.spoilt)).any(0)
        return prediction

    def part(self, rows: Tensor) -> Denoiser:
        """The same denoiser for some of the systems, of which ``rows`` [R] says the numbers; one may be there several times."""

        def call(xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
            prediction = self.denoiser(xt, t, previous)
            self.spoilt[rows[_spoilt(prediction)]] = True
            return prediction

        return call

    def reorder(self, index: Tensor) -> None:
        """Row k from now on is what row ``index[k]`` was."""
        self.spoilt = self.spoilt[index]


def _spoilt(prediction: AtomBatch) -> Tensor:
    """Which systems have a number that is not finite, bool [S]."""
    # A sum is non-finite where any of its terms is; one pass over the largest tensors instead of three.
    bad = [~torch.isfinite(value.flatten(1).sum(1)) for value in prediction.data.values()]
    return torch.stack(bad).any(0)
