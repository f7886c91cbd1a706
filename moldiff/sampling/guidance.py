"""Classifier-free guidance: a conditional denoiser that follows its conditions more closely than it was trained to."""

from __future__ import annotations

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.control import Control


class Guided:
    """A denoiser whose prediction is null + ``scale`` (conditional - null), values and logits alike (Ho and Salimans 2022).

    Conditions are those that ``xt`` carries (``conditions`` [S, K], NaN where left out); the null call has none. Scale 1 is the
    conditional denoiser itself and 0 the unconditional one, at one call each; any other takes two calls of S systems, or with
    ``together`` one of 2 S. Of unnormalised logits this is the product p_null^(1 - scale) p_cond^scale.

    Each branch gets its own last prediction as self-conditioning, as in training, and never the extrapolated one, so ``Guided``
    remembers both between calls. ``previous`` only says whether there is a memory.
    """

    def __init__(self, denoiser: Denoiser, scale: float, together: bool = False) -> None:
        self.denoiser, self.scale, self.together = denoiser, scale, together
        self.last: tuple[AtomBatch, AtomBatch] | None = None

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        if "conditions" not in xt or self.scale == 1:
            return self.denoiser(xt, t, previous)
        null = xt.replace(conditions=torch.full_like(xt.conditions, torch.nan))
        if self.scale == 0:
            return self.denoiser(null, t, previous)
        before, before_null = (None, None) if previous is None or self.last is None else self.last
        if self.together:
            memory = None if before is None or before_null is None else _stack(before, before_null)
            both = self.denoiser(_stack(xt, null), torch.cat([t, t]), memory)
            n = xt.n_systems
            told, untold = both[:n], both[n:]
        else:
            told, untold = self.denoiser(xt, t, before), self.denoiser(null, t, before_null)
        self.last = told, untold
        return told.replace(**{k: untold.data[k] + self.scale * (told.data[k] - untold.data[k]) for k in told})

    def reorder(self, index: Tensor) -> None:
        """Row k from now on is what row ``index[k]`` was."""
        if self.last is not None:
            self.last = self.last[0][index], self.last[1][index]


def _stack(first: AtomBatch, second: AtomBatch) -> AtomBatch:
    return AtomBatch(torch.cat([first.mask, second.mask]), {k: torch.cat([v, second.data[k]]) for k, v in first.data.items()})


class Conditioned(Control):
    """The systems are told ``conditions`` (standardised, [S, K], NaN where left out), and guided by them with ``scale``."""

    def __init__(self, conditions: Tensor, scale: float = 1.0, together: bool = False) -> None:
        self.conditions, self.scale, self.together = conditions, scale, together

    def given(self, like: AtomBatch) -> AtomBatch:
        return like.replace(conditions=self.conditions.to(like.device, torch.float32))

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        return denoiser if self.scale == 1 else Guided(denoiser, self.scale, self.together)
