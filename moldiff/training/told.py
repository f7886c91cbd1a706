"""Which conditions a training system is told: none, some of them, one alone, with or without their companions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from moldiff.training.module import TrainOptions


def left_out(
    conditions: Tensor, options: TrainOptions, companions: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """Which conditions [S, K] are left out, beside those that are all left out together (``condition_dropout``), bool [S, K].

    Each on its own with ``condition_dropout_each``; in a share ``condition_alone`` of the systems all but one. ``companions`` [K]
    says which are drawn beside what people ask for: in a share ``companion_share`` of the systems all of these are told,
    whatever else is; half of the others are told none of them, the rest each with a chance of one half.
    """
    each = torch.rand(conditions.shape, generator=generator) < options.condition_dropout_each
    if companions is None or not bool(companions.any()):
        return alone(conditions, each, options.condition_alone, generator)
    asked = conditions.masked_fill(companions.to(conditions.device), torch.nan)
    drop = alone(asked, each, options.condition_alone, generator)
    coins = torch.rand(len(conditions), 2, generator=generator)
    some = torch.rand(conditions.shape, generator=generator) < 0.5
    whole, none = coins[:, :1] < options.companion_share, coins[:, 1:] < 0.5
    return torch.where(companions.cpu(), ~whole & (none | some), drop)


def alone(conditions: Tensor, drop: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Which conditions [S, K] are left out: as ``drop`` says, but all except one known one in a ``share`` of the systems.

    One property is what people ask for most, and of several that are left out each on its own it is seldom the only one.
    """
    if share <= 0:
        return drop
    lot = torch.rand(conditions.shape, generator=generator).masked_fill(conditions.isnan().cpu(), -1.0)
    one = torch.rand(len(conditions), 1, generator=generator) < share
    others = torch.ones_like(drop).scatter(1, lot.argmax(1, keepdim=True), False)
    return torch.where(one, others, drop)
