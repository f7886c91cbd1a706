"""The yardstick of ``moldiff bench`` for crystals, DiffCSP's network as it was published, and compositions to draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moldiff.core.periodic import torus_log
from moldiff.denoisers.base import n_parameters
from moldiff.denoisers.cspnet import fourier

if TYPE_CHECKING:
    from moldiff.model_store import ModelInfo

#: Calls a crystal that DiffCSP's sampler makes: a predictor and a corrector in each of 1000 steps.
CALLS = 2000
#: Compositions of known compounds (formula, z), 2 to 20 atoms, 9.8 in the mean, as in MP-20.
COMPOSITIONS = (
    ("NaCl", 1), ("CdS", 2), ("LiCoO2", 1), ("SrTiO3", 1), ("TiO2", 2), ("La2CuO4", 1), ("K2PtCl6", 1), ("Al2O3", 2),
    ("CaCO3", 2), ("LiNbO3", 2), ("Fe2O3", 2), ("ZrSiO4", 2), ("YBa2Cu3O7", 1), ("MgAl2O4", 2), ("CaTiO3", 4), ("Na3AlF6", 2),
)  # fmt: skip


class PublishedCSPNet(nn.Module):
    """CSPNet edge by edge: every message reads both atoms, the lattice's inner products and all Fourier features anew.

    Nothing is split and nothing is computed once for all layers. Source: Jiao et al., DiffCSP, NeurIPS 2023; sizes as there.
    """

    def __init__(
        self, width: int = 512, n_layers: int = 6, n_frequencies: int = 128, time: int = 256, n_types: int = 100
    ) -> None:
        super().__init__()
        self.n_frequencies, self.n_time = n_frequencies, time
        self.types = nn.Embedding(n_types, width)
        self.node_in = nn.Linear(width + time, width)
        edge = 2 * width + 9 + 6 * n_frequencies
        self.edges = nn.ModuleList(_two_layers(edge, width) for _ in range(n_layers))
        self.nodes = nn.ModuleList(_two_layers(2 * width, width) for _ in range(n_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(n_layers))
        self.last = nn.LayerNorm(width)
        self.coordinates, self.cell = nn.Linear(width, 3, bias=False), nn.Linear(width, 9, bias=False)

    def forward(self, types: Tensor, x: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """types [S, N], fractional x [S, N, 3], lattice [S, 3, 3], t [S] -> displacements [S, N, 3] and a cell [S, 3, 3]."""
        s, n = types.shape
        system, here, there = torch.ones(s, n, n, dtype=torch.bool, device=x.device).nonzero(as_tuple=True)
        row, column = system * n + here, system * n + there
        angle = t[:, None] * torch.exp(torch.linspace(0, -9, self.n_time // 2, device=x.device))
        times = torch.cat([angle.sin(), angle.cos()], -1)
        h = self.node_in(torch.cat([self.types(types), times[:, None].expand(s, n, -1)], -1)).flatten(0, 1)
        flat = x.flatten(0, 1)
        products = (lattice @ lattice.transpose(1, 2)).flatten(1)[system]
        for edge, node, norm in zip(self.edges, self.nodes, self.norms, strict=True):
            z = norm(h)
            way = fourier(torus_log(flat[row], flat[column]), self.n_frequencies)
            message = edge(torch.cat([z[row], z[column], products, way], -1))
            mean = torch.zeros_like(h).index_add_(0, row, message) / n
            h = h + node(torch.cat([z, mean], -1))
        h = self.last(h)
        moved = self.coordinates(h).reshape(s, n, 3)
        cell = self.cell(h.reshape(s, n, -1).mean(1)).reshape(s, 3, 3) @ lattice
        return moved, cell


def diffcsp_row(
    device: torch.device, seconds: Callable[[Callable[[], object], int], float], batch: int = 32, atoms: int = 10
) -> dict[str, Any]:
    """One call of DiffCSP's network (6 layers, 512 wide, float32), and a crystal at its 2 x 1000 calls."""
    network = PublishedCSPNet().to(device).eval()
    types, t = torch.full((batch, atoms), 8, device=device), torch.full((batch,), 0.5, device=device)
    x = torch.rand(batch, atoms, 3, generator=torch.Generator().manual_seed(0)).to(device)
    lattice = 5 * torch.eye(3, device=device).expand(batch, 3, 3)
    with torch.no_grad():
        duration = seconds(lambda: network(types, x, lattice, t), 3)
    return {
        "parameters": n_parameters(network),
        "batch": batch,
        "atoms": atoms,
        "s_per_call": round(duration, 3),
        f"s_per_crystal_{CALLS}_calls": round(duration * CALLS / batch, 2),
    }


def compositions_for(info: ModelInfo) -> list[tuple[str, int]]:
    """Those of ``COMPOSITIONS`` that a model can make; simple ones of its own elements where it knows none."""
    from ase.data import chemical_symbols

    from moldiff.composition import make_composition

    known = set(info.config.vocabulary["atom_types"])
    found = []
    for formula, z in COMPOSITIONS:
        row = make_composition(formula, z)
        if set(row.numbers) <= known and min(info.sizes) <= row.n_atoms <= max(info.sizes):
            found.append((formula, z))
    return found or [(chemical_symbols[min(known)] + str(k), 1) for k in sorted(info.sizes)]


def _two_layers(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, n_out), nn.SiLU(), nn.Linear(n_out, n_out), nn.SiLU())
