"""A tensor-product network: features of degree l <= 2 on every atom, mixed along all pairs by e3nn.

The layer is that of Tensor Field Networks and NequIP (Thomas et al. 2018; Batzner et al. 2022): neighbours' features times
spherical harmonics of the pair's direction, weighted by a function of invariants of the pair. The graph is the full one, so it
suits systems of up to about 100 atoms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import e3nn
import torch
from e3nn import o3
from e3nn.nn import Gate
from torch import Tensor, nn
from torch.nn import functional as F

from moldiff.core.batch import AtomBatch
from moldiff.core.geometry import center, pair_vectors
from moldiff.denoisers.base import Signature
from moldiff.denoisers.layers.activations import silu
from moldiff.denoisers.layers.classes import AtomLogits, ClassInputs, require_positions
from moldiff.denoisers.layers.embeddings import TimeEmbedding, gaussian_basis
from moldiff.denoisers.layers.pairs import PairLinear
from moldiff.errors import BadRequest


@contextmanager
def eager_e3nn() -> Iterator[None]:
    """Build e3nn's modules as plain torch code: quicker than its TorchScript default of old, and copies and pickles."""
    before = e3nn.get_optimization_defaults()["jit_mode"]
    e3nn.set_optimization_defaults(jit_mode="eager")
    try:
        yield
    finally:
        e3nn.set_optimization_defaults(jit_mode=before)


def hidden_irreps(width: int, l_max: int) -> o3.Irreps:
    """``width`` scalars, half as many vectors and, with l_max 2, a quarter as many tensors of degree 2."""
    return o3.Irreps([(width >> degree, (degree, (-1) ** degree)) for degree in range(l_max + 1)])


class RootMeanSquare(nn.Module):
    """Divide the features of each degree by their root mean square over channels; scale each channel by a weight."""

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        self.shapes = [(mul, ir.dim) for mul, ir in irreps]
        self.weight = nn.Parameter(torch.ones(irreps.num_irreps))

    def forward(self, h: Tensor) -> Tensor:
        """h [..., irreps.dim] -> the same shape."""
        parts, scales = torch.split(h, [mul * dim for mul, dim in self.shapes], -1), self.weight.split(self._channels())
        out = []
        for part, scale, (mul, dim) in zip(parts, scales, self.shapes, strict=True):
            x = part.reshape(*part.shape[:-1], mul, dim)
            # one in the divisor of what is not scalar: small vectors stay small, so that their direction is never invented
            x = x * (x.square().mean((-1, -2), keepdim=True) + (1e-6 if dim == 1 else 1.0)).rsqrt() * scale[:, None]
            out.append(x.flatten(-2))
        return torch.cat(out, -1)

    def _channels(self) -> list[int]:
        return [mul for mul, _ in self.shapes]


def channelwise_product(irreps: o3.Irreps, harmonics: o3.Irreps) -> o3.TensorProduct:
    """Products of each feature with each harmonic into the kinds of ``irreps``, one external weight a channel and path."""
    kinds = {ir for _, ir in irreps}
    paths = [
        (mul, result, i, j)
        for i, (mul, ir) in enumerate(irreps)
        for j, (_, harmonic) in enumerate(harmonics)
        for result in ir * harmonic
        if result in kinds
    ]
    paths.sort(key=lambda path: path[1])  # like kinds side by side, which makes the following linear layer one product a kind
    return o3.TensorProduct(
        irreps,
        harmonics,
        o3.Irreps([(mul, result) for mul, result, _, _ in paths]),
        [(i, j, k, "uvu", True) for k, (_, _, i, j) in enumerate(paths)],
        shared_weights=False,
        internal_weights=False,
    )


class TensorProductLayer(nn.Module):
    """One round: pairs read both atoms, atoms gather products of neighbours and directions, a gate makes it nonlinear."""

    def __init__(self, irreps: o3.Irreps, harmonics: o3.Irreps, pair: int, radial: int) -> None:
        super().__init__()
        self.width = irreps[0].mul
        higher = irreps[1:]
        self.n_degrees = len(harmonics)
        self.norm = RootMeanSquare(irreps)
        self.pair_in = PairLinear(self.width, pair, radial)
        self.pair_out = nn.Linear(radial, pair)
        self.product = channelwise_product(irreps, harmonics)
        self.radial = nn.Linear(radial, self.product.weight_numel)
        self.blend = nn.Linear(radial, 2 * self.n_degrees)
        scalars, gates = o3.Irreps([(self.width, (0, 1))]), o3.Irreps([(higher.num_irreps, (0, 1))])
        self.gate = Gate(scalars, [F.silu], gates, [torch.sigmoid], higher)
        self.gather = o3.Linear(self.product.irreps_out, self.gate.irreps_in)
        self.own = o3.Linear(irreps, self.gate.irreps_in)
        self.mix = o3.Linear(self.gate.irreps_out, irreps)
        self.sizes = [ir.dim for _, ir in harmonics]

    def forward(self, h: Tensor, p: Tensor, y: Tensor, old: Tensor, pair_mask: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """h [S, N, irreps], p [S, N, N, pair], harmonics y and old [S, N, N, D], pair_mask [S, N, N, 1], count [S, 1, 1]."""
        s, n, _ = h.shape
        z = self.norm(h)
        r = silu(self.pair_in(z[..., : self.width], p))
        # the directions now and in the previous prediction share one product: each degree takes a learned blend of both
        here, there = self.blend(r).chunk(2, -1)
        repeats = torch.tensor(self.sizes, device=h.device)
        spread = torch.repeat_interleave(torch.arange(self.n_degrees, device=h.device), repeats)
        direction = y * (1 + here[..., spread]) + old * there[..., spread]
        weight = self.radial(r) * pair_mask
        neighbour = z[:, None].expand(s, n, n, -1)
        product = self.product(neighbour.flatten(0, 2), direction.flatten(0, 2), weight.flatten(0, 2))
        heard = product.reshape(s, n, n, -1).sum(2) / count.sqrt()
        h = h + self.mix(self.gate(self.gather(heard) + self.own(z)))
        return h, p + self.pair_out(r)


class TensorProductNetwork(nn.Module):
    """The network: scaled noisy batch, t and scaled previous prediction -> raw positions and logits.

    E(3)-equivariant (irreps with parity, so reflections too). An atom has ``width`` scalars, ``width / 2`` vectors and
    ``width / 4`` tensors of degree 2; ``l_max`` is 1 or 2; a pair has ``pair`` channels, and the function that weights the
    products ``radial``. Bond logits come from pair channels and from inner products of both atoms' vectors and tensors.
    """

    def __init__(
        self,
        signature: Signature,
        width: int = 64,
        n_layers: int = 4,
        l_max: int = 2,
        pair: int = 32,
        radial: int = 64,
        n_basis: int = 20,
        self_conditioning: bool = True,
    ) -> None:
        super().__init__()
        require_positions(signature, "tensor_product")
        if l_max not in (1, 2):
            raise BadRequest(f"option 'l_max' of network 'tensor_product' must be 1 or 2, found {l_max}")
        if width % 4:
            raise BadRequest(f"option 'width' of network 'tensor_product' must be a multiple of 4, found {width}")
        self.signature, self.self_conditioning = signature, self_conditioning
        self.width, self.n_basis = width, n_basis
        self.inputs = ClassInputs(signature, self_conditioning)
        self.time = TimeEmbedding(width, max_atoms=signature.max_atoms, conditions=signature.conditions)
        self.node_in = nn.Linear(self.inputs.node_width, width)
        self.flag = nn.Parameter(torch.zeros(width))  # says that there is a previous prediction
        self.pair_in = nn.Linear(self.inputs.pair_width + (2 if self_conditioning else 1) * n_basis, pair)
        self.step = nn.ModuleList(nn.Linear(width, width) for _ in range(n_layers))
        irreps, harmonics = hidden_irreps(width, l_max), o3.Irreps.spherical_harmonics(l_max)
        n_products = width // 8 or 1
        self.degrees = [(n_products, ir.dim) for _, ir in irreps[1:]]
        with eager_e3nn():
            self.harmonics = o3.SphericalHarmonics(harmonics, normalize=False, normalization="component")
            self.layers = nn.ModuleList(TensorProductLayer(irreps, harmonics, pair, radial) for _ in range(n_layers))
            self.vector = o3.Linear(irreps, o3.Irreps("1x1o"))
            if self.inputs.with_bonds:
                self.bond_tensors = o3.Linear(irreps, o3.Irreps([(n_products, ir) for _, ir in irreps[1:]]))
        self.norm = RootMeanSquare(irreps)
        self.frames = nn.Linear(width, 2)
        self.atom_logits = AtomLogits(signature, width)
        if self.inputs.with_bonds:
            self.bond_nodes = nn.Linear(width, radial)
            self.bond_pairs = nn.Linear(pair + l_max * n_products, radial)
            self.bond_out = nn.Linear(radial, signature.classes("bond_types"))

    def _geometry(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Radial basis [S, N, N, n_basis] and harmonics [S, N, N, D] of all pairs; both smooth where two atoms meet."""
        difference = pair_vectors(x)
        square = difference.square().sum(-1, keepdim=True)
        direction = difference * (square + 0.01).rsqrt()
        return gaussian_basis((square[..., 0] + 1e-6).sqrt(), self.n_basis, 6.0), self.harmonics(direction)

    def forward(self, seen: AtomBatch, t: Tensor, memory: AtomBatch | None = None) -> AtomBatch:
        """seen and memory as ``NetworkDenoiser`` gives them, t [S] -> raw outputs."""
        memory = memory if self.self_conditioning else None
        mask, noisy = seen.mask, center(seen.positions, seen.mask)
        pair_mask = seen.pair_mask[..., None].to(noisy.dtype)
        c = self.time(t.to(noisy.dtype), seen.n_atoms, seen.data.get("conditions"))
        basis, y = self._geometry(noisy)
        old, old_basis, old_y = torch.zeros_like(noisy), torch.zeros_like(basis), torch.zeros_like(y)
        scalars = self.node_in(torch.cat(self.inputs.nodes(seen, memory), -1))
        if memory is not None:
            old, scalars = center(memory.positions, mask), scalars + self.flag
            old_basis, old_y = self._geometry(old)
        edges = [*self.inputs.pairs(seen, memory), basis, *([old_basis] if self.self_conditioning else [])]
        p = self.pair_in(torch.cat(edges, -1))
        h = F.pad(scalars, (0, self.vector.irreps_in.dim - self.width))
        count = seen.n_atoms.reshape(-1, 1, 1).to(noisy.dtype)
        for layer, step in zip(self.layers, self.step, strict=True):
            h = h + F.pad(step(c), (0, h.shape[-1] - self.width))[:, None]
            h, p = layer(h, p, y, old_y, pair_mask, count)
        return self._heads(self.norm(h), p, noisy, old, seen, pair_mask)

    def _heads(self, h: Tensor, p: Tensor, noisy: Tensor, old: Tensor, seen: AtomBatch, pair_mask: Tensor) -> AtomBatch:
        scalars = h[..., : self.width]
        frames = self.frames(scalars)
        positions = self.vector(h) + frames[..., :1] * noisy + frames[..., 1:] * old
        out = {"positions": center(positions, seen.mask), **self.atom_logits(scalars, seen.mask)}
        if self.inputs.with_bonds:
            parts = torch.split(self.bond_tensors(h), [mul * dim for mul, dim in self.degrees], -1)
            products = []
            for part, (mul, dim) in zip(parts, self.degrees, strict=True):
                x = part.reshape(*part.shape[:-1], mul, dim)
                products.append(torch.einsum("siud,sjud->siju", x, x))
            a = self.bond_nodes(scalars)
            hidden = self.bond_pairs(torch.cat([p + p.transpose(1, 2), *products], -1)) + a[:, :, None] + a[:, None]
            out["bond_types"] = self.bond_out(silu(hidden)) * pair_mask
        return AtomBatch(seen.mask, out)
