"""Predictor and corrector: a step to s, then a step of noising and denoising that mends what the first did wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.ddpm import DDPM
from moldiff.sampling.loop import Memory
from moldiff.sampling.noise import ScaledNoise, at_least


class PredictorCorrector(DDPM):
    """Each process's own step from t to s, and a corrector that stays at s (Song et al. 2021, algorithm 2; two calls a step).

    The corrector raises noise over signal by 1 + ``gamma`` with fresh noise and goes back to s along the ODE. As gamma gets
    small this is Langevin dynamics of step gamma sigma^2 (DiffCSP's corrector), but it keeps the distribution at s for any
    process that can be noised on, torus and classes included, and without a step size that must fit the field.
    """

    calls_per_step = 2

    def __init__(self, gamma: float = 0.2, eta: float = 1.0, noise_scale: float = 1.0) -> None:
        super().__init__(eta, noise_scale)
        self.gamma = at_least("gamma", gamma, 0)

    def step(
        self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams
    ) -> AtomBatch:
        predicted = super().step(model, diffusion, xt, t, s, rng)
        schedule = diffusion.schedule
        later = torch.maximum(schedule.time_of_ratio(schedule.ratio(s) * (1 + self.gamma)), s)
        raised = diffusion.renoise(predicted, s, later, ScaledNoise(rng, self.noise_scale))
        return diffusion.step(raised, model(raised, later), later, s, rng, eta=0.0)
