"""The Denoiser protocol, and the wrapper that makes one from a network and a diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from moldiff.core.batch import AtomBatch
from moldiff.diffusion.joint import Diffusion


class Denoiser(Protocol):
    """Anything that predicts the clean fields of a noisy encoded batch.

    ``xt`` noisy batch, ``t`` [S] in [0, 1], ``previous`` the last clean prediction (self-conditioning) or None. Returns an
    AtomBatch with a value for each continuous field and logits for each categorical one. Guidance takes a Denoiser and
    returns a Denoiser, which holds the other as ``denoiser``; one that remembers systems has a method ``reorder``.
    """

    def __call__(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch: ...


def reorder(denoiser: Denoiser, index: Tensor) -> None:
    """Tell a denoiser, and all that it holds, that row k from now on is what row ``index[k]`` was."""
    part: object | None = denoiser
    while part is not None:
        move = getattr(part, "reorder", None)
        if move is not None:
            move(index)
        part = getattr(part, "denoiser", None)


@dataclass(frozen=True)
class Signature:
    """What a network is built for: the diffused categorical fields with (states in, classes out), and the conditions.

    ``condition_classes`` has an entry a condition: 0 for a standardised number, K for a class 0 .. K - 1; left empty, all are
    numbers.
    """

    categorical: dict[str, tuple[int, int]]
    continuous: tuple[str, ...]
    n_conditions: int = 0
    max_atoms: int = 64
    condition_classes: tuple[int, ...] = ()

    @property
    def conditions(self) -> tuple[int, ...]:
        """``condition_classes`` with an entry for every condition."""
        return self.condition_classes or (0,) * self.n_conditions

    def states(self, name: str) -> int:
        """Number of values that the noisy field can take."""
        return self.categorical[name][0]

    def classes(self, name: str) -> int:
        """Number of classes to predict."""
        return self.categorical[name][1]


class NetworkDenoiser(nn.Module):
    """A network with its diffusion's input scaling and output parameterisation: a Denoiser.

    The network is an ``nn.Module`` called with (the scaled noisy batch, t, the scaled previous prediction or None) that
    returns an AtomBatch of raw outputs; it needs to know no schedule.
    """

    def __init__(self, network: nn.Module, diffusion: Diffusion) -> None:
        super().__init__()
        self.network, self.diffusion = network, diffusion

    def forward(self, xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        seen = self.diffusion.network_input(xt, t)
        raw: Any = self.network(seen, t, None if previous is None else self._memory(seen, previous))
        return self.diffusion.to_clean(raw, xt, t)

    def _memory(self, seen: AtomBatch, previous: AtomBatch) -> AtomBatch:
        """The previous prediction as the network sees it; fields that are given stand in it as what they are, with certainty."""
        memory = self.diffusion.self_condition(previous)
        signature: Signature | None = getattr(self.network, "signature", None)
        if signature is None:
            return memory
        given = {name: seen.data[name] for name in signature.continuous if name not in memory}
        for name in signature.categorical:
            if name not in memory:
                given[name] = one_hot(seen.data[name], signature.classes(name)).float()
        return memory.replace(**given) if given else memory


def n_parameters(module: nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def float32_everywhere(module: nn.Module) -> torch.dtype:
    """The dtype of a module's parameters."""
    return next(module.parameters()).dtype
