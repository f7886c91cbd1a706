"""A hard number of different classes in a system, and of atoms of each: which these are is the model's, how many is not.

Atoms leave the mask of an absorbing process one by one. When as many classes have been set as there may be, the others are out
of reach of the atoms that are still masked; when no more atoms are masked than classes are missing, each has to bring a new one;
and a class that has as many atoms as it may is full.
Atoms that leave the mask in the same step are decided one after another, the most certain first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.categorical import draw_classes
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.allowed import NEVER
from moldiff.sampling.control import Control, Step


@dataclass(frozen=True)
class Bounds:
    """What S systems may hold of C classes: at least ``least`` (int64 [S]) different ones, the commonest on no more atoms than
    ``caps`` [S, N] has first, the next on no more than its second, and so on (0: no such class); none but the ``allowed`` and all
    of the ``required`` (bool [S, C]); ``kept`` (int64 [K]) are the classes of the first K atoms, which stay.
    """

    least: Tensor
    caps: Tensor
    allowed: Tensor
    required: Tensor
    kept: Tensor

    def state(self, value: Tensor, mask: Tensor) -> Tensor:
        """The classes [S, N] that stand, -1 where an atom is undecided or padding; the kept ones always stand."""
        n_classes = self.allowed.shape[-1]
        stands = torch.where((value < n_classes) & mask, value, -1)
        stands[:, : len(self.kept)] = self.kept
        return stands

    def admissible(self, state: Tensor, mask: Tensor) -> Tensor:
        """Which classes the next undecided atom may have, bool [S, C], so that the rest can still meet the bounds."""
        n_classes = self.allowed.shape[-1]
        classes = torch.arange(n_classes, device=state.device)
        counts = (state[..., None] == classes).sum(1)
        used = counts > 0
        undecided = ((state < 0) & mask).sum(-1)
        missing = self.required & ~used
        n_used, n_missing = used.sum(-1), missing.sum(-1)
        room = (self.caps > 0).sum(-1) - n_used
        needed = torch.maximum(self.least - n_used, n_missing)
        new = self.allowed & ~used
        new = torch.where((room <= n_missing)[:, None], missing, new)  # what room is left is for those that must occur
        only_new = undecided <= needed
        new = torch.where((only_new & (undecided <= n_missing))[:, None], missing, new)
        found = torch.where(only_new[:, None], new, new | (self.allowed & used))
        # with one atom more a class goes to the front of those that have as many as it has now
        rank = (counts[:, None, :] > counts[:, :, None]).sum(-1)
        return found & (counts < torch.nn.functional.pad(self.caps, (0, 1)).gather(-1, rank))

    def decide(
        self, state: Tensor, mask: Tensor, which: Tensor, proposed: Tensor, logits: Tensor, u: Tensor | None = None
    ) -> Tensor:
        """``state`` [S, N] with the atoms ``which`` (bool [S, N]) decided one after another, the most certain first.

        An atom gets the class ``proposed`` for it [S, N] where that is admissible, else one drawn by ``u`` (uniform [S, N]) from
        ``logits`` [S, N, C] among those that are, or the likeliest of them without ``u``: a draw of the constrained softmax
        either way, if the proposal is one of the softmax.
        """
        logits = torch.nan_to_num(logits.double(), nan=0.0).clamp(NEVER, -NEVER)
        certain = logits.log_softmax(-1).amax(-1)
        state, left, rows = state.clone(), which.clone(), torch.arange(len(state), device=state.device)
        for _ in range(int(which.sum(-1).max()) if which.numel() else 0):
            atom = certain.masked_fill(~left, -torch.inf).argmax(-1)
            acts = left[rows, atom]
            fair = self.admissible(state, mask)
            wish = proposed[rows, atom]
            kept = fair.gather(-1, wish[:, None]).squeeze(-1)
            own = logits[rows, atom].masked_fill(~fair, -torch.inf)
            own = own - own.amax(-1, keepdim=True)
            other = own.argmax(-1) if u is None else draw_classes(own.exp(), u[rows, atom].double())
            state[rows, atom] = torch.where(acts, torch.where(kept, wish, other), state[rows, atom])
            left[rows, atom] = False
        return state


class ElementCount(Control):
    """Hold the numbers of different classes of an absorbing field (default the elements) within ``bounds``, all the way down."""

    def __init__(self, bounds: Bounds, name: str = "atom_types") -> None:
        self.bounds, self.name = bounds, name
        self.denoiser: _Within | None = None

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        self.denoiser = _Within(denoiser, self.name, self.bounds)
        return self.denoiser

    def step(self, now: Step, after: AtomBatch) -> AtomBatch:
        before, value, mask = now.before.data[self.name], after.data[self.name], after.mask
        u = now.rng.uniform(after, self.name)  # drawn in every step, so that no system depends on what befalls another
        if now.model.previous is None:
            return after
        moved = mask & (value != before) & (value < self.bounds.allowed.shape[-1])
        moved[:, : len(self.bounds.kept)] = False
        logits = now.model.previous.data[self.name]
        state = self.bounds.state(value, mask).masked_fill(moved, -1)
        state = self.bounds.decide(state, mask, moved, value.clamp_max(logits.shape[-1] - 1), logits, u)
        return after.replace(**{self.name: torch.where(moved, state, value)})

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        """What is set stays as it is, the rest is decided by the last prediction."""
        value, last = x0.data[self.name], None if self.denoiser is None else self.denoiser.last
        if last is None:
            shape = (*value.shape, self.bounds.allowed.shape[-1])
            last = torch.full_like(value, shape[-1]), torch.zeros(shape, device=value.device)
        state = self.bounds.state(last[0], x0.mask)
        state = self.bounds.decide(state, x0.mask, x0.mask & (state < 0), value, last[1])
        state[:, : len(self.bounds.kept)] = value[:, : len(self.bounds.kept)]
        return x0.replace(**{self.name: torch.where(x0.mask, state, value)})


class _Within:
    """A denoiser that gives undecided atoms no class which could not be met any more; it remembers its last state and logits."""

    def __init__(self, denoiser: Denoiser, name: str, bounds: Bounds) -> None:
        self.denoiser, self.name, self.bounds = denoiser, name, bounds
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        prediction = self.denoiser(xt, t, previous)
        value, logits = xt.data[self.name], prediction.data[self.name]
        state = self.bounds.state(value, xt.mask)
        out = ~self.bounds.admissible(state, xt.mask)[:, None] & ((state < 0) & xt.mask)[..., None]
        logits = logits.masked_fill(out, NEVER)
        self.last = value, logits
        return prediction.replace(**{self.name: logits})

    def reorder(self, index: Tensor) -> None:
        """Row k from now on is what row ``index[k]`` was."""
        if self.last is not None:
            self.last = self.last[0][index], self.last[1][index]
