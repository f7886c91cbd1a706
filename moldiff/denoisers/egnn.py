"""EGNN as in EDM: the equivariant graph network on which diffusion of molecules began.

Satorras et al. 2021 (E(n)-equivariant graph networks) in the form of Hoogeboom et al. 2022 (EDM). The defaults are EDM's for
QM9: 9 layers of 256 channels, 5.3 million parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moldiff.core.batch import AtomBatch
from moldiff.core.geometry import center, pair_vectors
from moldiff.denoisers.base import Signature
from moldiff.denoisers.layers.activations import silu
from moldiff.denoisers.layers.classes import AtomLogits, ClassInputs, require_positions
from moldiff.denoisers.layers.embeddings import ConditionEmbedding
from moldiff.denoisers.layers.pairs import PairLinear


class EGNNLayer(nn.Module):
    """Messages between all pairs, then nodes, then coordinates."""

    def __init__(
        self,
        width: int,
        n_edge: int,
        n_sets: int,
        attention: bool,
        use_tanh: bool,
        coordinate_range: float,
        normalization: float,
    ) -> None:
        super().__init__()
        self.use_tanh, self.coordinate_range, self.normalization = use_tanh, coordinate_range, normalization
        self.n_sets = n_sets
        self.edge_in = PairLinear(width, n_edge, width)
        self.edge_out = nn.Linear(width, width)
        self.gate = nn.Linear(width, 1) if attention else None
        self.node_in = nn.Linear(2 * width, width)
        self.node_out = nn.Linear(width, width)
        self.move_in = PairLinear(width, n_edge, width)
        self.move_hidden = nn.Linear(width, width)
        self.move_out = nn.Linear(width, n_sets, bias=False)
        # coordinates must move little at first: updates of n_layers layers add up
        nn.init.xavier_uniform_(self.move_out.weight, gain=0.001)

    def forward(self, h: Tensor, x: Tensor, fixed: Tensor, sets: Tensor, pair_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h [S, N, C], x [S, N, 3], fixed [S, N, N, E], sets [S, N, M, 3] further coordinates, pair_mask [S, N, N, 1].

        Returns h, the step that x makes and the messages [S, N, N, C].
        """
        difference = pair_vectors(torch.cat([x[:, :, None], sets], 2))
        square = difference.square().sum(-1)
        e = torch.cat([square[..., :1], fixed], -1)
        message = silu(self.edge_out(silu(self.edge_in(h, e))))
        if self.gate is not None:
            message = message * self.gate(message).sigmoid()
        message = message * pair_mask
        heard = message.sum(2) / self.normalization
        h = h + self.node_out(silu(self.node_in(torch.cat([h, heard], -1))))
        weight = self.move_out(silu(self.move_hidden(silu(self.move_in(h, e)))))
        if self.use_tanh:
            weight = weight.tanh() * self.coordinate_range
        # one more in the divisor keeps pairs that nearly touch from throwing each other away
        weight = weight * pair_mask / ((square + 1e-8).sqrt() + 1)
        move = torch.einsum("sijm,sijmx->six", weight, difference)
        return h, move / self.normalization, message


class EGNN(nn.Module):
    """The network: scaled noisy batch, t and scaled previous prediction -> raw positions (the displacement) and logits.

    Hoogeboom et al. 2022, appendix C. E(3)-equivariant and unchanged by translation. ``normalization`` divides every sum over
    neighbours (EDM: 1 for QM9, 100 for GEOM-Drugs); ``coordinate_range`` bounds one layer's step along a pair when ``use_tanh``
    is set, over ``n_layers`` layers together. Two things go beyond EDM and leave its network as it is when they are off:
    ``self_conditioning`` adds the previous prediction's classes, distances and pair directions, and a signature with
    ``bond_types`` adds bond features to the pairs and a head on the last layer's messages.
    """

    #: Modules that ``features`` does without.
    HEADS = ("atom_logits", "bond_hidden", "bond_out")

    def __init__(
        self,
        signature: Signature,
        width: int = 256,
        n_layers: int = 9,
        attention: bool = True,
        use_tanh: bool = True,
        coordinate_range: float = 15.0,
        normalization: float = 1.0,
        self_conditioning: bool = False,
    ) -> None:
        super().__init__()
        require_positions(signature, "egnn")
        self.signature, self.self_conditioning = signature, self_conditioning
        self.inputs = ClassInputs(signature, self_conditioning)
        n_node = self.inputs.node_width + 1 + self_conditioning
        n_edge = 2 + self.inputs.pair_width + self_conditioning
        n_sets = 2 if self_conditioning else 1
        self.node_in = nn.Linear(n_node, width)
        self.condition = ConditionEmbedding(signature.conditions, width) if signature.n_conditions else None
        self.layers = nn.ModuleList(
            EGNNLayer(width, n_edge, n_sets, attention, use_tanh, coordinate_range / n_layers, normalization)
            for _ in range(n_layers)
        )
        self.atom_logits = AtomLogits(signature, width)
        if self.inputs.with_bonds:
            self.bond_hidden = nn.Linear(width, width)
            self.bond_out = nn.Linear(width, signature.classes("bond_types"))

    def forward(self, seen: AtomBatch, t: Tensor, memory: AtomBatch | None = None) -> AtomBatch:
        """seen and memory as ``NetworkDenoiser`` gives them, t [S] -> raw outputs."""
        h, moved, message, pair_mask = self._trunk(seen, t, memory)
        out = {"positions": center(moved, seen.mask), **self.atom_logits(h, seen.mask)}
        if self.inputs.with_bonds:
            both = message + message.transpose(1, 2)
            out["bond_types"] = self.bond_out(silu(self.bond_hidden(both))) * pair_mask
        return AtomBatch(seen.mask, out)

    def features(self, seen: AtomBatch, t: Tensor) -> Tensor:
        """Node channels [S, N, width] after the last layer: invariants from which properties can be read."""
        return self._trunk(seen, t, None)[0]

    def _trunk(self, seen: AtomBatch, t: Tensor, memory: AtomBatch | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        start = seen.positions
        pair_mask = seen.pair_mask[..., None].to(start.dtype)
        time = t[:, None, None].to(start.dtype).expand(-1, seen.n_max, 1)
        nodes = [*self.inputs.nodes(seen, memory), time]
        fixed = [pair_vectors(start).square().sum(-1, keepdim=True), *self.inputs.pairs(seen, memory)]
        sets = start.new_zeros(*start.shape[:2], 0, 3)
        if self.self_conditioning:
            nodes.append(start.new_full((*start.shape[:2], 1), float(memory is not None)))
            old = torch.zeros_like(start) if memory is None else memory.positions
            fixed.append(pair_vectors(old).square().sum(-1, keepdim=True))
            sets = old[:, :, None]
        h, edges, moved = self.node_in(torch.cat(nodes, -1)), torch.cat(fixed, -1), torch.zeros_like(start)
        if self.condition is not None:
            h = h + self.condition(seen.data.get("conditions"), h[:, 0])[:, None]
        message = edges
        for layer in self.layers:
            h, step, message = layer(h, start + moved, edges, sets, pair_mask)
            moved = moved + step  # summed apart from start, so that small displacements keep their digits
        return h, moved, message, pair_mask
