"""Gaussian diffusion of a continuous field, with any schedule and parameterisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.fields import field
from moldiff.core.geometry import center
from moldiff.core.rng import Streams
from moldiff.diffusion.process import Process, per_system
from moldiff.diffusion.schedules import Schedule
from moldiff.errors import unknown

Parameterization = Literal["x0", "eps", "v", "karras"]


def x0_from_eps(eps: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Clean value from predicted unit noise: (x_t - sigma eps) / alpha."""
    return (xt - sigma * eps) / alpha


def eps_from_x0(x0: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Unit noise from the clean value: (x_t - alpha x0) / sigma."""
    return (xt - alpha * x0) / sigma


def x0_from_v(v: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Clean value from v = alpha eps - sigma x0 (Salimans and Ho 2022), for any alpha and sigma."""
    return (alpha * xt - sigma * v) / (alpha.square() + sigma.square())


def v_from_x0(x0: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha eps - sigma x0 from the clean value."""
    return alpha * eps_from_x0(x0, xt, alpha, sigma) - sigma * x0


def x0_from_score(score: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Clean value from the score of x_t (Tweedie)."""
    return (xt + sigma.square() * score) / alpha


def score_from_x0(x0: Tensor, xt: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Score of x_t from the (mean) clean value."""
    return (alpha * x0 - xt) / sigma.square()


def karras_factors(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip (on x_t) and c_out of Karras et al. 2022 for data of unit spread, for any alpha and sigma.

    With y = x_t / alpha and noise ratio r = sigma / alpha these are 1 / (alpha (1 + r^2)) and r / sqrt(1 + r^2).
    """
    r2 = (sigma / alpha).square()
    return 1 / (alpha * (1 + r2)), (r2 / (1 + r2)).sqrt()


class Gaussian(Process):
    """x_t = alpha x_0 + sigma scale eps.

    ``scale`` is the data's spread in the field's unit: noise is multiplied by it and the network sees the field divided by it.
    ``zero_mean`` keeps everything in the subspace of zero centre of mass (positions). The loss is the squared error of x_0 in
    units of ``scale``, weighted by 1 + signal-to-noise (which is 1/c_out^2), at most ``max_weight``; with ``eps`` by
    signal-to-noise alone, which makes it the plain squared error of eps (Ho et al. 2020).
    """

    def __init__(
        self,
        name: str,
        schedule: Schedule,
        parameterization: Parameterization = "karras",
        scale: float = 1.0,
        zero_mean: bool = False,
        weight: float = 1.0,
        max_weight: float = 1e6,
    ) -> None:
        if parameterization not in ("x0", "eps", "v", "karras"):
            raise unknown("parameterization", parameterization, ("x0", "eps", "v", "karras"))
        self.name, self.schedule, self.parameterization = name, schedule, parameterization
        self.scale, self.zero_mean, self.weight, self.max_weight = scale, zero_mean, weight, max_weight

    def _factors(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return per_system(self.schedule.alpha(t), like), per_system(self.schedule.sigma(t), like)

    def clean(self, x0: AtomBatch) -> Tensor:
        """The continuous clean value that noise is added to and that the loss compares with."""
        value = x0.data[self.name]
        return center(value, x0.mask) if self.zero_mean else value

    @property
    def free_origin(self) -> bool:  # type: ignore[override]
        """Whether the field lives at zero centre of mass."""
        return self.zero_mean

    def known(self, x0: AtomBatch, xt: AtomBatch) -> Tensor:
        return self.clean(x0)

    def _inside(self, value: Tensor, like: AtomBatch) -> Tensor:
        """Zero on padding and, where asked, zero mean: holds x_t in its subspace whatever the denoiser says."""
        if self.zero_mean:
            return center(value, like.mask)
        if field(self.name).scope == "system":
            return value
        m = like.scope_mask(self.name)
        return torch.where(m.reshape(*m.shape, *[1] * (value.dim() - m.dim())), value, torch.zeros_like(value))

    def inside(self, prediction: Tensor, like: AtomBatch) -> Tensor:
        """A prediction as the steps see it: zero on padding and, where asked, of zero mean."""
        return self._inside(prediction, like)

    def draw(self, like: AtomBatch, rng: Streams) -> Tensor:
        """Unit noise for the field, in the zero-mean subspace where asked."""
        eps = rng.normal(like, self.name)
        return center(eps, like.mask) if self.zero_mean else eps

    def prior(self, like: AtomBatch, rng: Streams) -> Tensor:
        eps = self.draw(like, rng)
        return eps * per_system(self.schedule.sigma(torch.ones(like.n_systems, device=like.device)), eps) * self.scale

    def noise(self, x0: AtomBatch, t: Tensor, rng: Streams) -> Tensor:
        value = self.clean(x0)
        alpha, sigma = self._factors(t, value)
        return alpha * value + sigma * self.scale * self.draw(x0, rng)

    def renoise(self, xt: AtomBatch, t: Tensor, u: Tensor, rng: Streams) -> Tensor:
        value = xt.data[self.name]
        alpha_t, sigma_t = self._factors(t, value)
        alpha_u, sigma_u = self._factors(u, value)
        shrink = alpha_u / alpha_t
        added = (sigma_u.square() - (shrink * sigma_t).square()).clamp_min(0).sqrt()
        return shrink * value + added * self.scale * self.draw(xt, rng)

    def network_input(self, xt: AtomBatch, t: Tensor) -> Tensor:
        """x_t brought to unit spread at every t."""
        value = xt.data[self.name]
        alpha, sigma = self._factors(t, value)
        return value / (self.scale * (alpha.square() + sigma.square()).sqrt())

    def to_clean(self, raw: Tensor, xt: AtomBatch, t: Tensor) -> Tensor:
        value = xt.data[self.name] / self.scale
        alpha, sigma = self._factors(t, value)
        if self.parameterization == "x0":
            clean = raw
        elif self.parameterization == "eps":
            clean = x0_from_eps(raw, value, alpha, sigma)
        elif self.parameterization == "v":
            clean = x0_from_v(raw, value, alpha, sigma)
        else:
            skip, out = karras_factors(alpha, sigma)
            clean = skip * value + out * raw
        return clean * self.scale

    def self_condition(self, prediction: Tensor) -> Tensor:
        return prediction / self.scale

    def loss(self, prediction: Tensor, x0: AtomBatch, xt: AtomBatch, t: Tensor) -> Tensor:
        error = ((prediction - self.clean(x0)) / self.scale).square()
        if field(self.name).scope != "system":
            m = x0.scope_mask(self.name)
            m = m.reshape(*m.shape, *[1] * (error.dim() - m.dim())).expand_as(error)
            mean = (error * m).flatten(1).sum(1) / m.flatten(1).sum(1).clamp_min(1)
        else:
            mean = error.flatten(1).mean(1)
        snr = 1 / self.schedule.ratio(t).square()
        weight = snr if self.parameterization == "eps" else 1 + snr
        return mean * weight.clamp_max(self.max_weight)

    def step(self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor, rng: Streams, eta: float = 1.0) -> Tensor:
        """DDIM's family (Song et al. 2021) on any schedule: eta 0 the ODE, 1 the ancestral posterior, above 1 more noise."""
        value = xt.data[self.name]
        prediction = self._inside(prediction, xt)
        alpha_t, sigma_t = self._factors(t, value)
        alpha_s, sigma_s = self._factors(s, value)
        eps = eps_from_x0(prediction, value, alpha_t, sigma_t)
        drop = (alpha_t / alpha_s * sigma_s / sigma_t).square()
        fresh = torch.minimum(eta * sigma_s * (1 - drop).clamp_min(0).sqrt(), sigma_s)
        stay = (sigma_s.square() - fresh.square()).clamp_min(0).sqrt()
        x = alpha_s * prediction + stay * eps
        if eta > 0:
            x = x + fresh * self.scale * self.draw(xt, rng)
        return x

    def finish(self, prediction: Tensor, batch: AtomBatch) -> Tensor:
        return self._inside(prediction, batch)
