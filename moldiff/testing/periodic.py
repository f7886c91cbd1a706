"""Exact denoisers of periodic fields: points on the torus under either torus process, and cells in their logarithm.

As in ``testing.oracles`` the mathematics is written from the definitions, not with the processes' code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moldiff.core.geometry import random_rotations
from moldiff.core.periodic import lattice_from_log, log_lattice
from moldiff.diffusion.lattice import LogLattice
from moldiff.diffusion.process import Process
from moldiff.diffusion.torus import Geodesic, Torus
from moldiff.testing.oracles import FieldModel

_GRID = 32


class TorusField(FieldModel):
    """Fractional coordinates, wrapped normal around each component's ``means`` [K, n, 3] with deviations ``stds`` [K].

    ``free_origin`` moves every system as a whole to a place uniform over the cell: then only differences between atoms mean
    anything, the exact denoiser integrates over the origin (by the trapezoid rule, which is exact to rounding for functions as
    smooth as these), and the score has zero mean. ``uniform_noise`` says that noise is sigma u with u uniform over the cell
    (``Geodesic``) instead of sigma eps with eps normal (``WrappedNormal``).
    """

    span = (0.2, 0.02)

    def __init__(self, name: str, means: Tensor, stds: Tensor, free_origin: bool, uniform_noise: bool) -> None:
        self.name, self.means, self.stds = name, means, stds
        self.free_origin, self.uniform_noise = free_origin, uniform_noise
        self.n_components, self.n_atoms = means.shape[:2]
        self._last: tuple[Tensor, Tensor, tuple[Tensor, Tensor]] | None = None

    def _pad(self, value: Tensor, n_max: int) -> Tensor:
        return torch.nn.functional.pad(value, (0, 0, 0, n_max - value.shape[1]))

    def draw(self, component: Tensor, n_max: int, generator: torch.Generator) -> Tensor:
        center = self.means[component]
        value = center + self.stds[component][:, None, None] * torch.randn(center.shape, generator=generator)
        if self.free_origin:
            value = value + torch.rand(len(component), 1, 3, generator=generator)
        return self._pad(value % 1, n_max)

    def noisy(self, process: Process, value: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        real = value[:, : self.n_atoms]
        sigma = process.schedule.sigma(t)[:, None, None]
        draw = torch.rand if self.uniform_noise else torch.randn
        unit = draw(real.shape, generator=generator) - (0.5 if self.uniform_noise else 0.0)
        return self._pad((real + sigma * unit) % 1, value.shape[1])

    def _sums(self, process: Process | None, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over images: the density of x_t given component and origin, and density times displacement.

        Each [S, K, n, 3, G]; G is the grid of origins, or 1. Evidence and posterior are asked for at the same x_t in turn.
        """
        if self._last is not None and self._last[0] is xt and self._last[1] is t:
            return self._last[2]
        sigma = (torch.zeros_like(t) if process is None else process.schedule.sigma(t)).double().reshape(-1, 1, 1, 1, 1)
        std = self.stds.double().reshape(1, -1, 1, 1, 1)
        origins = torch.arange(_GRID) / _GRID if self.free_origin else torch.zeros(1)
        offset = (xt[:, None, : self.n_atoms].double() - self.means)[..., None] - origins
        offset = offset - offset.round()
        uniform = self.uniform_noise and process is not None
        reach = 1 if float(sigma.max()) < 0.12 or uniform else 3
        density, moment = torch.zeros_like(offset), torch.zeros_like(offset)
        for image in range(-reach, reach + 1):
            a = offset + image
            if uniform:
                # noise v = sigma u in [-sigma / 2, sigma / 2] with x_0 - mean = a - v normal: a truncated normal around a
                low, high = (-sigma / 2 - a) / std, (sigma / 2 - a) / std
                share = (torch.erf(high / math.sqrt(2)) - torch.erf(low / math.sqrt(2))) / 2
                edges = ((-low.square() / 2).exp() - (-high.square() / 2).exp()) / math.sqrt(2 * math.pi)
                density += share / sigma
                moment -= (a * share + std * edges) / sigma
            else:
                variance = std.square() + sigma.square()
                here = (-a.square() / (2 * variance)).exp() / variance.sqrt()
                density += here
                moment -= here * a * sigma.square() / variance
        result = density.clamp_min(1e-30), moment
        self._last = (xt, t, result)
        return result

    def log_evidence(self, process: Process | None, xt: Tensor, t: Tensor) -> Tensor:
        density, _ = self._sums(process, xt, t)
        return density.log().sum(2).logsumexp(-1).sum(-1).float()  # over atoms, then origins of each axis, then axes

    def posterior(self, process: Process, xt: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        density, moment = self._sums(process, xt, t)
        origin = density.log().sum(2, keepdim=True).softmax(-1)
        displacement = (origin * moment / density).sum(-1)
        mean = (weight[:, :, None, None] * displacement.float()).sum(1)
        if self.free_origin:  # zero already for normal noise; for uniform noise the origin's own motion is left out
            mean = mean - mean.mean(1, keepdim=True)
        return xt + self._pad(mean, xt.shape[1])

    def certain(
        self, process: Process, value: Tensor, xt: Tensor, t: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        way = value - xt
        way = way - way.round()
        if generator is None or self.uniform_noise:
            return xt + way
        images = torch.arange(-3.0, 4.0)
        sigma = process.schedule.sigma(t).reshape(-1, 1, 1, 1)
        p = ((way[..., None] + images).square() / (-2 * sigma.square())).softmax(-1)
        drawn = torch.multinomial(p.flatten(0, -2), 1, generator=generator).reshape(way.shape)
        real = torch.arange(xt.shape[1]) < self.n_atoms
        return xt + torch.where(real[:, None], way + images[drawn], 0.0)

    def features(self, value: Tensor) -> Tensor:
        x = value[:, : self.n_atoms]
        if self.free_origin:
            x = x[:, 1:] - x[:, :1]
        angle = 2 * math.pi * x.flatten(1)
        return torch.cat([angle.sin(), angle.cos()], -1)


class LogLatticeField(FieldModel):
    """Cells whose six numbers (``core.periodic.log_lattice``) are normal around each component's ``means`` [K, 6].

    ``stds`` [K] in units of the process's ``std``; cells are turned at random, which no feature sees. ``n_atoms`` enters through
    the mean volume of the noise.
    """

    def __init__(self, name: str, means: Tensor, stds: Tensor, process_mean: Tensor, process_std: Tensor, n_atoms: int) -> None:
        self.name, self.means, self.stds, self.unit = name, means, stds, process_std
        self.center = process_mean.clone()
        self.center[5] += math.log(n_atoms)
        self.n_components = len(means)

    def draw(self, component: Tensor, n_max: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(len(component), 6, generator=generator)
        six = self.means[component] + self.stds[component][:, None] * self.unit * z
        return lattice_from_log(six) @ random_rotations(len(component), generator)

    def _six(self, value: Tensor) -> Tensor:
        return log_lattice(value) if value.shape[-1] == 3 else value

    def noisy(self, process: Process, value: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        alpha, sigma = process.schedule.alpha(t)[:, None], process.schedule.sigma(t)[:, None]
        six = self._six(value)
        return self.center + alpha * (six - self.center) + sigma * self.unit * torch.randn(six.shape, generator=generator)

    def _components(self, process: Process, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = process.schedule.alpha(t)[:, None], process.schedule.sigma(t)[:, None]
        variance = (alpha * self.stds).square() + sigma.square()
        off = (xt[:, None] - self.center - alpha[..., None] * (self.means - self.center)) / self.unit
        return alpha, variance, off

    def log_evidence(self, process: Process | None, xt: Tensor, t: Tensor) -> Tensor:
        if process is None:
            off = (log_lattice(xt)[:, None] - self.means) / self.unit
            return -0.5 * (off.square().sum(-1) / self.stds.square() + 6 * self.stds.square().log())
        _, variance, off = self._components(process, xt, t)
        return -0.5 * (off.square().sum(-1) / variance + 6 * variance.log())

    def posterior(self, process: Process, xt: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        alpha, variance, off = self._components(process, xt, t)
        gain = alpha * self.stds.square() / variance
        return (weight[..., None] * (self.means + self.unit * gain[..., None] * off)).sum(1)

    def certain(
        self, process: Process, value: Tensor, xt: Tensor, t: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return self._six(value)

    def features(self, value: Tensor) -> Tensor:
        return (self._six(value) - self.center) / self.unit


def torus_model(process: Torus, n_atoms: int, n_components: int, seed: int) -> TorusField:
    """Well separated points for a torus process; free of origin where the process holds its drift at zero."""
    generator = torch.Generator().manual_seed(seed + 7)
    means = torch.rand(n_components, n_atoms, 3, generator=generator)
    stds = torch.linspace(0.05, 0.09, n_components)
    return TorusField(process.name, means, stds, process.zero_drift, isinstance(process, Geodesic))


def lattice_model(process: LogLattice, n_atoms: int, n_components: int, seed: int) -> LogLatticeField:
    """Well separated cells for a lattice process, around its own statistics."""
    generator = torch.Generator().manual_seed(seed + 8)
    mean, std = torch.tensor(process.mean), torch.tensor(process.std)
    center = mean.clone()
    center[5] += math.log(n_atoms)
    means = center + std * torch.randn(n_components, 6, generator=generator)
    return LogLatticeField(process.name, means, torch.linspace(0.25, 0.45, n_components), mean, std, n_atoms)
