"""The border between physical values (atomic numbers, charges, bond orders) and a model's class indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.fields import field
from moldiff.errors import BadRequest


class Vocabulary:
    """The values that a model knows for each categorical field, in the order of its class indices."""

    def __init__(self, values: Mapping[str, Sequence[int]]) -> None:
        self.values = {name: tuple(int(v) for v in vs) for name, vs in values.items()}
        for name, vs in self.values.items():
            bad = [v for v in vs if v not in field(name).values]
            if bad or len(set(vs)) != len(vs) or not vs:
                raise BadRequest(f"vocabulary of {name!r} must be distinct known values, found {list(vs)}")

    def size(self, name: str) -> int:
        """Number of classes of a field."""
        return len(self.values[name])

    def encode(self, batch: AtomBatch) -> AtomBatch:
        """Physical -> class indices; a value outside the vocabulary raises ``BadRequest`` naming it."""
        out = {}
        for name, vs in self.values.items():
            if name not in batch:
                continue
            x = batch.data[name]
            low, high = min(field(name).values), max(field(name).values)
            table = torch.full((high - low + 1,), -1, dtype=torch.int64, device=x.device)
            table[torch.tensor(vs, device=x.device) - low] = torch.arange(len(vs), device=x.device)
            mask = batch.scope_mask(name)
            safe = torch.where(mask, x, torch.full_like(x, vs[0]))
            index = table[(safe - low).clamp(0, high - low)]
            if bool((index < 0).any()):
                bad = sorted(set(safe[index < 0].tolist()))
                raise BadRequest(f"{name} {bad} are outside the model's vocabulary {list(vs)}")
            out[name] = torch.where(mask, index, torch.zeros_like(index))
        return batch.replace(**out)

    def decode(self, batch: AtomBatch) -> AtomBatch:
        """Class indices -> physical; padding becomes 0."""
        out: dict[str, Tensor] = {}
        for name, vs in self.values.items():
            if name in batch:
                x = batch.data[name]
                physical = torch.tensor(vs, device=x.device)[x]
                out[name] = torch.where(batch.scope_mask(name), physical, torch.zeros_like(physical))
        return batch.replace(**out)
