"""Layers on all pairs of atoms that never build the concatenation of both atoms' features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PairLinear(nn.Module):
    """A linear layer on [h_i, h_j, e_ij] of all pairs, computed without building that tensor.

    W [h_i, h_j, e_ij] = A h_i + B h_j + C e_ij: two products over N atoms and a thin one over N^2 pairs give the same numbers
    as one wide product over N^2 pairs.
    """

    def __init__(self, width: int, n_edge: int, n_out: int) -> None:
        super().__init__()
        self.width = width
        self.linear = nn.Linear(2 * width + n_edge, n_out)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """h [S, N, width], e [S, N, N, n_edge] -> [S, N, N, n_out]."""
        first, second, edge = torch.split(self.linear.weight, [self.width, self.width, e.shape[-1]], 1)
        here, there = F.linear(h, first, self.linear.bias), F.linear(h, second)
        return F.linear(e, edge).add_(here[:, :, None]).add_(there[:, None])
