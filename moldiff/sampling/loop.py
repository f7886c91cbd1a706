"""The sampling loop: from the prior to clean systems with any sampler and any denoiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser, reorder
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.control import Control, Controls, Step


class Memory:
    """A denoiser that remembers its last prediction and hands it back as self-conditioning; counts its calls."""

    def __init__(self, denoiser: Denoiser, self_conditioning: bool = True) -> None:
        self.denoiser, self.self_conditioning = denoiser, self_conditioning
        self.previous: AtomBatch | None = None
        self.calls = 0

    def __call__(self, xt: AtomBatch, t: Tensor) -> AtomBatch:
        """The clean prediction at t [S]."""
        self.calls += 1
        prediction = self.denoiser(xt, t, self.previous if self.self_conditioning else None)
        self.previous = prediction
        return prediction

    def reorder(self, index: Tensor) -> None:
        """Row k from now on is what row ``index[k]`` was."""
        if self.previous is not None:
            self.previous = self.previous[index]
        reorder(self.denoiser, index)


class Sampler(ABC):
    """One way from t to s. A sampler keeps what it needs between steps in itself; ``start`` clears it.

    ``order`` is the power of the step with which the error of its deterministic part falls.
    """

    calls_per_step: int = 1
    order: int = 1

    def start(self, n_steps: int) -> None:
        """Forget earlier runs; ``n_steps`` steps will follow."""
        self.forget()

    def forget(self) -> None:
        """Forget earlier steps, for the state is not what they led to; samplers that remember systems override this."""
        return

    def reorder(self, index: Tensor) -> None:
        """Row k from now on is what row ``index[k]`` was; samplers that remember systems override this."""
        return

    @abstractmethod
    def step(self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams) -> AtomBatch:
        """x_s from x_t; t and s are [S]."""


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    diffusion: Diffusion,
    like: AtomBatch,
    rng: Streams,
    sampler: Sampler,
    grid: Tensor,
    self_conditioning: bool = True,
    on_step: Callable[[int, int], None] | None = None,
    start: AtomBatch | None = None,
    control: Control | None = None,
) -> AtomBatch:
    """Draw one clean encoded system for each system of ``like``.

    ``like`` gives the mask and the given fields; ``grid`` is T decreasing times whose first is 1. The last is where the
    final clean prediction is read, so T entries make T - 1 steps and one closing call. Where a time is later than the one before,
    the state is noised on to it instead, without a call, and self-conditioning begins anew. ``start`` is a state at the grid's
    first time, which may then be earlier than 1; without it the prior is drawn. ``on_step(k, T - 1)`` is called after each step.
    ``control`` acts on the run at the places that ``sampling.control.Control`` names.
    """
    control = Controls() if control is None else control
    like = control.given(like)
    model = Memory(control.wrap(denoiser, diffusion), self_conditioning)
    sampler.start(len(grid.unique()) - 1)
    xt = control.start(diffusion.prior(like, rng) if start is None else start, diffusion, rng)
    times = grid.to(like.device)
    ones = torch.ones(like.n_systems, device=like.device)
    for k in range(len(times) - 1):
        t, s = times[k] * ones, times[k + 1] * ones
        if grid[k + 1] > grid[k]:
            xt = diffusion.renoise(xt, t, s, rng)
            model.previous = None
            sampler.forget()
        else:
            moved = sampler.step(model, diffusion, xt, t, s, rng)
            xt = control.step(Step(model, sampler, diffusion, xt, t, s, rng), moved)
        if on_step is not None:
            on_step(k + 1, len(times) - 1)
    last = model(xt, times[-1] * ones)
    return control.finish(control.read(last, diffusion.finish(last, xt), diffusion), diffusion)
