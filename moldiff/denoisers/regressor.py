"""A property regressor for clean and noisy molecules: the trunk of a denoiser, pooled over the atoms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moldiff.core.batch import AtomBatch
from moldiff.core.geometry import center
from moldiff.denoisers.base import Signature
from moldiff.denoisers.layers.activations import silu
from moldiff.denoisers.layers.embeddings import Linear
from moldiff.diffusion.joint import Diffusion
from moldiff.errors import BadRequest


class PooledReadout(nn.Module):
    """Numbers of a system from its node channels: what the atoms are on average, what the attended ones are, and dipoles.

    The dipoles are norms of sum_i q_i x_i with learned q that add up to zero: unchanged by turning, mirroring and shifting.
    """

    def __init__(self, width: int, n_targets: int, n_heads: int = 8, n_dipoles: int = 16) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.scores = Linear(width, n_heads)
        self.values = Linear(width, width)
        self.charges = Linear(width, n_dipoles, gain=0.2)  # sums over many atoms: of the size of the averages at first
        self.hidden = Linear(2 * width + n_dipoles, width)
        self.second = Linear(width, width)
        self.out = Linear(width, n_targets, gain=0.3)

    def forward(self, h: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """h [S, N, width], x [S, N, 3] scaled positions, mask [S, N] -> [S, n_targets]."""
        s, n, width = h.shape
        real = mask[..., None].to(h.dtype)
        count = real.sum(1).clamp_min(1)
        z = F.layer_norm(h, (width,))
        value = silu(self.values(z))
        mean = (value * real).sum(1) / count
        weight = self.scores(z).masked_fill(~mask[..., None], -1e4).softmax(1)
        attended = torch.einsum("snh,snhc->shc", weight, value.reshape(s, n, self.n_heads, -1)).reshape(s, width)
        charge = self.charges(z) * real
        charge = (charge - charge.sum(1, keepdim=True) / count[:, None]) * real
        moment = torch.einsum("snk,snx->skx", charge, center(x, mask))
        dipole = (moment.square().sum(-1) + 1e-4).sqrt()
        y = silu(self.hidden(torch.cat([mean, attended, dipole], -1)))
        y = y + silu(self.second(y))
        found: Tensor = self.out(y)
        return found


class Regressor(nn.Module):
    """Standardised properties of an encoded batch at time t: the same noise and input scaling as in a diffusion.

    It sees what its settings list as fields (positions and types: no bonds, so that it judges anyone's samples). Categorical
    fields may be class indices or probabilities [..., classes], through which gradients run.
    """

    def __init__(self, trunk: nn.Module, signature: Signature, diffusion: Diffusion, width: int, n_targets: int) -> None:
        super().__init__()
        if not hasattr(trunk, "features"):
            raise BadRequest(f"{type(trunk).__name__} has no features() for a regressor; thin_pair and egnn have")
        for name in getattr(trunk, "HEADS", ()):  # a regressor needs no heads of the denoiser
            if hasattr(trunk, name):
                delattr(trunk, name)
        self.trunk, self.signature, self.diffusion = trunk, signature, diffusion
        self.readout = PooledReadout(width, n_targets)

    def forward(self, xt: AtomBatch, t: Tensor) -> Tensor:
        """xt encoded, t [S] -> [S, n_targets], standardised."""
        seen = self.diffusion.network_input(xt, t)
        trunk: Any = self.trunk
        found: Tensor = self.readout(trunk.features(seen, t).float(), seen.positions, seen.mask)
        return found

    def clean(self, values: Mapping[str, Tensor], mask: Tensor, t: Tensor | None = None) -> Tensor:
        """What it says of clean systems, ``values`` by field; at t [S] where they are predictions from noise of that time."""
        batch = AtomBatch(mask, dict(values))
        return self.forward(batch, torch.zeros(batch.n_systems, device=mask.device) if t is None else t)
