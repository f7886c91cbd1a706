"""Ancestral sampling (DDPM) and its deterministic end (DDIM): one process step a call."""

from __future__ import annotations

from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.loop import Memory, Sampler
from moldiff.sampling.noise import ScaledNoise, at_least


class DDPM(Sampler):
    """Each process's own step with ``eta``: 1 is ancestral (Ho et al. 2020), 0 is DDIM (Song et al. 2021).

    ``noise_scale`` multiplies the Gaussian noise that a step injects: below 1 samples crowd at the modes.
    """

    def __init__(self, eta: float = 1.0, noise_scale: float = 1.0) -> None:
        self.eta, self.noise_scale = at_least("eta", eta, 0), at_least("noise_scale", noise_scale, 0)

    def step(self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams) -> AtomBatch:
        return diffusion.step(xt, model(xt, t), t, s, ScaledNoise(rng, self.noise_scale), self.eta)


class DDIM(DDPM):
    """The same with eta 0 unless told: continuous fields follow the probability-flow ODE (Song et al. 2021)."""

    def __init__(self, eta: float = 0.0, noise_scale: float = 1.0) -> None:
        super().__init__(eta, noise_scale)
