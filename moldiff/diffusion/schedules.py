"""Noise schedules: signal alpha(t) and noise sigma(t) for t from 0 (data) to 1 (noise).

``x_t = alpha(t) x_0 + sigma(t) scale eps``. ``keep(t)`` is the probability that a class survives to t. All functions take
float tensors of any shape and return the same shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Schedule(ABC):
    """alpha(t) and sigma(t), both monotone, with alpha(0) = 1 and sigma(0) close to 0."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """The factor on the clean value."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """The standard deviation of the noise, in units of the data's scale."""

    def keep(self, t: Tensor) -> Tensor:
        """Probability that a categorical value is not replaced by time t."""
        return self.alpha(t).square()

    def ratio(self, t: Tensor) -> Tensor:
        """Noise over signal, sigma(t) / alpha(t)."""
        return self.sigma(t) / self.alpha(t)

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        """The t at which noise over signal is ``ratio``, by bisection (any monotone schedule)."""
        low, high = torch.zeros_like(ratio), torch.ones_like(ratio)
        for _ in range(60):
            mid = (low + high) / 2
            below = self.ratio(mid) < ratio
            low, high = torch.where(below, mid, low), torch.where(below, high, mid)
        return (low + high) / 2


class Cosine(Schedule):
    """Variance preserving, alpha = cos(pi t / 2) (Nichol and Dhariwal 2021, without their offset).

    ``clip`` keeps alpha above zero at t = 1 so that noise over signal stays finite.
    """

    def __init__(self, clip: float = 1e-3) -> None:
        self.clip = clip

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * t * (1 - self.clip))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t * (1 - self.clip)).clamp_min(1e-4)


class Polynomial(Schedule):
    """Variance preserving, alpha^2 = (1 - 2s)(1 - t^power)^2 + s (Hoogeboom et al. 2022, EDM; s is their precision)."""

    def __init__(self, power: float = 2.0, precision: float = 1e-5) -> None:
        self.power, self.precision = power, precision

    def alpha(self, t: Tensor) -> Tensor:
        # EDM's code squares its polynomial; the precision keeps both ends away from 0 and 1
        kept = (1 - t.clamp(0, 1) ** self.power).square()
        return ((1 - 2 * self.precision) * kept + self.precision).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        # 1 - alpha^2 written out: the difference of two numbers near 1 would lose its digits as t goes to 0
        u = t.clamp(0, 1) ** self.power
        return ((1 - 2 * self.precision) * u * (2 - u) + self.precision).sqrt()


class Linear(Schedule):
    """The straight line between data and noise of flow matching: alpha = 1 - t, sigma = t."""

    def __init__(self, clip: float = 1e-3) -> None:
        self.clip = clip

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t * (1 - self.clip)

    def sigma(self, t: Tensor) -> Tensor:
        return t.clamp_min(self.clip)

    def keep(self, t: Tensor) -> Tensor:
        return 1 - t


class Straight(Schedule):
    """alpha = 1 and sigma = t: the straight line on a torus, where nothing shrinks and noise at t = 1 fills the cell."""

    def __init__(self, clip: float = 1e-4) -> None:
        self.clip = clip

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t.clamp_min(self.clip)

    def keep(self, t: Tensor) -> Tensor:
        return 1 - t

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        return ratio.clamp(self.clip, 1)


class VarianceExploding(Schedule):
    """alpha = 1 and a sigma(t) whose logarithm is normal when t is uniform (Karras et al. 2022's training density).

    ln sigma ~ N(mean, std^2), cut to [sigma_min, sigma_max]. Equal steps in t are therefore dense where training was dense.
    """

    def __init__(self, sigma_min: float = 1e-3, sigma_max: float = 80.0, mean: float = -1.26, std: float = 1.41) -> None:
        self.sigma_min, self.sigma_max, self.mean, self.std = sigma_min, sigma_max, mean, std
        self._low, self._high = self._cdf(sigma_min), self._cdf(sigma_max)

    def _cdf(self, sigma: float) -> float:
        return 0.5 * (1 + math.erf((math.log(sigma) - self.mean) / self.std / math.sqrt(2)))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        quantile = self._low + t.double() * (self._high - self._low)
        log_sigma = self.mean + self.std * math.sqrt(2) * torch.erfinv(2 * quantile - 1)
        return log_sigma.exp().clamp(self.sigma_min, self.sigma_max).to(t.dtype)

    def keep(self, t: Tensor) -> Tensor:
        return 1 / (1 + self.sigma(t))

    def time_of_ratio(self, ratio: Tensor) -> Tensor:
        z = (ratio.double().clamp(self.sigma_min, self.sigma_max).log() - self.mean) / self.std
        quantile = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        return ((quantile - self._low) / (self._high - self._low)).clamp(0, 1).to(ratio.dtype)


SCHEDULES: dict[str, type[Schedule]] = {
    "cosine": Cosine,
    "polynomial": Polynomial,
    "linear": Linear,
    "straight": Straight,
    "variance_exploding": VarianceExploding,
}
