"""A tensor-product network for crystals: Cartesian geometry with all images of a pair summed, features of degree l <= 2.

What an atom hears of another is an expansion in radial Gaussians and spherical harmonics, summed over the periodic images
within a cutoff; so a small cell, in which several neighbours are images of one atom, is no special case. These lattice sums are
made once a call, for the noisy crystal and for the previous prediction. As the weights of a message are shared by the channels
of a head, neighbours are gathered by matrix products, and the Clebsch-Gordan product is taken once an atom, not once a pair.

The layer is that of Tensor Field Networks and NequIP (Thomas et al. 2018; Batzner et al. 2022), in the order of the atomic
cluster expansion and MACE (Drautz 2019; Batatia et al. 2022): first the sum over neighbours, then the product.
"""

from __future__ import annotations

import math

import torch
from e3nn import o3
from e3nn.nn import Gate
from torch import Tensor, nn
from torch.nn import functional as F

from moldiff.core.batch import AtomBatch
from moldiff.core.periodic import images, inverse, symmetric_from_six, volume
from moldiff.denoisers.base import Signature
from moldiff.denoisers.cspnet import lattice_features
from moldiff.denoisers.layers.activations import silu
from moldiff.denoisers.layers.degrees import DegreeLinear
from moldiff.denoisers.layers.embeddings import TimeEmbedding, class_features
from moldiff.denoisers.layers.pairs import PairLinear
from moldiff.denoisers.tensor_product import RootMeanSquare, eager_e3nn, hidden_irreps
from moldiff.errors import BadRequest

#: Cells on either side whose images are summed, for up to so many atoms: small cells need more.
REACH = ((2, 2), (10**9, 1))
#: About how many neighbours an atom has within the cutoff: brings sums over them to order 1.
_NEIGHBOURS = 16


def reach_of(n_atoms: Tensor) -> Tensor:
    """Cells on either side whose images count in systems of so many atoms, int64 [S]."""
    reach = torch.full_like(n_atoms, REACH[-1][1])
    for most, cells in REACH[-2::-1]:
        reach = torch.where(n_atoms <= most, torch.full_like(reach, cells), reach)
    return reach


def cutoffs(lattice: Tensor, n_atoms: Tensor, cutoff: float) -> Tensor:
    """The distance [S] in Å within which the images of ``reach_of`` are complete, at most ``cutoff``."""
    heights = inverse(lattice).square().sum(-2).rsqrt()
    return ((reach_of(n_atoms) + 0.5) * heights.amin(-1)).clamp_max(cutoff)


def gaussians(x: Tensor, n: int) -> Tensor:
    """exp(-(x - k)^2 / 2) for k = 0 .. n - 1 by three exponentials and products: [..., 1] -> [..., n].

    x must lie in 0 .. n and n be at most 24, so that no product leaves the range of float32.
    """
    middle = n // 2
    y = x - middle
    up, down = y.exp(), (-y).exp()
    out = [(y.square() * -0.5).exp()]
    for k in range(1, max(middle + 1, n - middle)):
        factor = math.exp(0.5 - k)  # exp(-k^2 / 2) / exp(-(k - 1)^2 / 2)
        if middle + k < n:
            out.append(out[-1] * (up * factor))
        if k <= middle:
            out.insert(0, out[0] * (down * factor))
    return torch.cat(out, -1)


def lattice_sums(way: Tensor, lattice: Tensor, high: Tensor, reach: int, width: float, n: int, harmonics: nn.Module) -> Tensor:
    """Radial Gaussians times harmonics, summed over images: fractional ways [S, P, 3] -> [S, P, n, D].

    ``high`` [S] is the distance in Å at which every term has smoothly gone to zero, at most n ``width``, which is the deviation
    and the spacing of the Gaussians.
    The result does not change with whole cells in ``way``, nor with the cell as long as ``high`` stays; it is smooth where two
    atoms meet.
    """
    vectors = (way - way.round())[:, :, None] @ lattice[:, None] + (images(reach, way) @ lattice)[:, None]
    square = vectors.square().sum(-1, keepdim=True)
    distance = (square + 1e-6).sqrt()
    envelope = (1 - (distance / high[:, None, None, None]).square()).clamp_min(0).square()
    radial = gaussians((distance / width).clamp_max(n), n) * envelope
    y = harmonics(vectors * (square + 0.01).rsqrt())
    sums: Tensor = radial.transpose(-1, -2) @ y
    return sums


class PeriodicLayer(nn.Module):
    """One round: pairs read both atoms, atoms gather neighbours, multiply them with directions, a gate makes it nonlinear."""

    def __init__(self, irreps: o3.Irreps, n_heads: int, pair: int, radial: int, n_mixed: int, last: bool) -> None:
        super().__init__()
        self.width, self.n_heads, self.n_degrees = irreps[0].mul, n_heads, len(irreps)
        self.groups = [mul // n_heads for mul, _ in irreps]
        self.norm = RootMeanSquare(irreps)
        self.pair_in = PairLinear(self.width, pair, radial)
        self.pair_out = None if last else nn.Linear(radial, pair)
        self.weights = nn.Linear(radial, n_heads * self.n_degrees * n_mixed)
        degrees = range(self.n_degrees)
        #: (degree of the direction, of the neighbour's feature, of their product), products of a kind side by side
        self.paths = sorted(
            ((a, b, c) for a in degrees for b in degrees for c in range(abs(a - b), a + b + 1)
             if c < self.n_degrees and (a + b + c) % 2 == 0),
            key=lambda path: path[2],
        )  # fmt: skip
        for a, b, c in self.paths:
            table = o3.wigner_3j(a, b, c) * (2 * c + 1) ** 0.5
            self.register_buffer(f"table_{a}{b}{c}", table.reshape(-1, 2 * c + 1), persistent=False)
        channels, higher = [mul for mul, _ in irreps], irreps[1:]
        products = [sum(channels[b] for _, b, c in self.paths if c == degree) for degree in degrees]
        gated = [self.width + higher.num_irreps, *channels[1:]]
        scalars, gates = o3.Irreps([(self.width, (0, 1))]), o3.Irreps([(higher.num_irreps, (0, 1))])
        self.gate = Gate(scalars, [F.silu], gates, [torch.sigmoid], higher)
        self.gather, self.own = DegreeLinear(products, gated), DegreeLinear(channels, gated)
        self.mix = DegreeLinear(channels, channels, gain=0.7)

    def forward(self, h: Tensor, p: Tensor, sums: tuple[Tensor, ...], both: Tensor) -> tuple[Tensor, Tensor]:
        """h [S, N, irreps], p [S, N, N, pair], sums a degree [S, N, N, K, 2 l + 1], both [S, N, N, 1] true for real atoms."""
        s, n, _ = h.shape
        z = self.norm(h)
        r = silu(self.pair_in(z[..., : self.width], p))
        u = (self.weights(r) * both).reshape(s, n, n, self.n_degrees, self.n_heads, -1)
        values = self._values(z)
        heard = {}
        for a, here in enumerate(sums):
            weight = (u[..., a, :, :] @ here).permute(0, 3, 1, 4, 2).flatten(2, 3)  # [S, H, N (2 l + 1), N]
            gathered = (weight @ values).reshape(s, self.n_heads, n, 2 * a + 1, -1)
            parts = gathered.split([c * (2 * b + 1) for b, c in enumerate(self.groups)], -1)
            for b, (part, channels) in enumerate(zip(parts, self.groups, strict=True)):
                x = part.unflatten(-1, (channels, 2 * b + 1)).movedim(-2, -3).flatten(-2)
                heard[a, b] = x.transpose(1, 2)  # [S, N, H, channels, (2 a + 1)(2 b + 1)]
        products = [(heard[a, b] @ getattr(self, f"table_{a}{b}{c}")).flatten(2) for a, b, c in self.paths]
        total = torch.cat(products, -1) / _NEIGHBOURS**0.5
        h = h + self.mix(self.gate(self.gather(total) + self.own(z)))
        return h, p if self.pair_out is None else p + self.pair_out(r)

    def _values(self, z: Tensor) -> Tensor:
        """Features [S, N, irreps] by heads: [S, H, N, channels of a head, degree after degree]."""
        sizes = [c * self.n_heads * (2 * b + 1) for b, c in enumerate(self.groups)]
        parts = [part.unflatten(-1, (self.n_heads, -1)) for part in z.split(sizes, -1)]
        return torch.cat(parts, -1).transpose(1, 2)


class PeriodicTensorProduct(nn.Module):
    """The network: noisy coordinates, cell and types, t and the previous prediction -> raw displacements, cell, logits.

    The same fields as ``CSPNet``: ``frac_coords`` come out as displacements that depend neither on the cell's origin nor on
    images, ``lattice`` as M L with a symmetric M. An atom has ``width`` scalars, ``width / 2`` vectors and, with ``l_max`` 2,
    ``width / 4`` tensors, in ``n_heads`` heads that share the weights of a message; a pair has ``pair`` channels, ``n_basis``
    Gaussians up to ``cutoff`` Å, mixed to ``n_mixed``.

    Another cell of the same lattice: with ``sees_basis`` (the default) the network also reads which vectors span the lattice,
    since the process of the cell noises just these, and the answer changes; without it displacements (in Å), logits and strain
    are the same exactly, where both cells are large enough for the whole cutoff (``cutoffs``).
    """

    symmetric: Tensor

    def __init__(
        self,
        signature: Signature,
        width: int = 64,
        n_layers: int = 4,
        l_max: int = 2,
        n_heads: int = 8,
        pair: int = 32,
        radial: int = 64,
        n_basis: int = 16,
        n_mixed: int = 8,
        cutoff: float = 6.0,
        sees_basis: bool = True,
    ) -> None:
        super().__init__()
        own = "periodic_tensor_product"
        if set(signature.continuous) != {"frac_coords", "lattice"}:
            found = ", ".join(signature.continuous) or "none"
            raise BadRequest(f"network {own!r} works on frac_coords and lattice, not on these continuous fields: {found}")
        if "bond_types" in signature.categorical:
            raise BadRequest(f"network {own!r} makes no bond_types")
        if l_max not in (1, 2):
            raise BadRequest(f"option 'l_max' of network {own!r} must be 1 or 2, found {l_max}")
        if width % (n_heads * 2**l_max):
            raise BadRequest(f"option 'width' of network {own!r} must be a multiple of {n_heads * 2**l_max}, found {width}")
        if n_basis > 24 or not cutoff > 0:
            raise BadRequest(f"network {own!r} needs a cutoff above 0 and an n_basis of at most 24")
        self.signature, self.width, self.sees_basis = signature, width, sees_basis
        self.cutoff, self.n_basis = float(cutoff), n_basis
        self.classes = {k: signature.classes(k) for k in signature.categorical}
        irreps = hidden_irreps(width, l_max)
        self.degrees = [2 * degree + 1 for degree in range(l_max + 1)]
        self.time = TimeEmbedding(width, max_atoms=signature.max_atoms, conditions=signature.conditions)
        self.cell_in = nn.Linear(26 if sees_basis else 2, width)
        self.node_in = nn.Linear(sum(sum(signature.categorical[k]) for k in self.classes), width)
        self.flag = nn.Parameter(torch.zeros(width))  # says that there is a previous prediction
        self.mixing = nn.Parameter(torch.randn(len(self.degrees), 2 * n_basis, n_mixed) * (2 * n_basis) ** -0.5)
        self.pair_in = nn.Linear(2 * n_basis + len(self.degrees) * n_mixed, pair)
        steps = [nn.Linear(width, width) for _ in range(n_layers)]
        with eager_e3nn():
            self.harmonics = o3.SphericalHarmonics(list(range(l_max + 1)), normalize=False, normalization="component")
            self.layers = nn.ModuleList(
                PeriodicLayer(irreps, n_heads, pair, radial, n_mixed, k == n_layers - 1) for k in range(n_layers)
            )
        channels = [mul for mul, _ in irreps]
        self.moved = DegreeLinear([n_basis] * len(channels), channels)
        # a number, a vector and with l_max 2 a tensor an atom; little is said at first
        self.said = DegreeLinear(channels, [1] * len(channels), gain=0.3)
        self.norm = RootMeanSquare(irreps)
        self.gain = nn.Linear(width, 2)
        # one layer for all that is scalar, so that nothing is without a gradient where its field is given
        self.out = nn.Linear(width, 6 + sum(self.classes.values()))
        for layer in (self.gain, *steps):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.out.weight, std=0.3 * width**-0.5)
        self.step = nn.ModuleList(steps)
        self.register_buffer("symmetric", o3.wigner_3j(1, 1, 2), persistent=False)

    def _sums(self, way: Tensor, lattice: Tensor, n_atoms: Tensor, reach: int) -> Tensor:
        high, width = cutoffs(lattice, n_atoms, self.cutoff), self.cutoff / self.n_basis
        return lattice_sums(way, lattice, high, reach, width, self.n_basis, self.harmonics)

    def _pairs(self, seen: AtomBatch, memory: AtomBatch | None, reach: int) -> Tensor:
        """Lattice sums of all pairs, the noisy crystal's and then the predicted one's: [S, N, N, 2 B, D]."""
        n = seen.n_max
        found: list[Tensor] = []
        for batch in (seen, memory):
            if batch is None:
                found.append(torch.zeros_like(found[0]))
                continue
            x = batch.frac_coords
            way = (x[:, None, :] - x[:, :, None]).flatten(1, 2)
            found.append(self._sums(way, batch.lattice, seen.n_atoms, reach).unflatten(1, (n, n)))
        return torch.cat(found, -2)

    def _nodes(self, seen: AtomBatch, memory: AtomBatch | None, reach: int) -> Tensor:
        """Features of the atoms alone: their classes, and the way to where they were predicted to be."""
        parts = []
        for name in self.classes:
            x = class_features(seen.data[name], self.signature.states(name))
            parts += [x, x.new_zeros(*x.shape[:-1], self.classes[name]) if memory is None else memory.data[name].float()]
        scalars = self.node_in(torch.cat(parts, -1))
        if memory is None:  # zeros for what nothing is known of, so that every weight has a gradient in every step
            moved = scalars.new_zeros(*scalars.shape[:-1], self.n_basis * sum(self.degrees))
        else:
            sums = self._sums(memory.frac_coords - seen.frac_coords, seen.lattice, seen.n_atoms, reach)
            moved = torch.cat([part.flatten(-2) for part in sums.split(self.degrees, -1)], -1)
        scalars = scalars + self.flag * float(memory is not None)
        way: Tensor = self.moved(moved)
        return way + F.pad(scalars, (0, way.shape[-1] - self.width))

    def forward(self, seen: AtomBatch, t: Tensor, memory: AtomBatch | None = None) -> AtomBatch:
        """seen and memory as ``NetworkDenoiser`` gives them, t [S] -> raw outputs."""
        lattice, count = seen.lattice, seen.n_atoms
        reach = int(reach_of(count.clamp_min(1)).max())
        now = lattice_features(lattice, count)
        shown = (now, torch.zeros_like(now) if memory is None else lattice_features(memory.lattice, count))
        c = self.time(t, count, seen.data.get("conditions"))
        c = c + self.cell_in(torch.cat([x if self.sees_basis else x[:, -1:] for x in shown], -1))
        h = self._nodes(seen, memory, reach)
        h = h + F.pad(c, (0, h.shape[-1] - self.width))[:, None]
        pairs = self._pairs(seen, memory, reach)
        sums = tuple((part.transpose(-1, -2) @ self.mixing[degree]).transpose(-1, -2)
                     for degree, part in enumerate(pairs.split(self.degrees, -1)))  # fmt: skip
        known = [pairs[..., 0], sums[0][..., 0], *((x.square().sum(-1) + 1e-4).sqrt() for x in sums[1:])]
        p = self.pair_in(torch.cat(known, -1))
        both = (seen.mask[:, :, None] & seen.mask[:, None])[..., None].to(p.dtype)  # own images too: not pair_mask
        for layer, step in zip(self.layers, self.step, strict=True):
            h = h + F.pad(step(c), (0, h.shape[-1] - self.width))[:, None]
            h, p = layer(h, p, sums, both)
        return self._heads(self.norm(h), c, seen)

    def _heads(self, h: Tensor, c: Tensor, seen: AtomBatch) -> AtomBatch:
        lattice, real = seen.lattice, seen.mask[..., None].to(h.dtype)
        mean = (real / real.sum(1, keepdim=True).clamp_min(1)).transpose(1, 2)
        gain = self.gain(c).exp()
        length = (volume(lattice).clamp_min(1e-3).log() / 3).exp()
        said = self.said(h)
        vector = said[..., 1:4] * (gain[:, 0] * length)[:, None, None]
        raw = self.out(h[..., : self.width])
        six, tensor = (mean @ raw[..., :6])[:, 0], (mean @ said)[:, 0]
        strain = tensor[:, :1, None] * torch.eye(3, device=h.device)
        if len(self.degrees) > 2:
            strain = strain + torch.einsum("ijk,sk->sij", self.symmetric, tensor[:, 4:])
        cell = lattice @ (strain * gain[:, 1:, None])
        if self.sees_basis:
            cell = cell + symmetric_from_six(six) @ lattice
        else:
            cell = cell + six[:, 5:, None] / 3 * lattice
        logits = (raw[..., 6:] * real).split(list(self.classes.values()), -1)
        out = {"frac_coords": vector @ inverse(lattice) * real, "lattice": cell}
        return AtomBatch(seen.mask, out | dict(zip(self.classes, logits, strict=True)))
