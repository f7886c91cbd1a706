"""Activations whose bits do not depend on where in a tensor a number stands."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Numbers that torch takes at a time where vectors are widest (two of AVX-512, float32).
_AT_A_TIME = 32


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) for features [..., C].

    torch rounds the last few numbers of a tensor, which fill no vectors, in another way than the rest, so that a system's bits
    would depend on its place in the batch. Where C is so large a multiple that there are none, it is torch's own; else it goes
    by tanh, which has no such habit.
    """
    if x.shape[-1] % _AT_A_TIME == 0:
        return F.silu(x)
    return x * (0.5 + 0.5 * torch.tanh(0.5 * x))
