"""Elements of the slots of a template: the atoms of a slot get one element together, those of different slots different ones."""

from __future__ import annotations

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.denoisers.base import Denoiser, reorder
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.allowed import NEVER
from moldiff.sampling.control import Control, Step
from moldiff.sampling.element_count import Bounds


class Slotted:
    """A denoiser that says of all atoms of a slot the same: the mean of its log-probabilities over them, without the classes that
    the slot can't have any more within ``bounds``, in which a slot counts as one atom.

    ``slots`` int64 [S, N] are the slots of the atoms; padding has slot 0.
    """

    def __init__(self, denoiser: Denoiser, slots: Tensor, bounds: Bounds, name: str) -> None:
        self.denoiser, self.slots, self.bounds, self.name = denoiser, slots, bounds, name
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        said = self.denoiser(xt, t, previous)
        logits = said.data[self.name].float().log_softmax(-1)
        index = self.slots[..., None].expand_as(logits)
        real = xt.mask[..., None].to(logits.dtype)
        sums = torch.zeros_like(logits).scatter_add(1, index, logits * real)
        count = torch.zeros_like(logits[..., :1]).scatter_add(1, self.slots[..., None], real)
        means = sums / count.clamp_min(1)
        state, mask = self.state(xt.data[self.name], xt.mask), count[..., 0] > 0
        out = ~self.bounds.admissible(state, mask)[:, None] & ((state < 0) & mask)[..., None]
        means = means.masked_fill(out, NEVER)
        self.last = xt.data[self.name], means
        return said.replace(**{self.name: means.gather(1, index)})

    def state(self, value: Tensor, mask: Tensor) -> Tensor:
        """The classes [S, N] that stand, slot by slot, -1 where a slot is undecided or there is none."""
        n_classes = self.bounds.allowed.shape[-1]
        stands = torch.where((value < n_classes) & mask, value, -1)
        return torch.full_like(value, -1).scatter_reduce(1, self.slots, stands, "amax")

    def slots_there(self, mask: Tensor) -> Tensor:
        """Which slots have atoms, bool [S, N]."""
        return torch.zeros_like(mask, dtype=torch.int64).scatter_add(1, self.slots, mask.long()) > 0

    def reorder(self, index: Tensor) -> None:
        """Row k from now on is what row ``index[k]`` was."""
        b = self.bounds
        self.slots = self.slots[index]
        self.bounds = Bounds(b.least[index], b.caps[index], b.allowed[index], b.required[index], b.kept)
        if self.last is not None:
            self.last = self.last[0][index], self.last[1][index]
        reorder(self.denoiser, index)


class SlotTypes(Control):
    """Holds the elements of an absorbing process (or another field of classes) to slots, all the way down (``Slotted``).

    A slot leaves the mask when its first atom does; several that do in one step are decided one after another, the most certain
    first. ``bounds`` are in terms of slots and have nothing ``kept``.
    """

    def __init__(self, slots: Tensor, bounds: Bounds, name: str = "atom_types") -> None:
        self.slots, self.bounds, self.name = slots, bounds, name
        self.inner: Slotted | None = None

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        self.inner = Slotted(denoiser, self.slots, self.bounds, self.name)
        return self.inner

    def step(self, now: Step, after: AtomBatch) -> AtomBatch:
        value, mask, inner = after.data[self.name], after.mask, self.inner
        u = now.rng.uniform(after, self.name)
        if inner is None or inner.last is None:
            return after
        there = inner.slots_there(mask)
        before = inner.state(now.before.data[self.name], mask)
        proposed = self._leads(inner, value, mask)
        moved = there & (before < 0) & (proposed < self.bounds.allowed.shape[-1])
        state = inner.bounds.decide(before, there, moved, proposed.clamp_max(self.bounds.allowed.shape[-1] - 1), inner.last[1], u)
        return after.replace(**{self.name: self._spread(inner, state, value, mask)})

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        """What is set stays as it is, the rest is decided by the last prediction."""
        inner, value = self.inner, x0.data[self.name]
        if inner is None or inner.last is None:
            return x0
        there, state = inner.slots_there(x0.mask), inner.state(inner.last[0], x0.mask)
        state = inner.bounds.decide(state, there, there & (state < 0), self._leads(inner, value, x0.mask), inner.last[1])
        return x0.replace(**{self.name: self._spread(inner, state, value, x0.mask)})

    @staticmethod
    def _leads(inner: Slotted, value: Tensor, mask: Tensor) -> Tensor:
        """The value of each slot's first atom, [S, N]; 0 where there is no slot."""
        n = value.shape[1]
        place = torch.where(mask, torch.arange(n, device=value.device), n)
        first = torch.full_like(value, n).scatter_reduce(1, inner.slots, place.expand_as(value), "amin")
        return torch.nn.functional.pad(value, (0, 1)).gather(1, first)

    def _spread(self, inner: Slotted, state: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """The classes of slots on their atoms: the mask where a slot is undecided, padding as it is."""
        n_classes = self.bounds.allowed.shape[-1]
        each = state.gather(1, inner.slots)
        return torch.where(mask, torch.where(each < 0, n_classes, each), value)
