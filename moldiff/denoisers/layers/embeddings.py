"""Radial bases, time and condition embeddings, and a linear layer that computes in a chosen precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """A linear layer whose float32 weights are cast to the input's dtype at each call.

    It lets one network compute its wide products in bfloat16 and its geometry in float32 without autocast's casts.
    """

    def __init__(self, n_in: int, n_out: int, bias: bool = True, zero: bool = False, gain: float = 1.0) -> None:
        super().__init__(n_in, n_out, bias)
        if zero:
            nn.init.zeros_(self.weight)
        else:
            nn.init.normal_(self.weight, std=gain / math.sqrt(n_in))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return F.linear(x, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


def class_features(value: Tensor, n_states: int) -> Tensor:
    """float32 features of a categorical field: one-hot [..., n_states] of indices, or the values as they are."""
    return value.float() if value.is_floating_point() else F.one_hot(value, n_states).float()


def gaussian_basis(distance: Tensor, n: int, high: float) -> Tensor:
    """n Gaussians on [0, high], denser near 0 where bonds are: distance [...] -> [..., n]."""
    centers = torch.linspace(0, 1, n, device=distance.device).square() * high
    widths = torch.empty_like(centers)
    widths[:-1] = centers[1:] - centers[:-1]
    widths[-1] = widths[-2]
    return torch.exp(-0.5 * ((distance[..., None] - centers) / widths.clamp_min(0.15)).square())


class TimeEmbedding(nn.Module):
    """t and the number of atoms (and conditions where given) as one vector a system: [S] -> [S, width].

    ``n_conditions`` scalar conditions, already standardised; NaN stands for the null condition and has an embedding of its own.
    """

    frequencies: Tensor

    def __init__(self, width: int, n_frequencies: int = 32, max_atoms: int = 64, n_conditions: int = 0) -> None:
        super().__init__()
        self.max_atoms = max_atoms
        frequencies = torch.exp(torch.linspace(math.log(0.5), math.log(100.0), n_frequencies))
        self.register_buffer("frequencies", frequencies * math.pi, persistent=False)
        self.size = nn.Embedding(max_atoms + 1, width)
        nn.init.normal_(self.size.weight, std=0.02)
        self.inner = Linear(2 * n_frequencies, width)
        self.outer = Linear(width, width)
        self.condition = Linear(3 * n_conditions, width, zero=True) if n_conditions else None

    def forward(self, t: Tensor, n_atoms: Tensor, conditions: Tensor | None = None) -> Tensor:
        angle = t[:, None] * self.frequencies
        x = self.inner(torch.cat([angle.sin(), angle.cos()], -1)) + self.size(n_atoms.clamp_max(self.max_atoms))
        if self.condition is not None:
            if conditions is None:
                conditions = torch.full((t.shape[0], self.condition.in_features // 3), torch.nan, device=t.device)
            known = ~conditions.isnan()
            value = torch.where(known, conditions, torch.zeros_like(conditions))
            x = x + self.condition(torch.cat([value, value.square(), known.to(x.dtype)], -1))
        return F.silu(self.outer(F.silu(x)))
