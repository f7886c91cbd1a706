"""Heun's second-order method with churn: the stochastic sampler of Karras et al. (2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.loop import Memory, Sampler
from moldiff.sampling.noise import Churn


class Heun(Sampler):
    """Churn, an Euler step, and the mean of the slopes at its two ends (Karras et al. 2022, algorithm 2): two calls a step.

    With r = sigma / alpha and the clean predictions D_t and D_s, the mean slope is that of one Euler step with the clean value
    D_t + r_t / (2 r_s) (D_s - D_t), so the process's own step does the arithmetic. Classes are drawn once, in the Euler step;
    the corrector sees them and leaves them. ``s_churn`` 0 is the deterministic Heun method.
    """

    calls_per_step = 2
    order = 2

    def __init__(self, s_churn: float = 40.0, s_min: float = 0.03, s_max: float = 3.0, s_noise: float = 1.0) -> None:
        self.churn = Churn(s_churn, s_min, s_max, s_noise)
        self.n_steps = 1

    def start(self, n_steps: int) -> None:
        self.n_steps = n_steps

    def weight(self, fall: Tensor) -> Tensor:
        """The share of the later clean prediction, for a step in which noise over signal falls by the factor ``fall``."""
        return fall / 2

    def step(self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams) -> AtomBatch:
        xt, t = self.churn(diffusion, xt, t, self.n_steps, rng)
        here = model(xt, t)
        guess = diffusion.step(xt, here, t, s, rng, eta=0.0)
        if not diffusion.continuous:
            return guess
        there = model(guess, s)
        mean = diffusion.blend(here, there, lambda schedule: self.weight(schedule.ratio(t) / schedule.ratio(s)))
        moved = diffusion.step(xt, mean, t, s, rng, eta=0.0, only=diffusion.continuous)
        return guess.replace(**{name: moved.data[name] for name in diffusion.continuous})


class ExponentialHeun(Heun):
    """The same two calls, but exact where the clean prediction is linear in log(sigma / alpha) along the step.

    This is the second-order exponential Runge-Kutta method (ETD2RK, Cox and Matthews 2002). With h = log(fall) the weight is
    1 / (1 - exp(-h)) - 1 / h, between 1/2 and 1, while Karras's fall / 2 has no bound: prefer this one for long steps.
    """

    def weight(self, fall: Tensor) -> Tensor:
        h = fall.log().clamp_min(1e-3)
        return -1 / torch.expm1(-h) - 1 / h
