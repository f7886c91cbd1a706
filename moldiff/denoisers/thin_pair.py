"""ThinPair: the fast flagship for molecules, an E(3)-equivariant transformer with thin pair features.

Nodes are wide (192), pairs thin (32), and each node owns K coordinate sets: learned mixtures of the noisy and the previously
predicted positions, moved by invariant weights along pair vectors. All arithmetic that grows with N^2 is either thin or a
matrix product, so that most of the time goes into products that run near the machine's peak.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moldiff.core.batch import AtomBatch
from moldiff.core.geometry import center
from moldiff.core.precision import check_precision, product_dtype
from moldiff.denoisers.base import Signature
from moldiff.denoisers.layers.activations import silu
from moldiff.denoisers.layers.embeddings import Linear, TimeEmbedding, class_features, gaussian_basis


def set_distances(x: Tensor) -> Tensor:
    """Distances inside each coordinate set, by the Gram matrix: x [S, K, N, 3] -> [S, K, N, N]; the diagonal is 1."""
    square = x.square().sum(-1)
    d2 = square[..., :, None] + square[..., None, :] - 2 * x @ x.transpose(-1, -2)
    eye = torch.eye(x.shape[-2], device=x.device, dtype=torch.bool)
    return torch.where(eye, torch.ones_like(d2), d2.clamp_min(1e-6)).sqrt()


def octaves(d: Tensor, n: int) -> Tensor:
    """sin and cos of pi 2^k d for k < n by angle doubling (one sine for all): d [...] -> [..., 2 n].

    Gaussians of bond width are blind to the hundredths of an Å that decide strain; these waves resolve them.
    """
    sin, cos = [torch.sin(math.pi * d)], [torch.cos(math.pi * d)]
    for _ in range(n - 1):
        s, c = sin[-1], cos[-1]
        sin.append(2 * s * c)
        cos.append(1 - 2 * s * s)
    return torch.stack(sin + cos, -1)


def normalize(x: Tensor) -> Tensor:
    """Layer norm without affine parameters."""
    return F.layer_norm(x, x.shape[-1:])


class Layer(nn.Module):
    """One round: pairs read nodes and distances, nodes attend with pair biases, coordinate sets move, nodes think."""

    def __init__(self, width: int, n_heads: int, pair: int, pair_hidden: int, n_sets: int, ffn: int) -> None:
        super().__init__()
        self.n_heads, self.n_sets = n_heads, n_sets
        self.modulation = Linear(width, 4 * width, gain=0.3)
        self.pair_nodes = Linear(width, 2 * pair_hidden, bias=False)
        self.pair_in = Linear(pair + 2 * n_sets, pair_hidden)
        self.pair_out = Linear(pair_hidden, pair, gain=0.5)
        self.qkv = Linear(width, 3 * width)
        self.pair_read = Linear(pair, n_heads + n_sets)
        self.pair_value = Linear(n_heads * pair, width, gain=0.5)
        self.attention_out = Linear(width, width, gain=0.5)
        self.set_mix = Linear(n_sets, n_sets, bias=False, gain=0.3)
        self.set_gate = Linear(width, n_sets)
        self.set_gain = Linear(width, n_sets, zero=True)
        self.norm_in = Linear(2 * n_sets, width, gain=0.5)
        self.ffn_in = Linear(width, 2 * ffn)
        self.ffn_out = Linear(ffn, width, gain=0.5)

    def forward(
        self, h: Tensor, e: Tensor, x: Tensor, c: Tensor, bias: Tensor | None, count: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h [S, N, width], e [S, N, N, pair], x [S, K, N, 3], c [S, width], bias [S, 1, 1, N] or None, count [S, 1, 1, 1]."""
        s, n, width = h.shape
        low = e.dtype
        scale1, shift1, scale2, shift2 = self.modulation(c)[:, None, :].chunk(4, -1)
        z = (normalize(h) * (1 + scale1) + shift1).to(low)
        # pairs: thin update from both nodes and from the distances in every coordinate set
        d = set_distances(x)
        near = 1 / (1 + d)
        geometry = torch.cat([d.clamp_max(30.0), near], 1).permute(0, 2, 3, 1).to(low)
        a, b = self.pair_nodes(z).chunk(2, -1)
        hidden = self.pair_in(torch.cat([e, geometry], -1)).add_(a[:, :, None]).add_(b[:, None, :])
        # hardswish: a quarter of silu's time on N^2 elements
        e = e + self.pair_out(F.hardswish(hidden, inplace=not torch.is_grad_enabled()))
        read = self.pair_read(e).permute(0, 3, 1, 2)
        # nodes: attention whose logits are content plus pair bias; values are node channels and the thin pairs themselves
        q, k, v = self.qkv(z).reshape(s, n, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5) + read[:, : self.n_heads]
        if bias is not None:
            logits = logits + bias
        attention = logits.softmax(-1)
        mixed = (attention @ v).transpose(1, 2).reshape(s, n, width)
        from_pairs = (attention.transpose(1, 2) @ e).reshape(s, n, -1)
        h = h + self.attention_out(mixed).float() + self.pair_value(from_pairs).float()
        # coordinate sets: sum_j w_ij (x_i - x_j) / (1 + d_ij), written as two matrix products
        # the same displacement asks for an answer that grows as 1 / noise, so t sets the gain of every coordinate set
        w = read[:, self.n_heads :].float() * near * (self.set_gain(c).exp()[:, :, None, None] / count)
        if bias is not None:
            w = w * (bias == 0)
        move = x * w.sum(-1, keepdim=True) - w @ x
        move = move + self.set_mix(move.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + move * torch.tanh(self.set_gate(z).float()).transpose(1, 2)[..., None]
        norms = torch.cat([move.square().sum(-1), x.square().sum(-1)], 1).add(1e-6).sqrt().transpose(1, 2)
        h = h + self.norm_in(norms.clamp_max(30.0).to(low)).float()
        z = (normalize(h) * (1 + scale2) + shift2).to(low)
        gate, value = self.ffn_in(z).chunk(2, -1)
        h = h + self.ffn_out(silu(gate) * value).float()
        return h, e, x


class ThinPair(nn.Module):
    """The network: scaled noisy batch, t and scaled previous prediction -> raw positions and logits.

    E(3)-equivariant (reflections included) and permutation-equivariant; positions must be centred, which zero-mean diffusion
    does. ``precision`` is that of the wide products ("float32", or "bfloat16" where the hardware has it); geometry is always
    float32. With ``given`` the network also reads ``given_atoms`` and ``given_pairs``: which entries of a batch are known.
    """

    #: Modules that ``features`` does without.
    HEADS = ("node_out", "set_out", "out_gain", "bond_nodes", "bond_hidden", "bond_out")

    def __init__(
        self,
        signature: Signature,
        width: int = 192,
        n_layers: int = 6,
        n_heads: int = 8,
        pair: int = 32,
        pair_hidden: int = 64,
        n_sets: int = 8,
        ffn: int = 384,
        n_basis: int = 20,
        n_fourier: int = 6,
        precision: str = "float32",
        given: bool = False,
    ) -> None:
        super().__init__()
        self.signature, self.n_basis, self.n_fourier, self.n_sets = signature, n_basis, n_fourier, n_sets
        self.precision = check_precision(precision)
        self.atom_fields = [k for k in signature.categorical if k != "bond_types"]
        self.with_bonds = "bond_types" in signature.categorical
        self.time = TimeEmbedding(width, max_atoms=signature.max_atoms, conditions=signature.conditions)
        node_in = sum(sum(signature.categorical[k]) for k in self.atom_fields)
        pair_in = sum(signature.categorical["bond_types"]) if self.with_bonds else 0
        self.node_in = Linear(node_in, width)
        self.flag = nn.Parameter(torch.zeros(width))  # says that there is a previous prediction
        self.pair_in = Linear(pair_in + 2 * n_basis + 4 * n_fourier, pair)
        # what is known, not noise: said of an atom's classes, of its place and of a bond; nothing at first
        self.given_atoms = nn.Parameter(torch.zeros(2, width)) if given else None
        self.given_pairs = nn.Parameter(torch.zeros(pair)) if given else None
        # fine features only help once the noise is finer than their wavelength: t decides how much of each is let in
        self.fourier_gate = Linear(width, n_fourier, zero=True) if n_fourier else None
        self.set_in = nn.Parameter(torch.randn(n_sets, 2) * 0.5)
        self.layers = nn.ModuleList(Layer(width, n_heads, pair, pair_hidden, n_sets, ffn) for _ in range(n_layers))
        self.node_out = Linear(width, sum(signature.classes(k) for k in self.atom_fields), gain=0.3)
        self.set_out = Linear(width, 2 * n_sets, gain=0.3)
        self.out_gain = Linear(width, 2 * n_sets, zero=True)
        if self.with_bonds:
            self.bond_nodes = Linear(width, pair_hidden)
            self.bond_hidden = Linear(pair, pair_hidden)
            self.bond_out = Linear(pair_hidden, signature.classes("bond_types"), gain=0.3)

    def forward(self, seen: AtomBatch, t: Tensor, memory: AtomBatch | None = None) -> AtomBatch:
        h, e, x, both, c, low = self._trunk(seen, t, memory)
        return self._heads(h, e, x, both, c, seen, low)

    def features(self, seen: AtomBatch, t: Tensor) -> Tensor:
        """Node channels [S, N, width] after the last layer: invariants from which properties can be read."""
        return self._trunk(seen, t, None)[0]

    def _trunk(
        self, seen: AtomBatch, t: Tensor, memory: AtomBatch | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, torch.dtype]:
        low = product_dtype(self.precision, seen.mask.device)
        mask, sig = seen.mask, self.signature
        padded = not bool(mask.all())
        noisy = seen.positions
        old = torch.zeros_like(noisy) if memory is None else center(memory.positions, mask)
        nodes: list[Tensor] = []
        pairs: list[Tensor] = []
        for name in (*self.atom_fields, *(("bond_types",) if self.with_bonds else ())):
            out = pairs if name == "bond_types" else nodes
            out.append(class_features(seen.data[name], sig.states(name)))
            lead = out[-1].shape[:-1]
            blank = torch.zeros(*lead, sig.classes(name), device=noisy.device)
            out.append(blank if memory is None else memory.data[name])
        conditions = seen.data.get("conditions")
        c = self.time(t, seen.n_atoms, conditions)
        h = self.node_in(torch.cat(nodes, -1)) + c[:, None]
        if memory is not None:
            h = h + self.flag
        both = torch.stack([noisy, old], 1)
        d = set_distances(both)
        basis = gaussian_basis(d, self.n_basis, 6.0)
        pairs += [basis[:, 0], basis[:, 1] if memory is not None else torch.zeros_like(basis[:, 1])]
        if self.fourier_gate is not None:
            # a sigmoid by tanh: torch.sigmoid rounds the last few numbers of a tensor in another way than the rest (AVX tails),
            # so that a system's bits would depend on its place in the batch
            gate = 0.5 + 0.5 * torch.tanh(0.5 * self.fourier_gate(c))
            waves = octaves(d, self.n_fourier) * gate.repeat(1, 2)[:, None, None, None]
            pairs += [waves[:, 0], waves[:, 1] if memory is not None else torch.zeros_like(waves[:, 1])]
        e = self.pair_in(torch.cat(pairs, -1).to(low))
        if self.given_atoms is not None and self.given_pairs is not None and "given_atoms" in seen:
            classes, place = seen.given_atoms[..., :1], seen.given_atoms[..., 1:]
            h = h + classes * self.given_atoms[0] + place * self.given_atoms[1]
            e = e + (seen.given_pairs[..., None] * self.given_pairs).to(low)
        x = torch.einsum("kp,spnx->sknx", self.set_in, both)
        count = seen.n_atoms.reshape(-1, 1, 1, 1).float()
        bias = None
        if padded:
            bias = torch.zeros(mask.shape, device=noisy.device, dtype=low).masked_fill(~mask, -1e4)[:, None, None]
        for layer in self.layers:
            h, e, x = layer(h, e, x, c, bias, count)
        return h, e, x, both, c, low

    def _heads(self, h: Tensor, e: Tensor, x: Tensor, both: Tensor, c: Tensor, seen: AtomBatch, low: torch.dtype) -> AtomBatch:
        mask, sig = seen.mask, self.signature
        z = normalize(h)
        weights = (self.set_out(z) * self.out_gain(c).exp()[:, None]).transpose(1, 2)[..., None]
        start = torch.einsum("kp,spnx->sknx", self.set_in, both)
        positions = (torch.cat([x - start, x], 1) * weights).sum(1)
        out = {"positions": center(positions, mask)}
        logits = self.node_out(z)
        for name, part in zip(self.atom_fields, logits.split([sig.classes(k) for k in self.atom_fields], -1), strict=True):
            out[name] = part * mask[..., None]
        if self.with_bonds:
            a = self.bond_nodes(z.to(low))
            hidden = self.bond_hidden(e + e.transpose(1, 2)) + a[:, :, None] + a[:, None, :]
            out["bond_types"] = self.bond_out(F.hardswish(hidden)).float() * seen.pair_mask[..., None]
        return AtomBatch(mask, out)
