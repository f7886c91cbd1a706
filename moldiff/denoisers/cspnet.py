"""CSPNet: a message-passing network on all pairs of a crystal's atoms, periodic by Fourier features of coordinate differences.

The lineage is DiffCSP's network (Jiao et al. 2023), which FlowMM, CrystalFlow and OMatG use too: messages from
[h_i, h_j, lattice inner products, sin and cos of 2 pi k (x_j - x_i)], averaged over j. Here it is dense and padded, and the first
layer of a message is split: node terms cost N products instead of N^2, the lattice term one a crystal, and the Fourier features
are computed and brought to a thin pair channel once a call.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moldiff.core.batch import AtomBatch
from moldiff.core.periodic import images, symmetric_from_six, torus_log, volume
from moldiff.core.precision import check_precision, product_dtype
from moldiff.denoisers.base import Signature
from moldiff.denoisers.layers.activations import silu
from moldiff.denoisers.layers.embeddings import Linear, TimeEmbedding, class_features
from moldiff.errors import BadRequest

_LATTICE = 13  # numbers that ``lattice_features`` gives


def fourier(x: Tensor, n: int) -> Tensor:
    """sin and cos of 2 pi k x for k = 1 .. n: [..., 3] -> [..., 6 n]; whole numbers in x change nothing."""
    k = torch.arange(1, n + 1, device=x.device, dtype=x.dtype) * (2 * math.pi)
    angle = ((x - x.round())[..., None] * k).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], -1)


def lattice_features(lattice: Tensor, n_atoms: Tensor) -> Tensor:
    """Numbers of a cell that do not depend on its orientation, of order 1: [S, 3, 3], [S] -> [S, 13].

    The six inner products of the cell vectors, their lengths, the cosines of the angles, and the log of the volume per atom.
    """
    gram = lattice @ lattice.transpose(-1, -2)
    upper = torch.triu_indices(3, 3, device=lattice.device)
    lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    # not by way of the angles: torch.atan2 rounds the last few numbers of a tensor in another way than the rest, so that a
    # system's bits would depend on its place in the batch
    cosines = torch.stack([gram[:, i, j] / (lengths[:, i] * lengths[:, j]) for i, j in ((1, 2), (0, 2), (0, 1))], -1)
    size = (volume(lattice) / n_atoms.clamp_min(1)).clamp_min(1e-3).log()
    parts = [gram[:, upper[0], upper[1]] / 40, lengths / 5 - 1, cosines, size[:, None] - 3]
    return torch.cat(parts, -1)


def distance_features(x: Tensor, lattice: Tensor, n: int, high: float = 6.0) -> Tensor:
    """n Gaussians of distance summed over the images of each pair (27 of them): [S, N, 3], [S, 3, 3] -> [S, N, N, n].

    An atom's own images count, the atom itself does not.
    """
    way = torus_log(x[:, :, None], x[:, None, :])
    vectors = (way[..., None, :] + images(1, way)) @ lattice[:, None, None]
    d = vectors.square().sum(-1).clamp_min(1e-6).sqrt()
    d = torch.where(d < 1e-2, torch.full_like(d, 1e3), d)
    width = high / n
    centers = torch.linspace(width, high, n, device=x.device, dtype=x.dtype)
    return torch.stack([(((d - c) / width).square() * -0.5).exp().sum(-1) for c in centers], -1)


def normalize(x: Tensor) -> Tensor:
    """Layer norm without affine parameters."""
    normal: Tensor = F.layer_norm(x, x.shape[-1:])
    return normal


class Layer(nn.Module):
    """One round of messages; residual, normalised before, modulated by time, size and conditions."""

    def __init__(self, width: int, edge: int, pair: int, n_cell: int, deep: bool) -> None:
        super().__init__()
        self.deep = deep
        self.modulation = Linear(width, 2 * width, gain=0.3)
        self.nodes = Linear(width, 2 * edge, gain=0.7)
        self.cell = Linear(n_cell, edge, bias=False, gain=0.5)
        self.pair = Linear(pair, edge, bias=False, gain=0.7)
        self.second = Linear(edge, edge, gain=1.4)
        self.node_in = Linear(width + edge, width, gain=1.4)
        self.node_out = Linear(width, width, gain=0.7)

    def forward(self, h: Tensor, p: Tensor, c: Tensor, cell: Tensor, weight: Tensor) -> Tensor:
        """h [S, N, width], p [S, N, N, pair], c [S, width], cell [S, n_cell], weight [S, 1, 1, N] that averages over atoms."""
        scale, shift = self.modulation(c)[:, None].chunk(2, -1)
        z = (normalize(h) * (1 + scale) + shift).to(p.dtype)
        here, there = self.nodes(z).chunk(2, -1)
        here = here + self.cell(cell)[:, None].to(p.dtype)
        e = silu(self.pair(p) + here[:, :, None] + there[:, None])
        if self.deep:
            e = silu(self.second(e))
        # a product with the weights both masks and averages, and reads the N^2 messages once
        message = (weight.to(p.dtype) @ e).squeeze(2)
        if not self.deep:
            message = silu(self.second(message))
        update: Tensor = self.node_out(silu(self.node_in(torch.cat([z, message], -1))))
        return h + update.float()


class CSPNet(nn.Module):
    """The network: noisy coordinates, cell and types, t and the previous prediction -> raw displacements, cell, logits.

    ``frac_coords`` come out as displacements (unit noise, see ``diffusion.torus``) that do not depend on the cell's origin or on
    images; ``lattice`` as M L with a symmetric M (see ``diffusion.lattice``), which turns with the cell. It depends on which
    vectors span the lattice: an equivalent cell gives another answer, so data should be Niggli-reduced. Options:
    ``n_frequencies`` k of the Fourier features, of which ``n_memory`` see the previous prediction; ``pair`` channels that carry
    them to the layers (0: each layer reads all of them, as published); ``edge`` width of a message (0: ``width``);
    ``deep_edges`` applies a message's second layer to each pair, as published, otherwise to the average; ``n_distances`` > 0
    adds Gaussians of the distances to all images; ``precision`` of the products over pairs ("float32" or "bfloat16").
    """

    def __init__(
        self,
        signature: Signature,
        width: int = 256,
        n_layers: int = 6,
        edge: int = 0,
        pair: int = 128,
        n_frequencies: int = 64,
        n_memory: int = 8,
        n_distances: int = 0,
        deep_edges: bool = True,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        if set(signature.continuous) != {"frac_coords", "lattice"}:
            found = ", ".join(signature.continuous) or "none"
            raise BadRequest(f"network 'cspnet' works on frac_coords and lattice, not on these continuous fields: {found}")
        if "bond_types" in signature.categorical:
            raise BadRequest("network 'cspnet' makes no bond_types")
        self.signature, self.precision = signature, check_precision(precision)
        self.n_frequencies, self.n_memory, self.n_distances = n_frequencies, n_memory, n_distances
        self.classes = {k: signature.classes(k) for k in signature.categorical}
        edge = edge or width
        features = 6 * (n_frequencies + n_memory) + n_distances
        self.time = TimeEmbedding(width, max_atoms=signature.max_atoms, conditions=signature.conditions)
        self.node_in = Linear(sum(sum(signature.categorical[k]) for k in self.classes) + 6 * n_memory + 1, width)
        self.cell_in = Linear(2 * _LATTICE, width, gain=0.5)
        self.pair_in = Linear(features, pair) if pair else None
        self.layers = nn.ModuleList(Layer(width, edge, pair or features, 2 * _LATTICE, deep_edges) for _ in range(n_layers))
        # one layer for all outputs, so that none is without a gradient where its field is given
        self.out = Linear(width, 3 + 6 + sum(self.classes.values()), gain=0.3)

    def _nodes(self, seen: AtomBatch, memory: AtomBatch | None) -> Tensor:
        parts = []
        for name in self.classes:
            x = class_features(seen.data[name], self.signature.states(name))
            parts += [x, x.new_zeros(*x.shape[:-1], self.classes[name]) if memory is None else memory.data[name].float()]
        x = seen.frac_coords
        if memory is None:
            parts += [x.new_zeros(*x.shape[:-1], 6 * self.n_memory + 1)]
        else:
            parts += [fourier(memory.frac_coords - x, self.n_memory), torch.ones_like(x[..., :1])]
        return torch.cat(parts, -1)

    def _pairs(self, seen: AtomBatch, memory: AtomBatch | None) -> Tensor:
        x = seen.frac_coords
        way = x[:, None, :] - x[:, :, None]
        parts = [fourier(way, self.n_frequencies)]
        if memory is None:
            parts += [way.new_zeros(*way.shape[:-1], 6 * self.n_memory)]
        else:
            old = memory.frac_coords
            parts += [fourier(old[:, None, :] - old[:, :, None], self.n_memory)]
        if self.n_distances:
            parts += [distance_features(x, seen.lattice, self.n_distances)]
        return torch.cat(parts, -1)

    def forward(self, seen: AtomBatch, t: Tensor, memory: AtomBatch | None = None) -> AtomBatch:
        low = product_dtype(self.precision, seen.mask.device)
        count = seen.n_atoms
        now = lattice_features(seen.lattice, count)
        old = torch.zeros_like(now) if memory is None else lattice_features(memory.lattice, count)
        cell = torch.cat([now, old], -1)
        c = self.time(t, count, seen.data.get("conditions")) + self.cell_in(cell)
        h = self.node_in(self._nodes(seen, memory)) + c[:, None]
        p = self._pairs(seen, memory).to(low)
        if self.pair_in is not None:
            p = self.pair_in(p)
        real = seen.mask.to(h.dtype)
        weight = (real / real.sum(1, keepdim=True).clamp_min(1))[:, None, None]
        for layer in self.layers:
            h = layer(h, p, c, cell, weight)
        raw = self.out(normalize(h)) * real[..., None]
        strain = symmetric_from_six((weight[:, 0] @ raw[..., 3:9])[:, 0])
        out = {"frac_coords": raw[..., :3], "lattice": strain @ seen.lattice}
        logits = raw[..., 9:].split(list(self.classes.values()), -1)
        return AtomBatch(seen.mask, out | dict(zip(self.classes, logits, strict=True)))
