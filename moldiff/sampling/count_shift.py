"""Expected counts brought to wanted ones: how many atoms of an element, how many bonds of an order between two elements.

A network that is told a number follows it loosely, for it judges every atom and bond by itself. Here the logits of a prediction
are shifted, all atoms (pairs) of a kind alike, until the expected number of each is what is wanted. Which atom or bond it is
stays the network's choice, and near the end, where it is sure, a bounded shift changes nothing any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.denoisers.base import Denoiser

#: Rounds in which the shifts of atoms and of bonds are found; added to numbers whose ratio is a step; nats of any shift at most.
ROUNDS, ROUNDS_OF_BONDS, SLACK, MOST = 10, 6, 0.05, 5.0


@dataclass(frozen=True)
class Count:
    """One number: of atoms of the class ``first``, or of bonds of class ``order`` between classes ``first`` and ``second``."""

    first: int
    second: int = -1
    order: int = -1


class CountShifted:
    """A denoiser whose predictions have the expected counts ``wanted`` [S, K] (NaN where nothing is), as far as shifts of at most
    ``most`` nats bring them there."""

    def __init__(self, denoiser: Denoiser, counts: Sequence[Count], wanted: Tensor, most: float = MOST) -> None:
        self.denoiser, self.counts, self.wanted, self.most = denoiser, tuple(counts), wanted, most

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        prediction = self.denoiser(xt, t, previous)
        types = shifted_types(prediction.atom_types, self.counts, self.wanted, xt.mask, self.most)
        found = {"atom_types": types}
        if "bond_types" in prediction:
            p = types.float().softmax(-1)
            pairs = xt.pair_mask & ~torch.eye(xt.n_max, dtype=torch.bool, device=xt.device)
            found["bond_types"] = shifted_bonds(prediction.bond_types, p, self.counts, self.wanted, pairs, self.most)
        return prediction.replace(**found)


def shifted_types(logits: Tensor, counts: Sequence[Count], wanted: Tensor, mask: Tensor, most: float) -> Tensor:
    """Logits [S, N, C] of atoms whose expected numbers are those wanted."""
    places = [k for k, one in enumerate(counts) if one.order < 0]
    shift = torch.zeros(len(wanted), logits.shape[-1], device=logits.device)
    for _ in range(ROUNDS if places else 0):
        p = (logits.float() + shift[:, None]).softmax(-1) * mask[..., None]
        for k in places:
            c = counts[k].first
            shift[:, c] = _nearer(shift[:, c], p[..., c].sum(1), wanted[:, k], most)
    return logits + shift[:, None].to(logits.dtype)


def shifted_bonds(
    logits: Tensor, types: Tensor, counts: Sequence[Count], wanted: Tensor, pairs: Tensor, most: float
) -> Tensor:
    """Logits [S, N, N, B] of bonds whose expected numbers are those wanted, given class probabilities ``types`` [S, N, C]."""
    places = [k for k, one in enumerate(counts) if one.order >= 0]
    if not places:
        return logits
    weights = [kind_weights(types, counts[k], pairs) for k in places]
    shifts = [torch.zeros(len(wanted), device=logits.device) for _ in places]
    for _ in range(ROUNDS_OF_BONDS):
        p = (logits.float() + _added(logits, places, counts, weights, shifts)).softmax(-1)
        for j, k in enumerate(places):
            expected = 0.5 * (weights[j] * p[..., counts[k].order]).sum((1, 2))
            shifts[j] = _nearer(shifts[j], expected, wanted[:, k], most)
    return logits + _added(logits, places, counts, weights, shifts).to(logits.dtype)


def kind_weights(types: Tensor, one: Count, pairs: Tensor) -> Tensor:
    """The chance [S, N, N] that the atoms of a pair are of the classes of a kind of bond, given those of atoms [S, N, C]."""
    weight = types[..., one.first][:, :, None] * types[..., one.second][:, None, :]
    return torch.where(pairs, weight if one.first == one.second else weight + weight.mT, 0.0)


def _added(
    logits: Tensor, places: Sequence[int], counts: Sequence[Count], weights: Sequence[Tensor], shifts: Sequence[Tensor]
) -> Tensor:
    """What the shifts of kinds add to logits of orders: a pair is of a kind with a chance only, its weight."""
    total = torch.zeros(logits.shape, device=logits.device)
    for j, k in enumerate(places):
        total[..., counts[k].order] += (weights[j] * torch.expm1(shifts[j])[:, None, None]).clamp_min(-1 + 1e-6).log1p()
    return total


def _nearer(shift: Tensor, expected: Tensor, wanted: Tensor, most: float) -> Tensor:
    """A shift [S] that brings an expected number nearer to the wanted one; as it is where nothing is wanted."""
    step = ((wanted + SLACK) / (expected + SLACK)).log()
    return torch.where(wanted.isnan(), shift, (shift + step).clamp(-most, most))
