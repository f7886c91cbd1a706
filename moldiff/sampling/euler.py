"""Euler's method on the probability-flow ODE, with optional churn."""

from __future__ import annotations

from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.loop import Memory, Sampler
from moldiff.sampling.noise import Churn


class Euler(Sampler):
    """One Euler step of d(x/alpha) / d(sigma/alpha) a call, after Karras et al. (2022)'s churn where ``s_churn`` > 0.

    In these coordinates a process's step at eta 0 is exactly Euler's, for any schedule; without churn it is DDIM. Classes
    make one draw of their own process a step.
    """

    def __init__(self, s_churn: float = 0.0, s_min: float = 0.03, s_max: float = 3.0, s_noise: float = 1.0) -> None:
        self.churn = Churn(s_churn, s_min, s_max, s_noise)
        self.n_steps = 1

    def start(self, n_steps: int) -> None:
        self.n_steps = n_steps

    def step(self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams) -> AtomBatch:
        xt, t = self.churn(diffusion, xt, t, self.n_steps, rng)
        return diffusion.step(xt, model(xt, t), t, s, rng, eta=0.0)
