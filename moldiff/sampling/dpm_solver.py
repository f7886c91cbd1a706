"""DPM-Solver++(2M): second order at one call a step, deterministic or with noise."""

from __future__ import annotations

from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.schedules import Schedule
from moldiff.sampling.loop import Memory, Sampler
from moldiff.sampling.noise import ScaledNoise, at_least


class DPMSolver(Sampler):
    """The multistep solver with data prediction (Lu et al. 2022, DPM-Solver++, algorithm 2).

    With h the step in log(alpha / sigma), each step is a process's own step with the clean prediction extrapolated from the
    last two, D_t + h / (2 h_before) (D_t - D_before). ``eta`` 0 is the ODE solver, 1 the SDE one of the same paper (section
    3.4), between them a mixture; ``noise_scale`` multiplies the noise injected. Classes step with the present logits.
    """

    order = 2

    def __init__(self, eta: float = 0.0, noise_scale: float = 1.0) -> None:
        self.eta, self.noise_scale = at_least("eta", eta, 0), at_least("noise_scale", noise_scale, 0)
        self.before: tuple[AtomBatch, Tensor] | None = None

    def forget(self) -> None:
        self.before = None

    def reorder(self, index: Tensor) -> None:
        if self.before is not None:
            self.before = self.before[0][index], self.before[1][index]

    def step(self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams) -> AtomBatch:
        here = prediction = model(xt, t)
        if self.before is not None:
            earlier, time = self.before

            def weight(schedule: Schedule) -> Tensor:
                h_before = (schedule.ratio(time) / schedule.ratio(t)).log()
                return -(schedule.ratio(t) / schedule.ratio(s)).log() / (2 * h_before.clamp_min(1e-6))

            prediction = diffusion.blend(here, earlier, weight)
        self.before = here, t
        return diffusion.step(xt, prediction, t, s, ScaledNoise(rng, self.noise_scale), self.eta)
