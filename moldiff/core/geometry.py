"""Geometry of point clouds: centring, rotations, superposition, pair vectors."""

from __future__ import annotations

import torch
from torch import Tensor


def center(x: Tensor, mask: Tensor) -> Tensor:
    """Subtract the mean over real atoms; x [S, N, ..., 3] (atoms on axis 1), mask [S, N]; padding becomes zero."""
    m = mask.reshape(*mask.shape, *[1] * (x.dim() - 2)).to(x.dtype)
    mean = (x * m).sum(1, keepdim=True) / m.sum(1, keepdim=True).clamp_min(1)
    return (x - mean) * m


def random_rotations(n: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """n rotation matrices uniform over SO(3), from unit quaternions: float32 [n, 3, 3]."""
    q = torch.randn(n, 4, generator=generator, device=generator.device).to(device)
    w, x, y, z = torch.nn.functional.normalize(q, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).reshape(n, 3, 3)


def kabsch(x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Superpose x on y without reflection (Kabsch 1976).

    x, y [S, N, 3] with mask [S, N]; returns the moved x [S, N, 3] and the RMSD [S] over real atoms, in the input's unit.
    """
    m = mask[..., None].to(x.dtype)
    mean_y = (y * m).sum(1, keepdim=True) / m.sum(1, keepdim=True).clamp_min(1)
    xc, yc = center(x, mask), center(y, mask)
    u, _, vt = torch.linalg.svd(xc.transpose(1, 2) @ yc)
    sign = torch.linalg.det(u @ vt)
    d = torch.ones(x.shape[0], 3, dtype=x.dtype, device=x.device)
    d[:, 2] = torch.where(sign < 0, -1.0, 1.0)
    moved = (xc @ (u * d[:, None, :]) @ vt) * m
    rmsd = (((moved - yc) ** 2).sum((1, 2)) / m.sum((1, 2)).clamp_min(1)).sqrt()
    return (moved + mean_y) * m, rmsd


def pair_vectors(x: Tensor) -> Tensor:
    """x_i - x_j for all ordered pairs: x [S, N, ..., 3] -> [S, N, N, ..., 3]."""
    return x[:, :, None] - x[:, None, :]
