"""Couplings: which noise a datum is joined with, when all that matters of the noise is its order and its origin.

Uniform coordinates of alike atoms mean the same in any order, and a crystal means the same wherever its cell begins. Among all
equivalent noises the one nearest to the datum makes the shortest ways, which cross least: the network has less to average over.
This is the equivariant optimal transport of Klein et al. 2023 (Equivariant flow matching) and Song et al. 2023 (EquiFM), here on
the torus, and taken within each pair of a datum and its noise, so that it costs no batch of pairs.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from moldiff.core.periodic import torus_log

#: Cost of joining atoms of two kinds: beyond any squared distance on the torus.
_NEVER = 1e3


def nearest_order(x: Tensor, noise: Tensor, mask: Tensor, kinds: Tensor | None = None, rounds: int = 3) -> Tensor:
    """The noise reordered within each kind of atom, and moved as a whole, so that it lies near ``x``.

    ``x`` and ``noise`` are fractional coordinates [S, N, 3], ``mask`` [S, N], ``kinds`` [S, N] of atoms that may not be
    exchanged for each other (None: all alike). Order and shift are improved in turn ``rounds`` times, which finds a good
    optimum and not always the best one. Returns [S, N, 3], not wrapped.
    """
    n = mask.sum(1).tolist()
    forbidden = None if kinds is None else (kinds[:, :, None] != kinds[:, None, :]).to(x.dtype) * _NEVER
    moved = noise
    for k in range(rounds):
        cost = torus_log(x[:, :, None], moved[:, None, :]).square().sum(-1)
        if forbidden is not None:
            cost = cost + forbidden
        costs = cost.cpu().numpy()
        order = torch.arange(x.shape[1]).repeat(len(n), 1)
        for s, size in enumerate(n):
            order[s, :size] = torch.from_numpy(linear_sum_assignment(costs[s, :size, :size])[1])
        order = order.to(x.device)
        moved = moved.gather(1, order[..., None].expand_as(moved))
        if k + 1 < rounds:
            way = torch.where(mask[..., None], torus_log(x, moved), torch.zeros_like(x))
            moved = moved - way.sum(1, keepdim=True) / mask.sum(1).clamp_min(1)[:, None, None]
    return moved
