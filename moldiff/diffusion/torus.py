"""Diffusion of fractional coordinates on the torus: the wrapped normal, and the straight (geodesic) interpolant.

On a torus "the clean value" has no mean: a clean coordinate and all its images are the same point, and the average of points
spread over the cell is none of them. What has a mean is the *displacement*, the way from x_t back to the clean image that it
came from. A prediction is therefore x_t + E[displacement | x_t], a point of the unrolled cell: ``prediction - x_t`` is the
displacement, literally (not modulo 1), and small where nothing is known. ``toward`` makes one of a clean coordinate, and
``finish`` wraps it to one.

With D = x_t + E[displacement] both processes step as flat ones do: x_s = D + sigma_s / sigma_t (x_t - D) is Euler's step of the
probability-flow ODE, in which sigma is the standard deviation of the normal, or the share of the geodesic.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.geometry import center
from moldiff.core.periodic import circular_mean, torus_log, wrap
from moldiff.core.rng import Streams
from moldiff.diffusion.coupling import nearest_order
from moldiff.diffusion.process import Process, per_system
from moldiff.diffusion.schedules import Schedule
from moldiff.errors import BadRequest, unknown

#: The field in which a clean batch may carry the ways of its coordinates to their noise.
WAY = "frac_way"


def wrapped_displacement(offset: Tensor, sigma: Tensor, n_images: int) -> Tensor:
    """E[clean image - x_t] for an ``offset`` x_t - x_0 and normal noise of deviation ``sigma`` (broadcast): the offset's shape.

    It is sigma^2 times the score of the wrapped normal, by the sum over 2 ``n_images`` + 1 images; exact to rounding while
    sigma is below n_images / 6.
    """
    near = offset - offset.round()
    shifts = torch.arange(-n_images, n_images + 1, device=offset.device, dtype=offset.dtype)
    ways = near[..., None] + shifts
    weights = (ways.square() / (-2 * sigma[..., None].square())).softmax(-1)
    return -(weights * ways).sum(-1)


class Torus(Process):
    """What both torus processes share: the prior, the ODE step, and predictions as displacements.

    ``zero_drift`` holds the mean displacement of the atoms at zero. A network that does not see the origin of the cell cannot
    know where all atoms lie together, and need not: data that may begin anywhere in the cell have a score of zero mean, and
    removing the mean from the flow only moves the origin. The regression target loses variance and no information.
    """

    def __init__(self, name: str, schedule: Schedule, zero_drift: bool = True, weight: float = 1.0) -> None:
        top = float(schedule.alpha(torch.ones(())))
        if abs(top - 1) > 1e-6:
            raise BadRequest(
                f"the process of {name!r} lives on a torus and needs a schedule without shrinking: variance_exploding or straight"
            )
        self.name, self.schedule, self.zero_drift, self.weight = name, schedule, zero_drift, weight

    def _sigma(self, t: Tensor, like: Tensor) -> Tensor:
        return per_system(self.schedule.sigma(t), like)

    def _real(self, value: Tensor, like: AtomBatch) -> Tensor:
        return torch.where(like.mask[..., None], value, torch.zeros_like(value))

    def _drift(self, displacement: Tensor, like: AtomBatch) -> Tensor:
        """Zero on padding and, where asked, zero mean over the atoms."""
        return center(displacement, like.mask) if self.zero_drift else self._real(displacement, like)

    def toward(self, xt: AtomBatch, clean: Tensor) -> Tensor:
        """The prediction that says: the clean coordinates are these [S, N, 3], and each atom came the short way."""
        value = xt.data[self.name]
        return value + torus_log(value, clean)

    @property
    def free_origin(self) -> bool:  # type: ignore[override]
        """Whether the atoms' mean displacement is held at zero."""
        return self.zero_drift

    def known(self, x0: AtomBatch, xt: AtomBatch) -> Tensor:
        """``toward`` the clean coordinates; with ``zero_drift`` first moved by the circular mean of their distance from x_t."""
        clean = x0.data[self.name]
        if self.zero_drift:
            clean = clean + circular_mean(xt.data[self.name] - clean, x0.mask)
        return self.toward(xt, clean)

    def prior(self, like: AtomBatch, rng: Streams) -> Tensor:
        return rng.uniform(like, self.name)

    def finish(self, prediction: Tensor, batch: AtomBatch) -> Tensor:
        return self._real(wrap(prediction), batch)

    def network_input(self, xt: AtomBatch, t: Tensor) -> Tensor:
        """Coordinates in [0, 1)."""
        return wrap(xt.data[self.name])

    def self_condition(self, prediction: Tensor) -> Tensor:
        """The point of the cell that a prediction stands for."""
        return wrap(prediction)

    def to_clean(self, raw: Tensor, xt: AtomBatch, t: Tensor) -> Tensor:
        """x_t minus the raw output times the noise's own spread: raw is noise of unit variance."""
        value = xt.data[self.name]
        return value - self._drift(raw, xt) * self._spread(t, value)

    def loss(self, prediction: Tensor, x0: AtomBatch, xt: AtomBatch, t: Tensor) -> Tensor:
        """Squared error of the displacement in units of its spread at t: about 1 for a network that says nothing."""
        value = xt.data[self.name]
        error = self._drift(prediction - value - self._displacement(x0, xt, t), xt) / self._spread(t, value)
        return error.square().flatten(1).sum(1) / (3 * x0.n_atoms).clamp_min(1)

    def _displacement(self, x0: AtomBatch, xt: AtomBatch, t: Tensor) -> Tensor:
        """What a prediction should say beyond x_t, [S, N, 3]."""
        return self._target(xt.data[self.name] - x0.data[self.name], t)

    def blend(self, first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
        """Predictions made at two states may lie in different images: the difference is taken the short way."""
        return first + per_system(weight, first) * torus_log(first, second)

    def _ode(self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor) -> Tensor:
        value = xt.data[self.name]
        share = 1 - self._sigma(s, value) / self._sigma(t, value)
        return value + share * self._drift(prediction - value, xt)

    @abstractmethod
    def _target(self, offset: Tensor, t: Tensor) -> Tensor:
        """E[displacement] given the offset x_t - x_0, both [S, N, 3]."""

    @abstractmethod
    def _spread(self, t: Tensor, like: Tensor) -> Tensor:
        """Root mean square of the target at t, shaped to broadcast against ``like``."""


class WrappedNormal(Torus):
    """x_t = x_0 + sigma eps on the torus (Jiao et al. 2023, DiffCSP), with the exact score by the sum over images.

    The prior is uniform, which needs sigma(1) >= 0.5 (the density then varies by 3 %). ``eta`` scales the noise of a step as it
    does for flat Gaussians; a step is exact when the image is known, and as steps get small when it is not.
    """

    def __init__(self, name: str, schedule: Schedule, zero_drift: bool = True, weight: float = 1.0) -> None:
        super().__init__(name, schedule, zero_drift, weight)
        low, high = (float(schedule.sigma(torch.tensor(t))) for t in (0.0, 1.0))
        if high < 0.3 or high > 3:
            raise BadRequest(f"the wrapped normal of {name!r} needs a largest sigma between 0.3 and 3 cells, found {high:g}")
        self.n_images = math.ceil(6 * high)
        # rms of the displacement on a grid of ln sigma: its integral over the cell has no closed form
        self._ends = math.log(max(low, 1e-6)), math.log(high)
        offset = torch.linspace(-0.5, 0.5, 2001, dtype=torch.float64)[:, None]
        sigma = torch.linspace(*self._ends, 256, dtype=torch.float64).exp()[None]
        way = wrapped_displacement(offset.expand(-1, 256), sigma.expand(2001, -1), self.n_images)
        shifts = torch.arange(-self.n_images, self.n_images + 1, dtype=torch.float64)
        density = ((offset[..., None] + shifts).square() / (-2 * sigma[..., None].square())).exp().sum(-1)
        rms = ((way.square() * density).sum(0) / density.sum(0)).sqrt()
        narrow = sigma[0] < 0.01  # narrower than the quadrature's cells, and not wrapped at all
        self._table = torch.where(narrow, sigma[0], rms).float()

    def noise(self, x0: AtomBatch, t: Tensor, rng: Streams) -> Tensor:
        value = x0.data[self.name]
        return self._real(wrap(value + self._sigma(t, value) * rng.normal(x0, self.name)), x0)

    def renoise(self, xt: AtomBatch, t: Tensor, u: Tensor, rng: Streams) -> Tensor:
        value = xt.data[self.name]
        added = (self._sigma(u, value).square() - self._sigma(t, value).square()).clamp_min(0).sqrt()
        return self._real(wrap(value + added * rng.normal(xt, self.name)), xt)

    def step(
        self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor, rng: Streams, eta: float = 1.0
    ) -> Tensor:
        if eta == 0:
            return self._real(wrap(self._ode(xt, prediction, t, s)), xt)
        value = xt.data[self.name]
        sigma_t, sigma_s = self._sigma(t, value), self._sigma(s, value)
        drift = self._drift(prediction - value, xt)
        fresh = torch.minimum(eta * sigma_s * (1 - (sigma_s / sigma_t).square()).clamp_min(0).sqrt(), sigma_s)
        stay = (sigma_s.square() - fresh.square()).clamp_min(0).sqrt()
        moved = value + (1 - stay / sigma_t) * drift + fresh * rng.normal(xt, self.name)
        return self._real(wrap(moved), xt)

    def _target(self, offset: Tensor, t: Tensor) -> Tensor:
        return wrapped_displacement(offset, self._sigma(t, offset).expand_as(offset), self.n_images)

    def _spread(self, t: Tensor, like: Tensor) -> Tensor:
        self._table = self._table.to(like.device)
        low, high = self._ends
        place = (self._sigma(t, like).log() - low) / (high - low) * (len(self._table) - 1)
        place = place.clamp(0, len(self._table) - 1)
        left = place.floor().long().clamp_max(len(self._table) - 2)
        share = (place - left).to(like.dtype)
        return self._table[left] * (1 - share) + self._table[left + 1] * share


class Geodesic(Torus):
    """x_t = x_0 + sigma(t) u on the torus with u uniform over the cell: the straight way from uniform noise to the data.

    This is flow matching along geodesics (Chen and Lipman 2024; for crystals Miller et al. 2024, FlowMM, and Höllmer et al.
    2025, OMatG, whose linear interpolant it is), with a velocity of zero mean over the atoms. sigma must rise to 1; with the
    schedule ``straight`` it is t itself. The displacement is -sigma E[u | x_t], and the loss the squared error of the velocity.

    ``coupling`` joins a datum with its noise: ``independent`` ones as drawn, or in the ``matched`` order and origin (atoms of a
    type are alike; see ``diffusion.coupling``). Either is an exact way from the prior to the data.

    A clean batch may carry the ways u of some of its systems in ``frac_way`` (NaN for those that are drawn here), which need not
    be the shortest: in symmetric noise an atom's way is that of its orbit's first, turned.

    It is an ODE and nothing else: uniform noise cannot be added to uniform noise, so that ``eta`` changes nothing and
    ``renoise`` (churn, resampling) raises ``BadRequest``. Other fields of the same system may still be stochastic.
    """

    reversible = False
    stochastic = False

    def __init__(
        self,
        name: str,
        schedule: Schedule,
        zero_drift: bool = True,
        weight: float = 1.0,
        coupling: Literal["independent", "matched"] = "independent",
    ) -> None:
        super().__init__(name, schedule, zero_drift, weight)
        if coupling not in ("independent", "matched"):
            raise unknown("coupling", coupling, ("independent", "matched"))
        self.coupling = coupling
        high = float(schedule.sigma(torch.ones(())))
        if abs(high - 1) > 1e-3:
            raise BadRequest(f"the geodesic of {name!r} needs a schedule whose sigma ends at 1 (straight), found {high:g}")

    def noise(self, x0: AtomBatch, t: Tensor, rng: Streams) -> Tensor:
        value = x0.data[self.name]
        way = rng.uniform(x0, self.name) - 0.5
        if self.coupling == "matched":
            way = torus_log(value, nearest_order(value, value + way, x0.mask, x0.data.get("atom_types")))
        if WAY in x0:
            way = torch.where(x0.data[WAY].isnan(), way, x0.data[WAY])
        return self._real(wrap(value + self._sigma(t, value) * way), x0)

    def renoise(self, xt: AtomBatch, t: Tensor, u: Tensor, rng: Streams) -> Tensor:
        raise BadRequest(
            f"the geodesic process of {self.name!r} cannot be noised on from x_t: "
            "take a sampler without churn (ddpm, ddim, dpm_solver, or s_churn 0) or the wrapped_normal process"
        )

    def step(
        self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor, rng: Streams, eta: float = 1.0
    ) -> Tensor:
        return self._real(wrap(self._ode(xt, prediction, t, s)), xt)

    def _displacement(self, x0: AtomBatch, xt: AtomBatch, t: Tensor) -> Tensor:
        short = super()._displacement(x0, xt, t)
        if WAY not in x0:
            return short
        way = x0.data[WAY]
        return torch.where(way.isnan(), short, -self._sigma(t, way) * way)

    def _target(self, offset: Tensor, t: Tensor) -> Tensor:
        return -(offset - offset.round())

    def _spread(self, t: Tensor, like: Tensor) -> Tensor:
        return self._sigma(t, like) / math.sqrt(12)
