"""Diffusion of several fields at once: the four verbs on a whole AtomBatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.process import Process
from moldiff.diffusion.schedules import Schedule


class Diffusion:
    """{field: process}. Fields of a batch that have no process are *given*: they pass through every verb unchanged."""

    def __init__(self, processes: Mapping[str, Process]) -> None:
        self.processes = dict(processes)

    @property
    def continuous(self) -> tuple[str, ...]:
        """The diffused fields whose predictions are values."""
        return tuple(name for name, p in self.processes.items() if p.continuous)

    @property
    def categorical(self) -> tuple[str, ...]:
        """The diffused fields whose predictions are logits."""
        return tuple(name for name, p in self.processes.items() if not p.continuous)

    @property
    def schedule(self) -> Schedule:
        """The schedule by which grids and churn measure noise: that of the first continuous field, else of the first field."""
        name = (*self.continuous, *self.processes)[0]
        return self.processes[name].schedule

    def prior(self, like: AtomBatch, rng: Streams) -> AtomBatch:
        """A draw at t = 1 for the systems of ``like`` (its mask and its given fields are kept)."""
        return like.replace(**{name: p.prior(like, rng) for name, p in self.processes.items()})

    def noise(self, x0: AtomBatch, t: Tensor, rng: Streams) -> AtomBatch:
        """x_t of a clean encoded batch; t [S]."""
        return x0.replace(**{name: p.noise(x0, t, rng) for name, p in self.processes.items()})

    def loss(self, prediction: AtomBatch, x0: AtomBatch, xt: AtomBatch, t: Tensor) -> dict[str, Tensor]:
        """Unweighted loss of each diffused field, [S] each."""
        return {name: p.loss(prediction.data[name], x0, xt, t) for name, p in self.processes.items()}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum over fields, [S]."""
        return torch.stack([self.processes[name].weight * value for name, value in losses.items()]).sum(0)

    def step(
        self,
        xt: AtomBatch,
        prediction: AtomBatch,
        t: Tensor,
        s: Tensor,
        rng: Streams,
        eta: float = 1.0,
        only: Sequence[str] | None = None,
    ) -> AtomBatch:
        """x_s given x_t and the clean prediction; ``only`` names the fields to move (default all)."""
        moved = {
            name: p.step(xt, prediction.data[name], t, s, rng, eta)
            for name, p in self.processes.items()
            if only is None or name in only
        }
        return xt.replace(**moved)

    def renoise(self, xt: AtomBatch, t: Tensor, u: Tensor, rng: Streams) -> AtomBatch:
        """x_u of a batch that stands at t <= u."""
        return xt.replace(**{name: p.renoise(xt, t, u, rng) for name, p in self.processes.items()})

    def blend(self, first: AtomBatch, second: AtomBatch, weight: Callable[[Schedule], Tensor]) -> AtomBatch:
        """first + weight (second - first) of two clean predictions; ``weight`` gives [S] for a field's schedule.

        Only values are blended: logits stay those of ``first``.
        """
        return first.replace(
            **{name: p.blend(first.data[name], second.data[name], weight(p.schedule)) for name, p in self.processes.items()}
        )

    def finish(self, prediction: AtomBatch, xt: AtomBatch) -> AtomBatch:
        """The clean batch that a prediction stands for; given fields come from ``xt``."""
        return xt.replace(**{name: p.finish(prediction.data[name], xt) for name, p in self.processes.items()})

    def network_input(self, xt: AtomBatch, t: Tensor) -> AtomBatch:
        """x_t as the network sees it (continuous fields at unit spread)."""
        return xt.replace(**{name: p.network_input(xt, t) for name, p in self.processes.items()})

    def to_clean(self, raw: AtomBatch, xt: AtomBatch, t: Tensor) -> AtomBatch:
        """The clean prediction from the network's raw output."""
        return AtomBatch(xt.mask, {name: p.to_clean(raw.data[name], xt, t) for name, p in self.processes.items()})

    def self_condition(self, prediction: AtomBatch) -> AtomBatch:
        """A previous prediction as the network sees it (unit spread, probabilities)."""
        return prediction.replace(**{name: p.self_condition(prediction.data[name]) for name, p in self.processes.items()})
