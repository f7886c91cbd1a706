"""Random draws with one stream per system, so that a sample does not depend on its neighbours in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.fields import field

_MIX = 0x9E3779B97F4A7C15


def stream_seed(seed: int, index: int) -> int:
    """Mix a run's seed and a sample's index into one 63-bit seed (splitmix64's finaliser)."""
    z = (seed * 0xD1342543DE82EF95 + (index + 1) * _MIX) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) >> 1


class Streams:
    """Normal and uniform draws for the systems of a batch.

    Built from a list of CPU generators (one per system: reproducible whatever the batch) or from a single generator (one for
    all: faster, for training). Draws have the shape of the field, are zero on padding and, for pair fields, symmetric.
    """

    def __init__(self, generators: torch.Generator | Sequence[torch.Generator]) -> None:
        self.shared = generators if isinstance(generators, torch.Generator) else None
        self.each = [] if isinstance(generators, torch.Generator) else list(generators)

    @classmethod
    def of(cls, seed: int, indices: Sequence[int]) -> Streams:
        """One stream for each sample index of a run with this seed."""
        return cls([torch.Generator().manual_seed(stream_seed(seed, i)) for i in indices])

    @classmethod
    def single(cls, seed: int, device: torch.device | str = "cpu") -> Streams:
        """One stream for the whole batch."""
        return cls(torch.Generator(device).manual_seed(seed))

    def subset(self, index: Sequence[int]) -> Streams:
        """The streams of some of the systems (the same generator objects, not copies)."""
        return self if self.shared is not None else Streams([self.each[i] for i in index])

    def normal(self, batch: AtomBatch, name: str, tail: tuple[int, ...] | None = None) -> Tensor:
        """Standard normal draws for a field: float32 [scope axes of the field, *tail]."""
        return self._draw(torch.randn, batch, name, tail)

    def uniform(self, batch: AtomBatch, name: str, tail: tuple[int, ...] | None = None) -> Tensor:
        """Uniform draws on [0, 1) for a field: float32 [scope axes of the field, *tail]."""
        return self._draw(torch.rand, batch, name, tail)

    def times(self, n: int, device: torch.device) -> Tensor:
        """Uniform draws on [0, 1), one a system: float32 [S]; stratified over the batch when the stream is shared."""
        if self.shared is None:
            return torch.stack([torch.rand((), generator=g) for g in self.each]).to(device)
        u = torch.rand(n, generator=self.shared, device=self.shared.device)
        offset = torch.randperm(n, generator=self.shared, device=self.shared.device)
        return ((offset + u) / n).to(device)

    def _draw(self, draw: Callable[..., Tensor], batch: AtomBatch, name: str, tail: tuple[int, ...] | None) -> Tensor:
        f = field(name)
        tail = tuple(int(k or 0) for k in f.shape) if tail is None else tail
        s, n = batch.mask.shape
        if self.shared is not None:
            lead = {"atom": (s, n), "pair": (s, n, n), "system": (s,)}[f.scope]
            x = draw(*lead, *tail, generator=self.shared, device=self.shared.device).to(batch.device)
        else:
            if len(self.each) != s:
                raise ValueError(f"{len(self.each)} streams for {s} systems")
            x = self._draw_each(draw, batch, f.scope, tail).to(batch.device)
        if f.scope == "pair":
            upper = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
            upper = upper.reshape(1, n, n, *[1] * len(tail))
            x = torch.where(upper, x, 0.0)
            x = x + x.transpose(1, 2)
        if f.scope != "system":
            m = batch.scope_mask(name)
            x = torch.where(m.reshape(*m.shape, *[1] * len(tail)), x, 0.0)
        return x

    def _draw_each(self, draw: Callable[..., Tensor], batch: AtomBatch, scope: str, tail: tuple[int, ...]) -> Tensor:
        if scope == "system":
            return torch.stack([draw(*tail, generator=g) for g in self.each])
        s, n = batch.mask.shape
        lead = (s, n) if scope == "atom" else (s, n, n)
        out = torch.zeros(*lead, *tail)
        for i, (k, g) in enumerate(zip(batch.n_atoms.tolist(), self.each, strict=True)):
            own = out[i, :k] if scope == "atom" else out[i, :k, :k]
            own.copy_(draw(*own.shape, generator=g))
        return out
