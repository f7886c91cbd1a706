"""Exact denoisers: data whose clean posterior is known in closed form.

The mathematics here is written from the definitions (``x_t = alpha x_0 + sigma scale eps``; a class survives with probability
keep(t)), not with the processes' code, so that it can judge them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.fields import field
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.process import Process


def _levels(process: Process | None, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and the standard deviation of the noise in the field's unit, [S]; without a process the field is given."""
    if process is None:
        return torch.ones_like(t), torch.zeros_like(t)
    return process.schedule.alpha(t), process.schedule.sigma(t) * float(getattr(process, "scale", 1.0))


class FieldModel(ABC):
    """The clean values of one field, independent once the mixture's component is known.

    Subclass it to give your own process an exact posterior; ``process`` is None where the field is given, not diffused.
    """

    name: str
    n_components: int

    @abstractmethod
    def draw(self, component: Tensor, n_max: int, generator: torch.Generator) -> Tensor:
        """Clean values of systems whose components are int64 [S], padded to ``n_max`` atoms."""

    @abstractmethod
    def noisy(self, process: Process, value: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """x_t of clean values by definition: what ``process.noise`` must be distributed as."""

    @abstractmethod
    def log_evidence(self, process: Process | None, xt: Tensor, t: Tensor) -> Tensor:
        """log q(x_t | component) up to a constant of the system: [S, K]."""

    @abstractmethod
    def posterior(self, process: Process, xt: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        """The exact clean prediction, given the posterior weight of each component [S, K]."""

    #: Noise over signal, from and to, between which the order of a deterministic sampler is measured.
    span: tuple[float, float] = (10.0, 0.1)

    @abstractmethod
    def certain(
        self, process: Process, value: Tensor, xt: Tensor, t: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """The prediction of a denoiser that knows the clean value.

        Where noise may have led from it to x_t by several ways (around a torus) one is drawn by its probability; without a
        ``generator`` the shortest is taken.
        """

    @abstractmethod
    def features(self, value: Tensor) -> Tensor:
        """Independent numbers of a clean or noisy value, for comparing distributions: [S, D]."""


class NormalField(FieldModel):
    """A continuous field that is normal around each component's mean: ``means`` [K, n, D] for atoms, [K, ...] for systems.

    ``stds`` [K]; ``zero_mean`` confines atoms' values to zero centre of mass.
    """

    def __init__(self, name: str, means: Tensor, stds: Tensor, zero_mean: bool) -> None:
        self.name, self.zero_mean, self.stds = name, zero_mean, stds
        self.means = means - means.mean(1, keepdim=True) if zero_mean else means
        self.n_components = len(means)
        self.dimension = self.means[0].numel() - (means.shape[-1] if zero_mean else 0)
        self.per_atom = field(name).scope == "atom"

    def _real(self, value: Tensor) -> Tensor:
        return value[:, : self.means.shape[1]] if self.per_atom else value

    def _pad(self, value: Tensor, n_max: int) -> Tensor:
        if not self.per_atom:
            return value
        return torch.nn.functional.pad(value, (0, 0, 0, n_max - value.shape[1]))

    def _unit(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        z = torch.randn(shape, generator=generator)
        return z - z.mean(1, keepdim=True) if self.zero_mean else z

    def _column(self, x: Tensor) -> Tensor:
        return x.reshape(-1, *[1] * (self.means.dim() - 1))

    def draw(self, component: Tensor, n_max: int, generator: torch.Generator) -> Tensor:
        center = self.means[component]
        return self._pad(center + self._column(self.stds[component]) * self._unit(center.shape, generator), n_max)

    def noisy(self, process: Process, value: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        alpha, spread = (self._column(x) for x in _levels(process, t))
        real = self._real(value)
        n_max = value.shape[1] if self.per_atom else 0
        return self._pad(alpha * real + spread * self._unit(real.shape, generator), n_max)

    def _components(self, process: Process | None, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, spread = _levels(process, t)
        variance = (alpha[:, None] * self.stds).square() + spread[:, None].square()  # [S, K]
        alpha = alpha.reshape(-1, *[1] * self.means.dim())
        return alpha, variance, self._real(xt)[:, None] - alpha * self.means

    def log_evidence(self, process: Process | None, xt: Tensor, t: Tensor) -> Tensor:
        _, variance, off = self._components(process, xt, t)
        return -0.5 * (off.flatten(2).square().sum(-1) / variance + self.dimension * variance.log())

    def posterior(self, process: Process, xt: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        alpha, variance, off = self._components(process, xt, t)
        shape = (*variance.shape, *[1] * (self.means.dim() - 1))
        gain = alpha * self.stds.square().reshape(1, *shape[1:]) / variance.reshape(shape)
        mean = (weight.reshape(shape) * (self.means + gain * off)).sum(1)
        return self._pad(mean, xt.shape[1] if self.per_atom else 0)

    def certain(
        self, process: Process, value: Tensor, xt: Tensor, t: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        return value

    def features(self, value: Tensor) -> Tensor:
        return self._real(value).flatten(1)


class ClassField(FieldModel):
    """A categorical field with class probabilities of each entry: [K, n, C] for atoms, [K, n (n - 1) / 2, C] for pairs.

    It knows processes on class indices (``prior_kind`` uniform or absorbing) and on one-hot vectors; a process with another
    transition overrides ``transition``.
    """

    def __init__(self, name: str, probabilities: Tensor, n_atoms: int) -> None:
        self.name, self.probabilities, self.n_atoms = name, probabilities, n_atoms
        self.n_components, self.n_entries, self.n_classes = probabilities.shape
        self.pairs = field(name).scope == "pair"
        self.upper = torch.triu_indices(n_atoms, n_atoms, 1)

    def entries(self, value: Tensor) -> Tensor:
        """The entries that are free: [S, E, ...] of atoms, or of pairs i < j."""
        return value[:, self.upper[0], self.upper[1]] if self.pairs else value[:, : self.n_atoms]

    def _spread(self, entries: Tensor, n_max: int) -> Tensor:
        s, tail = entries.shape[0], entries.shape[2:]
        if not self.pairs:
            out = entries.new_zeros(s, n_max, *tail)
            out[:, : self.n_atoms] = entries
            return out
        out = entries.new_zeros(s, n_max, n_max, *tail)
        out[:, self.upper[0], self.upper[1]] = entries
        out[:, self.upper[1], self.upper[0]] = entries
        return out

    def marginal(self, weights: Tensor) -> Tensor:
        """Class probabilities of each entry over the whole mixture: [E, C]."""
        return (weights[:, None, None] * self.probabilities).sum(0)

    def draw(self, component: Tensor, n_max: int, generator: torch.Generator) -> Tensor:
        p = self.probabilities[component].flatten(0, 1)
        index = torch.multinomial(p, 1, generator=generator).reshape(len(component), self.n_entries)
        return self._spread(index, n_max)

    def transition(self, process: Process | None, t: Tensor) -> Tensor:
        """q(x_t = column | x_0 = row): [S, C, states]."""
        eye = torch.eye(self.n_classes)
        if process is None:
            return eye.expand(len(t), -1, -1)
        keep = process.schedule.keep(t)[:, None, None]
        if getattr(process, "prior_kind", "uniform") == "absorbing":
            return torch.cat([keep * eye, (1 - keep).expand(-1, self.n_classes, 1)], -1)
        return keep * eye + (1 - keep) / self.n_classes

    def noisy(self, process: Process, value: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        index = self.entries(value)
        if process.continuous:
            alpha, spread = (x[:, None, None] for x in _levels(process, t))
            clean = torch.nn.functional.one_hot(index, self.n_classes).float()
            return self._spread(alpha * clean + spread * torch.randn(clean.shape, generator=generator), value.shape[1])
        rows = self.transition(process, t).gather(1, index[..., None].expand(-1, -1, self._n_states(process)))
        drawn = torch.multinomial(rows.flatten(0, 1), 1, generator=generator).reshape(index.shape)
        return self._spread(drawn, value.shape[1])

    def _n_states(self, process: Process | None) -> int:
        return self.n_classes if process is None else int(getattr(process, "n_states", self.n_classes))

    def _likelihood(self, process: Process | None, xt: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x_0 = c) of every entry up to a constant of the entry: [S, E, C]."""
        value = self.entries(xt)
        if value.is_floating_point():
            alpha, spread = _levels(process, t)
            logs = value * (alpha / spread.square())[:, None, None]
            return (logs - logs.amax(-1, keepdim=True)).exp()
        columns = self.transition(process, t).transpose(1, 2)
        return columns.gather(1, value[..., None].expand(-1, -1, self.n_classes))

    def _evidence(self, likelihood: Tensor) -> Tensor:
        return torch.einsum("sec,kec->ske", likelihood, self.probabilities).clamp_min(1e-30)

    def log_evidence(self, process: Process | None, xt: Tensor, t: Tensor) -> Tensor:
        return self._evidence(self._likelihood(process, xt, t)).log().sum(-1)

    def posterior(self, process: Process, xt: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        likelihood = self._likelihood(process, xt, t)
        share = weight[:, :, None] / self._evidence(likelihood)
        p = likelihood * torch.einsum("ske,kec->sec", share, self.probabilities)
        return self._spread(p if process.continuous else p.clamp_min(1e-30).log(), xt.shape[1])

    def certain(
        self, process: Process, value: Tensor, xt: Tensor, t: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        known = torch.nn.functional.one_hot(self.entries(value), self.n_classes).float()
        return self._spread(known if process.continuous else (known - 1) * 80.0, value.shape[1])

    def features(self, value: Tensor) -> Tensor:
        x = self.entries(value)
        if not x.is_floating_point():
            x = torch.nn.functional.one_hot(x, self.n_classes + 1).float()  # one more for a mask state
        return x.flatten(1)


class MixtureOracle:
    """A mixture over whole systems: a component is drawn by ``weights`` [K], then every field by its own model.

    Systems have ``n_atoms`` atoms and ``padding`` padded places. Fields that depend on the component are correlated.
    """

    def __init__(self, weights: Tensor, n_atoms: int, fields: Mapping[str, FieldModel], padding: int = 1) -> None:
        self.weights, self.n_atoms, self.fields, self.padding = weights, n_atoms, dict(fields), padding

    def like(self, n: int) -> AtomBatch:
        """n systems without fields."""
        mask = torch.zeros(n, self.n_atoms + self.padding, dtype=torch.bool)
        mask[:, : self.n_atoms] = True
        return AtomBatch(mask)

    def draw(self, n: int, seed: int) -> AtomBatch:
        """n clean encoded systems."""
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        n_max = self.n_atoms + self.padding
        return self.like(n).replace(**{k: f.draw(component, n_max, generator) for k, f in self.fields.items()})

    def denoiser(self, diffusion: Diffusion) -> Denoiser:
        """The exact denoiser of these data under a diffusion; fields without a process condition it."""

        def exact(xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
            evidence = self.weights.log() + sum(
                f.log_evidence(diffusion.processes.get(k), xt.data[k], t) for k, f in self.fields.items() if k in xt
            )
            weight = evidence.softmax(-1)
            return AtomBatch(
                xt.mask,
                {k: self.fields[k].posterior(p, xt.data[k], t, weight) for k, p in diffusion.processes.items()},
            )

        return exact

    def features(self, batch: AtomBatch) -> Tensor:
        """All fields' features side by side: [S, D]."""
        return torch.cat([f.features(batch.data[k]) for k, f in self.fields.items()], -1)
