"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """A slowly moving copy of a module's parameters.

    The decay starts low, (1 + step) / (10 + step), and rises to ``decay``, so that early samples are not those of the
    initial weights.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module's present weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        new = dict(module.named_parameters())
        names = list(self.shadow)
        torch._foreach_lerp_([self.shadow[k] for k in names], [new[k].detach() for k in names], 1 - decay)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the averaged and the live weights in place (call twice to undo)."""
        for name, p in module.named_parameters():
            live = p.detach().clone()
            p.copy_(self.shadow[name])
            self.shadow[name].copy_(live)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by parameter name."""
        return self.shadow

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over averaged weights."""
        for name, value in state.items():
            self.shadow[name] = value.to(self.shadow[name].device).clone()
