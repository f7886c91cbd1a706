"""What may be done to a batch without changing what it means, driven by the field table; and random batches to do it to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.fields import field
from moldiff.core.geometry import center, random_rotations
from moldiff.denoisers.base import Signature


def exact_rotations(n: int, generator: torch.Generator) -> Tensor:
    """n random rotations that are orthogonal to double precision: float64 [n, 3, 3]."""
    u, _, v = torch.linalg.svd(random_rotations(n, generator).double())
    return torch.matmul(u, v)


def rotate(batch: AtomBatch, matrix: Tensor) -> AtomBatch:
    """Turn (or mirror) every system by its orthogonal matrix [S, 3, 3]: vectors and lattice rows; all else stays."""
    turned = {}
    for name, value in batch.data.items():
        if field(name).transform in ("vector", "lattice"):
            turned[name] = value @ matrix.to(value).transpose(-1, -2)
    return batch.replace(**turned)


def shift_fractional(batch: AtomBatch, shift: Tensor) -> AtomBatch:
    """Add ``shift`` (broadcast against [S, N, 3], in cell vectors) to fractional fields, without wrapping."""
    return batch.replace(**{k: v + shift.to(v) for k, v in batch.data.items() if field(k).transform == "fractional"})


def permute(batch: AtomBatch, order: Tensor) -> AtomBatch:
    """Reorder the atoms: entry i of the result is atom ``order[:, i]``; int64 [S, N]."""
    row = torch.arange(batch.n_systems, device=batch.device)[:, None]
    out = {}
    for name, value in batch.data.items():
        scope = field(name).scope
        if scope == "atom":
            out[name] = value[row, order]
        elif scope == "pair":
            out[name] = value[row[:, :, None], order[:, :, None], order[:, None, :]]
    return AtomBatch(batch.mask[row, order], {**batch.data, **out})


def random_order(batch: AtomBatch, generator: torch.Generator) -> Tensor:
    """A random order of the real atoms of each system, padding left in place: int64 [S, N]."""
    order = torch.arange(batch.n_max).repeat(batch.n_systems, 1)
    for row, n in zip(order, batch.n_atoms.tolist(), strict=True):
        row[:n] = torch.randperm(n, generator=generator)
    return order.to(batch.device)


def pad(batch: AtomBatch, n_max: int, junk: torch.Generator | None = None) -> AtomBatch:
    """Pad to ``n_max`` atoms; all padding holds zeros or, with a generator, finite values drawn from the field's own."""
    s, n = batch.mask.shape
    mask = torch.zeros(s, n_max, dtype=torch.bool, device=batch.device)
    mask[:, :n] = batch.mask
    both = mask[:, :, None] & mask[:, None, :]
    out = {}
    for name, value in batch.data.items():
        scope = field(name).scope
        if scope == "system":
            out[name] = value
            continue
        axes = 1 if scope == "atom" else 2
        shape = (s, *[n_max] * axes, *value.shape[1 + axes :])
        if junk is None:
            fill = torch.zeros(shape, dtype=value.dtype, device=value.device)
        else:
            pick = torch.randint(value.numel(), shape, generator=junk).to(value.device)
            fill = value.flatten()[pick]
        inside = (slice(None), *[slice(0, n)] * axes)
        real = mask if scope == "atom" else both
        real = real.reshape(*real.shape, *[1] * (value.dim() - 1 - axes))
        copy = torch.zeros_like(fill)
        copy[inside] = value
        out[name] = torch.where(real, copy, fill)
    return AtomBatch(mask, out)


def _symmetric(x: Tensor) -> Tensor:
    """Mirror the upper triangle of pairs [S, N, N, ...] and clear the diagonal."""
    n = x.shape[1]
    upper = torch.ones(n, n, dtype=torch.bool).triu(1).reshape(1, n, n, *[1] * (x.dim() - 3))
    x = torch.where(upper, x, torch.zeros_like(x))
    return x + x.transpose(1, 2)


def _continuous(name: str, mask: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    f = field(name)
    s, n = mask.shape
    if f.transform == "lattice":
        # well-conditioned cells, each turned its own way, of both hands
        shape = 4 * torch.eye(3).double() + 0.7 * torch.randn(s, 3, 3, generator=generator)
        hand = torch.where(torch.rand(s, 1, 1, generator=generator) < 0.5, -1.0, 1.0)
        return (shape @ exact_rotations(s, generator) * hand).to(dtype)
    lead = {"atom": (s, n), "pair": (s, n, n), "system": (s,)}[f.scope]
    tail = [int(k or 1) for k in f.shape]
    if f.transform == "fractional":
        return torch.rand(*lead, *tail, generator=generator, dtype=dtype)
    x = torch.randn(*lead, *tail, generator=generator, dtype=dtype)
    if f.scope == "pair":
        x = _symmetric(x)
    return center(x, mask) if f.transform == "vector" and f.scope == "atom" else x


def random_batch(
    signature: Signature,
    sizes: Sequence[int],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    one_hot: Sequence[str] = (),
) -> AtomBatch:
    """A batch of random systems with these numbers of atoms that carries every field of a signature.

    Vectors are centred, pair fields symmetric, classes any of the field's states; fields in ``one_hot`` hold random class
    vectors [..., classes] instead. One system in three lacks its conditions (NaN).
    """
    n = max(sizes)
    mask = torch.arange(n)[None] < torch.tensor(list(sizes))[:, None]
    data = {name: _continuous(name, mask, generator, dtype) for name in signature.continuous}
    for name, (states, classes) in signature.categorical.items():
        pair = field(name).scope == "pair"
        lead = (len(sizes), n, n) if pair else (len(sizes), n)
        if name in one_hot:
            value = torch.randn(*lead, classes, generator=generator, dtype=dtype)
        else:
            value = torch.randint(states, lead, generator=generator)
        data[name] = _symmetric(value) if pair else value
    if signature.n_conditions:
        conditions = torch.randn(len(sizes), signature.n_conditions, generator=generator, dtype=dtype)
        conditions[2::3] = torch.nan
        data["conditions"] = conditions
    return AtomBatch(mask, data).masked()


def random_prediction(like: AtomBatch, generator: torch.Generator) -> AtomBatch:
    """A random prediction with the shapes of another: what self-conditioning may be handed."""
    mask = like.mask.cpu()
    out = {}
    for name, value in like.data.items():
        if field(name).categorical:
            x = torch.randn(value.shape, generator=generator, dtype=value.dtype).softmax(-1)
            x = _symmetric(x) if field(name).scope == "pair" else x
        else:
            x = _continuous(name, mask, generator, value.dtype)
        out[name] = x.to(value.device)
    return AtomBatch(like.mask, out).masked()
