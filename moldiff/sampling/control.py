"""Control: what acts on a run of the sampling loop beside the sampler and the denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.joint import Diffusion

if TYPE_CHECKING:
    from moldiff.sampling.loop import Memory, Sampler


@dataclass(frozen=True)
class Step:
    """A step of the loop from t to s ([S] each): ``before`` is the state at t, ``model.previous`` the last clean prediction."""

    model: Memory
    sampler: Sampler
    diffusion: Diffusion
    before: AtomBatch
    t: Tensor
    s: Tensor
    rng: Streams


class Control:
    """Each method is a place at which to act on a batch of S encoded systems; none does anything unless overridden.

    One object serves one call of ``sampling.loop.sample``, so it may keep what it needs between steps in itself. Controls are
    applied in the order in which they are given, at every place.
    """

    def given(self, like: AtomBatch) -> AtomBatch:
        """The blank systems with the fields that are given in them (encoded)."""
        return like

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        """The denoiser that the loop calls."""
        return denoiser

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        """The state at the grid's first time; given a draw of the prior there."""
        return xt

    def step(self, now: Step, after: AtomBatch) -> AtomBatch:
        """The state at ``now.s``, given the one at ``now.t`` (``now.before``) and what the sampler made of it (``after``).

        A control that moves systems to other rows calls ``now.model.reorder`` and ``now.sampler.reorder`` with the same index.
        """
        return after

    def read(self, prediction: AtomBatch, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        """The clean encoded systems that the last prediction stands for, given what each entry of it says by itself (``x0``)."""
        return x0

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        """The clean encoded systems, given those that the loop made."""
        return x0

    def choose(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        """The clean encoded systems in their last order, after all has finished and positions have settled.

        A control that moves systems to other rows calls ``denoisers.base.reorder`` with the same index.
        """
        return x0

    def facts(self, row: int) -> Mapping[str, Any]:
        """What it found of the system that ``choose`` left in a row, such as the value that was asked for or a reward."""
        return {}


class Controls(Control):
    """Several controls as one, applied in their order."""

    def __init__(self, parts: Sequence[Control] = ()) -> None:
        self.parts = list(parts)

    def given(self, like: AtomBatch) -> AtomBatch:
        for part in self.parts:
            like = part.given(like)
        return like

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        for part in self.parts:
            denoiser = part.wrap(denoiser, diffusion)
        return denoiser

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        for part in self.parts:
            xt = part.start(xt, diffusion, rng)
        return xt

    def step(self, now: Step, after: AtomBatch) -> AtomBatch:
        for part in self.parts:
            after = part.step(now, after)
        return after

    def read(self, prediction: AtomBatch, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        for part in self.parts:
            x0 = part.read(prediction, x0, diffusion)
        return x0

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        for part in self.parts:
            x0 = part.finish(x0, diffusion)
        return x0

    def choose(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        for part in self.parts:
            x0 = part.choose(x0, diffusion)
        return x0

    def facts(self, row: int) -> Mapping[str, Any]:
        return {key: value for part in self.parts for key, value in part.facts(row).items()}
