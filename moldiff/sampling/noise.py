"""What stochastic samplers share: injected noise at a temperature, and churn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.joint import Diffusion
from moldiff.errors import BadRequest


class ScaledNoise(Streams):
    """The streams of ``rng`` with every normal draw multiplied by ``scale``; uniform draws (classes) are left alone."""

    def __init__(self, rng: Streams, scale: float) -> None:
        super().__init__(rng.each if rng.shared is None else rng.shared)
        self.scale = scale

    def subset(self, index: Sequence[int]) -> Streams:
        return ScaledNoise(super().subset(index), self.scale)

    def normal(self, batch: AtomBatch, name: str, tail: tuple[int, ...] | None = None) -> Tensor:
        return self.scale * super().normal(batch, name, tail)


def at_least(name: str, value: float, low: float) -> float:
    """``value`` if it is a finite number >= low, else ``BadRequest``."""
    if not (math.isfinite(value) and value >= low):
        raise BadRequest(f"sampler option {name!r} must be a finite number >= {low:g}, found {value!r}")
    return value


class Churn:
    """Raise the noise before a step and so forget a part of earlier errors (Karras et al. 2022, algorithm 2).

    Where noise over signal lies in [``s_min``, ``s_max``] it is multiplied by 1 + min(``s_churn`` / steps, sqrt(2) - 1); the
    noise added has ``s_noise`` times its exact standard deviation. All fields are noised on to the same later time.
    """

    def __init__(self, s_churn: float, s_min: float, s_max: float, s_noise: float) -> None:
        self.s_churn, self.s_noise = at_least("s_churn", s_churn, 0), at_least("s_noise", s_noise, 0)
        self.s_min = at_least("s_min", s_min, 0)
        if not s_max >= s_min:
            raise BadRequest(f"sampler option 's_max' must be >= s_min = {s_min:g}, found {s_max!r}")
        self.s_max = s_max

    def __call__(self, diffusion: Diffusion, xt: AtomBatch, t: Tensor, n_steps: int, rng: Streams) -> tuple[AtomBatch, Tensor]:
        """The batch at its raised time, and that time [S]."""
        if self.s_churn == 0:
            return xt, t
        schedule = diffusion.schedule
        ratio = schedule.ratio(t)
        gamma = min(self.s_churn / max(1, n_steps), math.sqrt(2) - 1)
        inside = (ratio >= self.s_min) & (ratio <= self.s_max)
        later = torch.where(inside, torch.maximum(schedule.time_of_ratio(ratio * (1 + gamma)), t), t)
        return diffusion.renoise(xt, t, later, ScaledNoise(rng, self.s_noise)), later
