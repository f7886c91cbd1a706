"""Ancestral sampling (DDPM) and its deterministic end (DDIM): one process step a call."""

from __future__ import annotations

from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.loop import Memory, Sampler


class DDPM(Sampler):
    """Each process's own step with ``eta``: 1 is ancestral (Ho et al. 2020), 0 is DDIM (Song et al. 2021)."""

    def __init__(self, eta: float = 1.0) -> None:
        self.eta = eta

    def step(
        self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams
    ) -> AtomBatch:
        return diffusion.step(xt, model(xt, t), t, s, rng, self.eta)
