"""Hard bounds on how many atoms of a system have each class of a field: a formula, elements left out, elements that must occur.

A network judges each atom by itself. Two steps turn its logits into classes whose counts are right: a shift of each class, the
same for all atoms, until the expected counts lie within the bounds (which class an atom becomes is then still decided by where it
is); and an assignment that changes the least likely choices until the counts do lie within them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.control import Control, Step

#: A logit whose probability is exactly 0 in single precision, yet finite: guidance may subtract two of them.
NEVER = -1e9
#: Rounds in which the shifts of the classes are found; each brings every expected count to its bound, given the others.
_ROUNDS = 25
_FAR = 1e6


class Given(Control):
    """Fields that are told rather than made: ``fields`` maps names to tensors [S, ...] of an encoded batch."""

    def __init__(self, **fields: Tensor) -> None:
        self.fields = fields

    def given(self, like: AtomBatch) -> AtomBatch:
        return like.replace(**self.fields)


class Counted(Control):
    """Keep the counts of a categorical field within ``low`` <= n <= ``high``, each int64 [S, C], at every time of the run.

    In every step clean classes are drawn that obey the bounds (those of atoms which an absorbing process has already set stay),
    and the process goes from x_t to x_s by them. What comes out obeys the bounds whatever the network says.
    """

    def __init__(self, name: str, low: Tensor, high: Tensor) -> None:
        if bool((low > high).any()):
            raise ValueError("a class of which at least more are asked for than are allowed")
        self.name, self.low, self.high = name, low, high
        self.denoiser: _Shifted | None = None

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        self.denoiser = _Shifted(denoiser, self.name, self.low, self.high)
        return self.denoiser

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        """Take the forbidden classes out of the prior; exact counts of an absorbing process are set at once.

        Atoms are all alike at first, so any may have any of the classes that are to come out, and an absorbing process keeps
        what is set. That gave more valid crystals than setting them on the way (docs/crystals.md).
        """
        value, n_classes = xt.data[self.name], self.high.shape[-1]
        if absorbs(diffusion, self.name) and bool((self.low == self.high).all()):
            equal = torch.zeros(*value.shape, n_classes, device=value.device)
            return xt.replace(**{self.name: assign(equal, self.low, self.high, xt.mask)})
        allowed = (self.high > 0)[:, None].expand(-1, xt.n_max, -1)
        order = (~allowed).to(torch.int8).argsort(dim=-1, stable=True)  # the allowed classes first
        count = allowed.sum(-1)
        rank = (rng.uniform(xt, self.name) * count).long().minimum(count - 1)
        drawn = order.gather(-1, rank[..., None]).squeeze(-1)
        fair = (value >= n_classes) | allowed.gather(-1, value.clamp_max(n_classes - 1)[..., None]).squeeze(-1)
        return xt.replace(**{self.name: torch.where(fair | ~xt.mask, value, drawn)})

    def step(self, now: Step, after: AtomBatch) -> AtomBatch:
        before, previous = now.before, now.model.previous
        if previous is None:
            return after
        logits, n_classes = previous.data[self.name], self.high.shape[-1]
        u = now.rng.uniform(before, self.name, (n_classes,)).double().clamp(1e-12, 1 - 1e-12)
        logits = logits.double() - (-u.log()).log()  # the greatest of these is a draw of the softmax
        process = now.diffusion.processes[self.name]
        if absorbs(now.diffusion, self.name):
            logits = as_set(logits, before.data[self.name])
        clean = assign(logits, self.low, self.high, before.mask)
        certain = torch.nn.functional.one_hot(clean, n_classes).to(torch.float32) * -NEVER
        return after.replace(**{self.name: process.step(before, certain, now.t, now.s, now.rng)})

    def read(self, prediction: AtomBatch, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        """The classes within their bounds before others read on; ``finish`` then finds nothing to change."""
        return self.finish(x0, diffusion)

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        value = x0.data[self.name]
        if self.denoiser is None or self.denoiser.last is None:
            logits = torch.zeros(*value.shape, self.high.shape[-1], device=value.device)
        else:
            logits = self.denoiser.last
        return x0.replace(**{self.name: assign(logits, self.low, self.high, x0.mask, value)})


class _Shifted:
    """A denoiser whose logits are shifted, class by class, so that the expected counts lie within their bounds."""

    def __init__(self, denoiser: Denoiser, name: str, low: Tensor, high: Tensor) -> None:
        self.denoiser, self.name, self.low, self.high = denoiser, name, low, high
        self.last: Tensor | None = None

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        prediction = self.denoiser(xt, t, previous)
        self.last = shifted(prediction.data[self.name], self.low, self.high, xt.mask)
        return prediction.replace(**{self.name: self.last})


def shifted(logits: Tensor, low: Tensor, high: Tensor, mask: Tensor) -> Tensor:
    """Logits [S, N, C] plus a number for each system and class, so that the expected counts obey the bounds [S, C].

    Forbidden classes (``high`` 0) get ``NEVER``. Among independent predictions these are the least changed ones, in the sense of
    relative entropy, that have such counts (the dual of the maximum entropy problem, solved by iterative scaling: Darroch and
    Ratcliff, Ann. Math. Stat. 43, 1470 (1972)).
    """
    forbidden = (high == 0)[:, None]
    x = logits.double().masked_fill(forbidden, NEVER)
    least, most = (bound.double().clamp_min(1e-9).log() for bound in (low, high))
    shift = torch.zeros_like(least)
    for _ in range(_ROUNDS):
        expected = ((x + shift[:, None]).softmax(-1) * mask[..., None]).sum(1).clamp_min(1e-9).log()
        # no shift, or the one that brings the count to the bound that it would miss without
        shift = (shift + least - expected).clamp_min(0).minimum(shift + most - expected).clamp(-60, 60)
    return (x + shift[:, None]).clamp_min(NEVER).masked_fill(forbidden, NEVER).to(logits.dtype)


def assign(logits: Tensor, low: Tensor, high: Tensor, mask: Tensor, value: Tensor | None = None) -> Tensor:
    """Classes int64 [S, N] whose counts obey the bounds [S, C], from ``value`` or else from the greatest logits [S, N, C].

    Atoms change one at a time, the one that loses least: out of classes that have too many, then into those that have too few.
    """
    n_classes = logits.shape[-1]
    classes = torch.arange(n_classes, device=logits.device)
    logits = torch.nan_to_num(logits.double(), nan=0.0).clamp(-2 * _FAR, 2 * _FAR)
    if value is None:
        value = logits.masked_fill((high == 0)[:, None], -torch.inf).argmax(-1)
    for _ in range(2 * logits.shape[1]):
        one_hot = (value[..., None] == classes) & mask[..., None]
        counts = one_hot.sum(1)
        over, under = counts > high, counts < low
        if not bool((over | under).any()):
            break
        crowded = over.any(-1)[:, None]
        # from a class with too many to one that lacks some, or has room; else from one that can spare an atom
        leaves = torch.where(crowded, over, counts > low)
        lacking = under.any(-1)[:, None]
        enters = torch.where(lacking, under, (counts < high) & crowded)
        here = logits.gather(-1, value[..., None])
        loss = (here - logits).masked_fill(~enters[:, None], torch.inf)
        loss = loss.masked_fill(~(leaves.gather(-1, value) & mask)[..., None], torch.inf)
        best = loss.flatten(1).argmin(-1)
        atom, into = best // n_classes, best % n_classes
        moved = torch.isfinite(loss.flatten(1).gather(-1, best[:, None])).squeeze(-1)
        rows = moved.nonzero().squeeze(-1)
        value = value.index_put((rows, atom[rows]), into[rows])
    return torch.where(mask, value, torch.zeros_like(value))


def absorbs(diffusion: Diffusion, name: str) -> bool:
    """Whether a field's classes leave a mask, once and for all."""
    return getattr(diffusion.processes[name], "prior_kind", "") == "absorbing"


def as_set(logits: Tensor, value: Tensor) -> Tensor:
    """Logits in which the atoms that an absorbing process has set are certain."""
    n_classes = logits.shape[-1]
    is_set = value < n_classes
    known = torch.nn.functional.one_hot(value.clamp_max(n_classes - 1), n_classes).to(logits.dtype) * _FAR
    return torch.where(is_set[..., None], known, logits.clamp(-_FAR / 4, _FAR / 4))
