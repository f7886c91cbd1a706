"""Starting late: from a structure that is given and noised in part, from between two of them, or each system at its own time."""

from __future__ import annotations

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.process import per_system
from moldiff.sampling.control import Control
from moldiff.sampling.loop import Memory

#: The time at which the last clean prediction is read.
LAST = 1e-3


class FromNoised(Control):
    """Begins at time ``t`` with ``truth`` (encoded) noised to it; what comes back lies in the frame of the truth."""

    def __init__(self, truth: AtomBatch, t: float) -> None:
        self.truth, self.t = truth, t

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        return diffusion.noise(self.truth, torch.full((xt.n_systems,), self.t, device=xt.device), rng)

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        return x0.replace(positions=x0.positions + mean(self.truth)) if "positions" in diffusion.processes else x0


class FromBetween(Control):
    """Begins between ``first`` and ``second`` at time ``t``: both noised with the same draws, mixed by ``weight`` [S].

    Continuous states are interpolated on the sphere (Shoemake 1985), so that their noise keeps its size; an entry of a class is
    the second's where a uniform number, the same in all rows, lies below the weight. ``seed`` gives the shared draws.
    """

    def __init__(self, first: AtomBatch, second: AtomBatch, weight: Tensor, t: float, seed: int) -> None:
        self.first, self.second, self.weight, self.t, self.seed = first, second, weight, t, seed

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        rows = [0] * xt.n_systems
        t = torch.full((xt.n_systems,), self.t, device=xt.device)
        a = diffusion.noise(self.first, t, Streams.of(self.seed, rows))
        b = diffusion.noise(self.second, t, Streams.of(self.seed, rows))
        coins = Streams.of(self.seed + 1, rows)
        mixed = {}
        for name, process in diffusion.processes.items():
            x, y = a.data[name], b.data[name]
            if process.continuous:
                mixed[name] = slerp(x, y, self.weight)
            else:
                mixed[name] = torch.where(coins.uniform(xt, name) < per_system(self.weight, x), y, x)
        return xt.replace(**mixed)


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """From ``a`` to ``b`` [S, ...] along the great circle between their directions, by ``weight`` [S]; lengths go linearly."""
    x, y = a.flatten(1), b.flatten(1)
    w = weight[:, None].to(x.dtype)
    length = (1 - w) * x.norm(dim=1, keepdim=True) + w * y.norm(dim=1, keepdim=True)
    x, y = torch.nn.functional.normalize(x), torch.nn.functional.normalize(y)
    angle = (x * y).sum(1, keepdim=True).clamp(-1, 1).arccos()
    way = torch.where(angle < 1e-4, (1 - w) * x + w * y, ((1 - w) * angle).sin() * x + (w * angle).sin() * y)
    mixed: Tensor = length * torch.nn.functional.normalize(way)
    return mixed.reshape(a.shape)


def mean(batch: AtomBatch) -> Tensor:
    """The mean position over real atoms, [S, 1, 3]."""
    m = batch.mask[..., None].to(batch.positions.dtype)
    return (batch.positions * m).sum(1, keepdim=True) / m.sum(1, keepdim=True).clamp_min(1)


@torch.no_grad()
def settle(
    denoiser: Denoiser, diffusion: Diffusion, xt: AtomBatch, t: Tensor, n_calls: int, rng: Streams, eta: float = 0.0
) -> AtomBatch:
    """The clean systems of ``xt``, which stand each at its own time ``t`` [S], by ``n_calls`` calls in equal steps of time."""
    model = Memory(denoiser)
    for k in range(n_calls - 1):
        now, then = (LAST + (t - LAST) * (1 - j / max(1, n_calls - 1)) for j in (k, k + 1))
        xt = diffusion.step(xt, model(xt, now), now, then, rng, eta)
    last = torch.full_like(t, LAST) if n_calls > 1 else t
    return diffusion.finish(model(xt, last), xt)
