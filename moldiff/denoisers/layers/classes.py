"""Categorical fields on their way into a network and out of it, as the signature lists them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moldiff.core.batch import AtomBatch
from moldiff.denoisers.base import Signature
from moldiff.denoisers.layers.embeddings import class_features
from moldiff.errors import BadRequest


def require_positions(signature: Signature, network: str) -> None:
    """Refuse a signature whose continuous fields a network for molecules cannot make (``BadRequest``)."""
    if tuple(signature.continuous) != ("positions",):
        found = ", ".join(signature.continuous) or "none"
        raise BadRequest(f"network {network!r} works on positions alone, not on these continuous fields: {found}")


class ClassInputs:
    """Features of the categorical fields: those of atoms to nodes, bond types to pairs.

    With ``memory`` the previous prediction's class values stand beside each field, zeros where there is none. Built without
    self-conditioning it ignores the previous prediction.
    """

    def __init__(self, signature: Signature, self_conditioning: bool) -> None:
        self.signature, self.self_conditioning = signature, self_conditioning
        self.atom_fields = tuple(k for k in signature.categorical if k != "bond_types")
        self.with_bonds = "bond_types" in signature.categorical

    def _width(self, name: str) -> int:
        return self.signature.states(name) + (self.signature.classes(name) if self.self_conditioning else 0)

    @property
    def node_width(self) -> int:
        """Channels that ``nodes`` returns."""
        return sum(self._width(k) for k in self.atom_fields)

    @property
    def pair_width(self) -> int:
        """Channels that ``pairs`` returns; 0 without bonds."""
        return self._width("bond_types") if self.with_bonds else 0

    def _features(self, name: str, seen: AtomBatch, memory: AtomBatch | None) -> list[Tensor]:
        dtype = seen.positions.dtype
        parts = [class_features(seen.data[name], self.signature.states(name)).to(dtype)]
        if self.self_conditioning:
            blank = parts[0].new_zeros(*parts[0].shape[:-1], self.signature.classes(name))
            parts.append(blank if memory is None else memory.data[name].to(dtype))
        return parts

    def nodes(self, seen: AtomBatch, memory: AtomBatch | None) -> list[Tensor]:
        """Features of the atoms, each [S, N, C]."""
        return [part for name in self.atom_fields for part in self._features(name, seen, memory)]

    def pairs(self, seen: AtomBatch, memory: AtomBatch | None) -> list[Tensor]:
        """Features of the pairs, each [S, N, N, C]; an empty list without bonds."""
        return self._features("bond_types", seen, memory) if self.with_bonds else []


class AtomLogits(nn.Module):
    """Logits of every categorical field of the atoms from node channels; zero on padding."""

    def __init__(self, signature: Signature, width: int) -> None:
        super().__init__()
        self.sizes = {k: signature.classes(k) for k in signature.categorical if k != "bond_types"}
        self.out = nn.Linear(width, sum(self.sizes.values())) if self.sizes else None

    def forward(self, h: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """h [S, N, width] and mask [S, N] -> {field: [S, N, classes]}."""
        if self.out is None:
            return {}
        parts = torch.split(torch.where(mask[..., None], self.out(h), 0.0), list(self.sizes.values()), -1)
        return dict(zip(self.sizes, parts, strict=True))
