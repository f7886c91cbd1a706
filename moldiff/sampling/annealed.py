"""Velocity (or score) annealing: coordinates on a torus run ahead towards the data as time goes on."""

from __future__ import annotations

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.process import per_system
from moldiff.diffusion.torus import Torus
from moldiff.sampling.ddpm import DDPM
from moldiff.sampling.loop import Memory
from moldiff.sampling.noise import ScaledNoise, at_least


class Annealed(DDPM):
    """DDPM's or, by default, DDIM's step with the displacement of fractional coordinates multiplied by 1 + ``slope`` (1 - t).

    This is the velocity annealing of FlowMM and OMatG (Miller et al. 2024; Höllmer et al. 2025, who take slopes of about 10),
    bounded so that no step goes past the predicted clean value. It gives up the exact distribution for precision: samples
    settle early near a mode and are refined there. Other fields step as ever; without torus fields it is DDPM.
    """

    def __init__(self, slope: float = 5.0, eta: float = 0.0, noise_scale: float = 1.0) -> None:
        super().__init__(eta, noise_scale)
        self.slope = at_least("slope", slope, 0)

    def hurried(self, diffusion: Diffusion, prediction: AtomBatch, xt: AtomBatch, t: Tensor, s: Tensor) -> AtomBatch:
        """The prediction with longer displacements on the torus."""
        moved = {}
        for name, process in diffusion.processes.items():
            if isinstance(process, Torus):
                value = xt.data[name]
                share = 1 - process.schedule.sigma(s) / process.schedule.sigma(t)
                factor = torch.minimum(1 + self.slope * (1 - t), 1 / share.clamp_min(1e-6))
                moved[name] = value + per_system(factor, value) * (prediction.data[name] - value)
        return prediction.replace(**moved)

    def step(
        self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams
    ) -> AtomBatch:
        hurried = self.hurried(diffusion, model(xt, t), xt, t, s)
        return diffusion.step(xt, hurried, t, s, ScaledNoise(rng, self.noise_scale), self.eta)
