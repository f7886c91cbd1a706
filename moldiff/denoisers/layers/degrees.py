"""Layers on features of several degrees, in e3nn's order: all channels of a degree, each with its 2 l + 1 components."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DegreeLinear(nn.Module):
    """A linear layer on the channels of each degree, with a bias for scalars: [..., sum of n (2 l + 1)] before and after.

    Its weights are of the size that they work with, unlike those of e3nn, of which Adam changes a small part in each step only.
    """

    def __init__(self, n_in: Sequence[int], n_out: Sequence[int], gain: float = 1.0) -> None:
        super().__init__()
        self.n_in, self.dims = tuple(n_in), [n * (2 * degree + 1) for degree, n in enumerate(n_in)]
        sizes = zip(n_in, n_out, strict=True)
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(b, a) * gain * max(a, 1) ** -0.5) for a, b in sizes)
        self.bias = nn.Parameter(torch.zeros(n_out[0]))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., channels of degree 0, then 1 with their three components, then 2 with five]."""
        out: list[Tensor] = []
        for n, weight, part in zip(self.n_in, self.weights, x.split(self.dims, -1), strict=True):
            if not out:
                out.append(F.linear(part, weight, self.bias))
            elif len(weight):
                out.append((weight @ part.unflatten(-1, (n, -1))).flatten(-2))
        return torch.cat(out, -1)
