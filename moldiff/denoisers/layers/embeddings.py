"""Radial bases, time and condition embeddings, and a linear layer that computes in a chosen precision."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moldiff.denoisers.layers.activations import silu

#: Standardised conditions beyond this many standard deviations are pressed together, so that an outlier throws nothing.
_REACH = 4.0
_WAVES = 3
_N_NUMBER = 3 + 2 * _WAVES


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


def number_features(value: Tensor) -> Tensor:
    """Features of a standardised number: whether it is known, itself, its square, and waves that tell near values apart.

    value [S], NaN where unknown -> [S, 9], all zero where unknown.
    """
    known = ~value.isnan()
    x = _REACH * torch.tanh(torch.where(known, value, 0.0) / _REACH)
    parts = [torch.ones_like(x), x, x.square() / _REACH]
    for k in range(_WAVES):
        parts += [torch.sin(2.0**k * x), torch.cos(2.0**k * x)]
    return torch.stack(parts, -1) * known[:, None]


class ConditionEmbedding(nn.Module):
    """The sum of what each condition says: [S, n_conditions], NaN where unknown (null) -> [S, width].

    ``classes`` has an entry a condition: 0 for a standardised number, K for a class 0 .. K - 1. Every condition has weights of
    its own, all zero at first, and none of them a bias: an unknown condition adds exactly nothing, at first and after training,
    so that a model which learns a further condition begins as the model that it was.
    """

    def __init__(self, classes: Sequence[int], width: int) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.each = nn.ModuleList(Linear(k or _N_NUMBER, width, bias=False, zero=True) for k in self.classes)

    def forward(self, conditions: Tensor | None, like: Tensor) -> Tensor:
        """``like`` [S, width] gives shape, dtype and device."""
        total = torch.zeros_like(like)
        if conditions is None:
            return total
        for value, k, layer in zip(conditions.to(like.dtype).unbind(-1), self.classes, self.each, strict=True):
            if k:
                known = ~value.isnan()
                index = torch.where(known, value, 0.0).round().long().clamp(0, k - 1)
                features = F.one_hot(index, k).to(like.dtype) * known[:, None]
            else:
                features = number_features(value)
            total = total + layer(features)
        return total


class TimeEmbedding(nn.Module):
    """t and the number of atoms (and conditions where given) as one vector a system: [S] -> [S, width].

    ``conditions`` as in ``ConditionEmbedding``.
    """

    frequencies: Tensor

    def __init__(self, width: int, n_frequencies: int = 32, max_atoms: int = 64, conditions: Sequence[int] = ()) -> None:
        super().__init__()
        self.max_atoms = max_atoms
        frequencies = torch.exp(torch.linspace(math.log(0.5), math.log(100.0), n_frequencies))
        self.register_buffer("frequencies", frequencies * math.pi, persistent=False)
        self.size = nn.Embedding(max_atoms + 1, width)
        nn.init.normal_(self.size.weight, std=0.02)
        self.inner = Linear(2 * n_frequencies, width)
        self.outer = Linear(width, width)
        self.condition = ConditionEmbedding(conditions, width) if conditions else None

    def forward(self, t: Tensor, n_atoms: Tensor, conditions: Tensor | None = None) -> Tensor:
        angle = t[:, None] * self.frequencies
        x = self.inner(torch.cat([angle.sin(), angle.cos()], -1)) + self.size(n_atoms.clamp_max(self.max_atoms))
        if self.condition is not None:
            x = x + self.condition(conditions, x)
        return silu(self.outer(silu(x)))
