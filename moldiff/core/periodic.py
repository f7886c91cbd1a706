"""Geometry of periodic cells: the torus of fractional coordinates, minimum images, and the ways to write a lattice.

A lattice is a matrix [..., 3, 3] whose rows are the cell vectors in Å; a rotation acts on it from the right. Everything here is
batched, differentiable where that has a meaning, and free of loops over atoms. (Niggli and LLL reduction are in
``chem.crystals``.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def wrap(x: Tensor) -> Tensor:
    """Fractional coordinates brought into [0, 1), any shape."""
    y = x - x.floor()
    return torch.where(y >= 1, torch.zeros_like(y), y)  # -1e-9 - floor(-1e-9) rounds up to 1 in float32


def torus_log(start: Tensor, end: Tensor) -> Tensor:
    """The shortest way on the torus from ``start`` to ``end``, each number in [-1/2, 1/2]; shapes broadcast.

    It is the logarithm map of the flat torus: ``start + torus_log(start, end)`` is ``end`` up to whole cells.
    """
    way = end - start
    return way - way.round()


def circular_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean direction of fractional numbers over real atoms: x [S, N, 3], mask [S, N] -> [S, 1, 3] in (-1/2, 1/2]."""
    m = mask[..., None].to(x.dtype)
    turn = 2 * math.pi * x
    sin, cos = (turn.sin() * m).sum(1, keepdim=True), (turn.cos() * m).sum(1, keepdim=True)
    # in double precision: torch.atan2 rounds the last few numbers of a tensor in another way than the rest, so that a system's
    # bits would depend on its place in the batch
    return (torch.atan2(sin.double(), cos.double()) / (2 * math.pi)).to(x.dtype)


def images(reach: int, like: Tensor) -> Tensor:
    """All whole-cell shifts with entries -reach .. reach: [(2 reach + 1)^3, 3], the dtype and device of ``like``."""
    steps = torch.arange(-reach, reach + 1, dtype=like.dtype, device=like.device)
    grid = torch.meshgrid(steps, steps, steps, indexing="ij")
    return torch.stack(grid, -1).reshape(-1, 3)


def minimum_image(start: Tensor, end: Tensor, lattice: Tensor) -> Tensor:
    """The shortest Cartesian vector from ``start`` to any image of ``end``: fractional [S, ..., 3], lattice [S, 3, 3] -> Å.

    Rounding gives one image and its 26 neighbours are compared with it, which is exact for Niggli- or Minkowski-reduced cells;
    in a very skew cell a shorter image may lie further off.
    """
    way = torus_log(start, end)
    candidates = way[..., None, :] + images(1, way)
    cell = lattice.reshape(lattice.shape[0], *[1] * (candidates.dim() - 3), 3, 3)
    vectors = candidates @ cell
    nearest = vectors.square().sum(-1).argmin(-1)
    return vectors.gather(-2, nearest[..., None, None].expand(*nearest.shape, 1, 3)).squeeze(-2)


def minimum_image_pairs(frac_coords: Tensor, lattice: Tensor) -> Tensor:
    """Minimum-image vectors from atom i to atom j of all ordered pairs: [S, N, 3], [S, 3, 3] -> [S, N, N, 3] in Å."""
    return minimum_image(frac_coords[:, :, None], frac_coords[:, None, :], lattice)


def volume(lattice: Tensor) -> Tensor:
    """Volume of the cell, in Å^3: [..., 3, 3] -> [...]."""
    a, b, c = lattice.unbind(-2)
    mixed: Tensor = (torch.linalg.cross(a, b) * c).sum(-1)
    return mixed.abs()


def inverse(lattice: Tensor) -> Tensor:
    """The inverse matrix by cross products, without the host synchronisation of a general solver: [..., 3, 3]."""
    a, b, c = lattice.unbind(-2)
    columns = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -1)
    return columns / (a * columns[..., 0]).sum(-1)[..., None, None]


def lattice_parameters(lattice: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths a, b, c in Å and angles alpha, beta, gamma in degrees of a lattice [..., 3, 3]: two tensors [..., 3]."""
    lengths = lattice.square().sum(-1).sqrt()
    unit = lattice / lengths[..., None]
    a, b, c = unit.unbind(-2)
    # atan2 of cross and dot keeps its digits near 0 and 180 degrees, where arccos loses them
    pairs = ((b, c), (a, c), (a, b))
    angles = [torch.atan2(torch.linalg.cross(x, y).square().sum(-1).sqrt(), (x * y).sum(-1)) for x, y in pairs]
    return lengths, torch.stack(angles, -1) * (180 / math.pi)


def lattice_matrix(lengths: Tensor, angles: Tensor) -> Tensor:
    """The lattice [..., 3, 3] of lengths (Å) and angles (degrees), with a along x, b in the xy plane and c above it.

    Angles that close no cell (each must be less than the sum of the others, all together less than 360) give NaN.
    """
    cos = (angles * (math.pi / 180)).cos()
    alpha, beta, gamma = cos.unbind(-1)
    a, b, c = lengths.unbind(-1)
    sin = (1 - gamma.square()).sqrt()
    across = (alpha - beta * gamma) / sin
    height = (1 - beta.square() - across.square()).sqrt()
    zero = torch.zeros_like(a)
    rows = (a, zero, zero, b * gamma, b * sin, zero, c * beta, c * across, c * height)
    return torch.stack(rows, -1).reshape(*a.shape, 3, 3)


def symmetric_from_six(six: Tensor) -> Tensor:
    """The symmetric matrix of six numbers, five of shape and the trace: [..., 6] -> [..., 3, 3].

    The first five are coordinates of its traceless part in an orthonormal basis (three off the diagonal, two on it).
    """
    xy, xz, yz, plane, axis, trace = six.unbind(-1)
    xy, xz, yz = (k / math.sqrt(2) for k in (xy, xz, yz))
    plane, axis, trace = plane / math.sqrt(2), axis / math.sqrt(6), trace / 3
    rows = (plane + axis + trace, xy, xz, xy, axis - plane + trace, yz, xz, yz, trace - 2 * axis)
    return torch.stack(rows, -1).reshape(*xy.shape, 3, 3)


def six_from_symmetric(matrix: Tensor) -> Tensor:
    """The inverse of ``symmetric_from_six``; of any other matrix the symmetric part is read: [..., 3, 3] -> [..., 6]."""
    m = (matrix + matrix.transpose(-1, -2)) / 2
    x, y, z = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    off = [math.sqrt(2) * m[..., i, j] for i, j in ((0, 1), (0, 2), (1, 2))]
    return torch.stack([*off, (x - y) / math.sqrt(2), (x + y - 2 * z) / math.sqrt(6), x + y + z], -1)


def symmetric_exp(matrix: Tensor) -> Tensor:
    """The matrix exponential of symmetric matrices [..., 3, 3] of norm up to about 30, by scaling and squaring.

    A fixed number of small products: no eigenvalues, whose gradients fail where two are equal (every cubic cell), and no host
    synchronisation. The trace is taken out first, and float64 inside keeps the squarings from eating digits.
    """
    wide = matrix.double()
    trace = wide.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] / 3
    eye = torch.eye(3, dtype=wide.dtype, device=wide.device)
    small = (wide - trace * eye) / 2**8
    result = eye + small / 8
    for k in range(7, 0, -1):
        result = eye + small @ result / k
    for _ in range(8):
        result = result @ result
    return (result * trace.exp()).to(matrix.dtype)


def polar(lattice: Tensor) -> tuple[Tensor, Tensor]:
    """L = S R with S symmetric positive definite and R orthogonal: [..., 3, 3] -> S, R.

    S = (L L^T)^(1/2) does not change when the crystal is turned; R is the turn. Needs three independent rows.
    """
    u, s, vt = torch.linalg.svd(lattice.double())
    stretch = (u * s[..., None, :]) @ u.transpose(-1, -2)
    return stretch.to(lattice.dtype), (u @ vt).to(lattice.dtype)


def log_lattice(lattice: Tensor) -> Tensor:
    """Six numbers that describe a cell whatever its orientation: [..., 3, 3] -> [..., 6].

    They are ``six_from_symmetric`` of log S = log(L L^T) / 2, S the symmetric factor of ``polar``: five numbers of shape and
    the logarithm of the volume in Å^3. Any six numbers are some cell, with right angles at zero. The source of the
    representation is Jiao et al. (2024, DiffCSP++, proposition 1). Meant for data: no gradient flows.
    """
    with torch.no_grad():
        wide = lattice.double()
        values, vectors = torch.linalg.eigh(wide @ wide.transpose(-1, -2))
        logs = (vectors * (values.clamp_min(1e-30).log() / 2)[..., None, :]) @ vectors.transpose(-1, -2)
        return six_from_symmetric(logs).to(lattice.dtype)


def lattice_from_log(six: Tensor) -> Tensor:
    """The cell of ``log_lattice``'s numbers, in its symmetric orientation (R = 1): [..., 6] -> [..., 3, 3] in Å."""
    return symmetric_exp(symmetric_from_six(six))
