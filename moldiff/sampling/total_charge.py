"""A total charge: the formal charges of each step drawn together, so that they add up to it.

A network says of every atom how likely its charges are, each by itself. The classes of a step are drawn from these chances given
their sum, exactly, by a sum over the sums of the atoms that follow; the last prediction is read as the likeliest charges of that
sum, by the same recursion with the greatest in the place of the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.vocabulary import Vocabulary
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.allowed import NEVER
from moldiff.sampling.control import Control, Step

NAME = "charges"


class TotalCharge(Control):
    """Keeps the sum of the formal charges (in e) of every system at ``total``, in every step and at the end."""

    def __init__(self, vocabulary: Vocabulary, total: int) -> None:
        self.values, self.total = tuple(vocabulary.values[NAME]), total

    def step(self, now: Step, after: AtomBatch) -> AtomBatch:
        u = now.rng.uniform(now.before, NAME, (len(self.values),)).double().clamp(1e-12, 1 - 1e-12)
        if now.model.previous is None:
            return after
        clean = draw_with_sum(now.model.previous.data[NAME], self.values, self.total, now.before.mask, u)
        certain = torch.nn.functional.one_hot(clean, len(self.values)).to(torch.float32) * -NEVER
        return after.replace(**{NAME: now.diffusion.processes[NAME].step(now.before, certain, now.t, now.s, now.rng)})

    def read(self, prediction: AtomBatch, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        return x0.replace(**{NAME: likeliest_with_sum(prediction.data[NAME], self.values, self.total, x0.mask)})


def draw_with_sum(logits: Tensor, values: Sequence[int], total: int, mask: Tensor, u: Tensor) -> Tensor:
    """Classes int64 [S, N] drawn independently, given that their ``values`` [C] add up to ``total``.

    ``logits`` and the uniform numbers ``u`` are [S, N, C], ``mask`` [S, N]. Where the sum has no chance the draw is free.
    """
    noise = -(-u.log()).log()
    return _chosen(logits, values, total, mask, partial(torch.logsumexp, dim=0), noise)


def likeliest_with_sum(logits: Tensor, values: Sequence[int], total: int, mask: Tensor) -> Tensor:
    """The likeliest classes int64 [S, N] whose ``values`` [C] add up to ``total``; each at its own best where none do."""
    return _chosen(logits, values, total, mask, lambda parts: parts.amax(0), None)


def _chosen(
    logits: Tensor, values: Sequence[int], total: int, mask: Tensor, joined: Callable[[Tensor], Tensor], noise: Tensor | None
) -> Tensor:
    """Classes chosen atom by atom by their own score and that of what can follow them."""
    scores = torch.nan_to_num(logits.double(), nan=0.0).log_softmax(-1)
    s, n, _ = scores.shape
    reach = n * max(abs(v) for v in values) + abs(total)
    still = torch.full((s, 2 * reach + 1), -torch.inf, dtype=scores.dtype, device=scores.device)
    still[:, reach] = 0.0  # nothing follows, and nothing is left to reach
    rest = [still]
    for i in range(n - 1, 0, -1):
        moved = torch.stack([scores[:, i, c, None] + shifted(rest[-1], v) for c, v in enumerate(values)])
        rest.append(torch.where(mask[:, i, None], joined(moved), rest[-1]))
    rest.reverse()
    left = torch.full((s,), total, device=scores.device)
    chosen = []
    for i in range(n):
        follow = torch.stack([_at(rest[i], reach + left - v) for v in values], -1)
        keys = scores[:, i] + torch.where((scores[:, i] + follow).isfinite().any(-1, keepdim=True), follow, 0.0)
        best = (keys if noise is None else keys + noise[:, i]).argmax(-1)
        best = torch.where(mask[:, i], best, 0)
        chosen.append(best)
        left = left - torch.tensor(list(values), device=left.device)[best] * mask[:, i]
    return torch.stack(chosen, 1)


def shifted(scores: Tensor, by: int) -> Tensor:
    """Scores [S, K] of sums moved to sums larger by ``by``; minus infinity where nothing comes from."""
    moved = torch.full_like(scores, -torch.inf)
    k = scores.shape[1]
    moved[:, max(by, 0) : k + min(by, 0)] = scores[:, max(-by, 0) : k - max(by, 0)]
    return moved


def _at(scores: Tensor, index: Tensor) -> Tensor:
    """Scores [S, K] at an index [S]; minus infinity outside."""
    inside = (index >= 0) & (index < scores.shape[1])
    found = scores.gather(1, index.clamp(0, scores.shape[1] - 1)[:, None])[:, 0]
    return torch.where(inside, found, -torch.inf)
