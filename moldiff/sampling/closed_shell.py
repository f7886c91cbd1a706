"""Closed shells: elements drawn together, so that a molecule has an even number of electrons on all its way.

A network draws every atom's element by itself. One hydrogen too many, or a nitrogen for a carbon, and no bonds and no neutral
charges whatever make a molecule without a radical of them. Here the elements of each step are drawn from the same independent
chances given that the sum of the atomic numbers is even, exactly, by a sum over the parities of the atoms that follow; the
process goes from x_t to x_s by that draw. Where few calls are made this is most of what goes wrong (docs/experiments.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.vocabulary import Vocabulary
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.allowed import NEVER, absorbs, as_set
from moldiff.sampling.control import Control, Step

NAME = "atom_types"


class ClosedShell(Control):
    """Keeps the number of electrons of molecules of a total ``charge`` even, in every step and at the end."""

    def __init__(self, vocabulary: Vocabulary, charge: int = 0) -> None:
        self.odd_sum = charge % 2 == 1
        self.odd = torch.tensor([z % 2 == 1 for z in vocabulary.values[NAME]])

    def step(self, now: Step, after: AtomBatch) -> AtomBatch:
        before = now.before
        n_classes = len(self.odd)
        u = now.rng.uniform(before, NAME, (n_classes + 1,)).double().clamp(1e-12, 1 - 1e-12)
        if now.model.previous is None or NAME not in now.diffusion.categorical:
            return after
        logits = now.model.previous.data[NAME]
        if absorbs(now.diffusion, NAME):
            logits = as_set(logits, before.data[NAME])
        clean = draw_even(logits, self.odd.to(u.device), before.mask, u, self.odd_sum)
        certain = torch.nn.functional.one_hot(clean, n_classes).to(torch.float32) * -NEVER
        return after.replace(**{NAME: now.diffusion.processes[NAME].step(before, certain, now.t, now.s, now.rng)})

    def read(self, prediction: AtomBatch, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        if NAME not in diffusion.categorical:
            return x0
        return x0.replace(**{NAME: likeliest_even(prediction.data[NAME], self.odd.to(x0.device), x0.mask, self.odd_sum)})


def draw_even(logits: Tensor, odd: Tensor, mask: Tensor, u: Tensor, odd_sum: bool = False) -> Tensor:
    """Classes int64 [S, N] drawn independently, given that an even number of atoms have a class of ``odd`` (bool [C]); with
    ``odd_sum`` an odd number.

    ``logits`` [S, N, C], ``mask`` [S, N], ``u`` [S, N, C + 1] uniform numbers. Where that has no chance the draw is free.
    """
    p = logits.double().softmax(-1)
    chance = (p * odd).sum(-1).masked_fill(~mask, 0.0)  # that an atom is odd
    n = chance.shape[1]
    rest = [torch.ones_like(chance[:, 0])]  # that those which follow are even together
    for i in range(n - 1, 0, -1):
        rest.append(chance[:, i] * (1 - rest[-1]) + (1 - chance[:, i]) * rest[-1])
    rest.reverse()
    want = torch.full_like(mask[:, 0], odd_sum)  # whether the atoms from here on must be odd together
    chosen = []
    for i in range(n):
        follow = torch.where(want, 1 - rest[i], rest[i])  # that the rest fits an even atom here
        yes, no = chance[:, i] * (1 - follow), (1 - chance[:, i]) * follow
        total = yes + no
        is_odd = u[:, i, -1] < torch.where(total > 0, yes / total.clamp_min(1e-300), chance[:, i])
        chosen.append(is_odd)
        want = want ^ (is_odd & mask[:, i])
    right = torch.stack(chosen, 1)[..., None] == odd
    keys = (logits.double() - (-u[..., :-1].log()).log()).masked_fill(~right, -torch.inf)
    return torch.where(mask, keys.argmax(-1), torch.zeros_like(keys.argmax(-1)))


def likeliest_even(logits: Tensor, odd: Tensor, mask: Tensor, odd_sum: bool = False) -> Tensor:
    """The likeliest classes int64 [S, N] of which an even number are of ``odd`` (with ``odd_sum`` an odd number): at most one
    atom is not at its own best.

    Forbidden classes (``NEVER``) are none to change to; where no atom can change, all stay at their best.
    """
    logits = torch.nan_to_num(logits.double(), nan=0.0)
    best = logits.argmax(-1)
    other = logits.masked_fill((odd == odd[best][..., None]) | (logits <= NEVER / 2), -torch.inf)
    loss = (logits.amax(-1) - other.amax(-1)).masked_fill(~mask, torch.inf)
    wrong = (odd[best] & mask).sum(-1) % 2 != int(odd_sum)
    atom = loss.argmin(-1)
    change = torch.nn.functional.one_hot(atom, mask.shape[1]).bool() & (wrong & loss.amin(-1).isfinite())[:, None]
    return torch.where(mask, torch.where(change, other.argmax(-1), best), torch.zeros_like(best))
