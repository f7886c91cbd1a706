"""Hard limits on the classes of a field: which class each atom may have, never passed at any time of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.control import Control

if TYPE_CHECKING:
    from moldiff.sampling.loop import Memory, Sampler

#: A logit whose probability is exactly 0 in single precision, yet finite: guidance may subtract two of them.
NEVER = -1e9


class Given(Control):
    """Fields that are told rather than made: ``fields`` maps names to tensors [S, ...] of an encoded batch."""

    def __init__(self, **fields: Tensor) -> None:
        self.fields = fields

    def given(self, like: AtomBatch) -> AtomBatch:
        return like.replace(**self.fields)


class Allowed(Control):
    """Let the atoms of a categorical field have only some classes: ``allowed`` bool [S, N, C], true where a class may come out.

    The logits of all others are taken out of every prediction, so the network's own memory does not see them either. With
    ``noise`` the random classes of a uniform prior are drawn from the allowed ones too (an absorbing one has none); without it
    noise stays as in training. Whatever happens, what comes out is allowed.
    """

    def __init__(self, name: str, allowed: Tensor, noise: bool = True) -> None:
        if not bool(allowed.any(-1).all()):
            raise ValueError("an atom that may have no class at all")
        self.name, self.allowed, self.noise = name, allowed, noise
        self.first = allowed.to(torch.int8).argmax(-1)
        self.count = allowed.sum(-1)
        # the allowed classes of each atom first, in their order
        self.order = (~allowed).to(torch.int8).argsort(dim=-1, stable=True)

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        return denoiser if self.name not in diffusion.categorical else _Masked(denoiser, self.name, self.allowed)

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        return self._redrawn(xt, rng)

    def step(
        self,
        model: Memory,
        sampler: Sampler,
        diffusion: Diffusion,
        before: AtomBatch,
        after: AtomBatch,
        t: Tensor,
        s: Tensor,
        rng: Streams,
    ) -> AtomBatch:
        return self._redrawn(after, rng)

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        # A prediction that is not finite has an argmax like any other.
        value = x0.data[self.name]
        return x0.replace(**{self.name: torch.where(self._holds(value), value, self.first)})

    def _redrawn(self, xt: AtomBatch, rng: Streams) -> AtomBatch:
        """Replace forbidden classes by draws from the allowed ones; a mask state stays."""
        if not self.noise:
            return xt
        value = xt.data[self.name]
        fair = self._holds(value) | (value >= self.allowed.shape[-1])
        rank = (rng.uniform(xt, self.name) * self.count).long().minimum(self.count - 1)
        drawn = self.order.gather(-1, rank[..., None]).squeeze(-1)
        return xt.replace(**{self.name: torch.where(fair | ~xt.mask, value, drawn)})

    def _holds(self, value: Tensor) -> Tensor:
        known = value.clamp_max(self.allowed.shape[-1] - 1)
        return self.allowed.gather(-1, known[..., None]).squeeze(-1) & (value == known)


class _Masked:
    """A denoiser whose forbidden logits are ``NEVER``."""

    def __init__(self, denoiser: Denoiser, name: str, allowed: Tensor) -> None:
        self.denoiser, self.name, self.allowed = denoiser, name, allowed

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        prediction = self.denoiser(xt, t, previous)
        logits = prediction.data[self.name]
        return prediction.replace(**{self.name: logits.masked_fill(~self.allowed, NEVER)})
