"""Time EDM's network, the yardstick of ``moldiff bench``: once as published, once as this library computes it.

    python benchmarks/reference_edm.py [--systems 64] [--atoms 19] [--repeats 5] [--out benchmarks/results/reference_edm.json]

Hoogeboom et al. 2022: EGNN of 9 layers and 256 channels, 1000 calls a molecule. The published form works on an edge list and
concatenates both atoms' features and the distances on every edge; ``moldiff.denoisers.egnn`` gets the same numbers from
products over atoms. Both use the same weights, and the script says how far their outputs are apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moldiff.core.batch import AtomBatch
from moldiff.core.geometry import center
from moldiff.denoisers.base import Signature, n_parameters
from moldiff.denoisers.egnn import EGNN, EGNNLayer

CALLS_PER_MOLECULE = 1000


class PublishedForm(nn.Module):
    """The same EGNN, written edge by edge as in the paper; for continuous one-hot types, without bonds or self-conditioning."""

    def __init__(self, network: EGNN) -> None:
        super().__init__()
        if network.inputs.with_bonds or network.self_conditioning:
            raise ValueError("EDM's network has neither bonds nor self-conditioning")
        self.network = network

    def forward(self, seen: AtomBatch, t: Tensor) -> AtomBatch:
        """The raw outputs for a batch whose categorical fields are float class vectors."""
        s, n = seen.mask.shape
        system, here, there = seen.pair_mask.nonzero(as_tuple=True)
        row, column = system * n + here, system * n + there
        h = torch.cat([*(seen.data[k] for k in self.network.inputs.atom_fields), t[:, None, None].expand(s, n, 1)], -1)
        h = self.network.node_in(h.flatten(0, 1))
        start = seen.positions.flatten(0, 1)
        x = start
        first = (start[row] - start[column]).square().sum(-1, keepdim=True)
        for layer in self.network.layers:
            h, x = self._layer(layer, h, x, first, row, column)
        moved = (x - start).reshape(s, n, 3)
        return AtomBatch(
            seen.mask,
            {
                "positions": center(moved, seen.mask),
                **self.network.atom_logits(h.reshape(s, n, -1), seen.mask),
            },
        )

    @staticmethod
    def _layer(layer: EGNNLayer, h: Tensor, x: Tensor, first: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        difference = x[row] - x[column]
        square = difference.square().sum(-1, keepdim=True)
        edge = torch.cat([h[row], h[column], square, first], -1)
        message = F.silu(layer.edge_out(F.silu(layer.edge_in.linear(edge))))
        if layer.gate is not None:
            message = message * layer.gate(message).sigmoid()
        heard = torch.zeros_like(h).index_add_(0, row, message) / layer.normalization
        h = h + layer.node_out(F.silu(layer.node_in(torch.cat([h, heard], -1))))
        edge = torch.cat([h[row], h[column], square, first], -1)
        weight = layer.move_out(F.silu(layer.move_hidden(F.silu(layer.move_in.linear(edge)))))
        if layer.use_tanh:
            weight = weight.tanh() * layer.coordinate_range
        move = difference / ((square + 1e-8).sqrt() + 1) * weight
        return h, x + torch.zeros_like(x).index_add_(0, row, move) / layer.normalization


def edm_network(seed: int = 0) -> EGNN:
    """EDM's network for QM9 with fresh weights: five elements as class vectors, the atomic number as one channel."""
    torch.manual_seed(seed)
    return EGNN(Signature({"atom_types": (5, 5), "charges": (1, 1)}, ("positions",))).eval()


def edm_batch(systems: int, atoms: int, seed: int = 0) -> tuple[AtomBatch, Tensor]:
    """A random noisy batch and times, as EDM's network sees them."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(systems, atoms, dtype=torch.bool)
    data = {
        "positions": center(torch.randn(systems, atoms, 3, generator=generator), mask),
        "atom_types": torch.randn(systems, atoms, 5, generator=generator),
        "charges": torch.randn(systems, atoms, 1, generator=generator),
    }
    return AtomBatch(mask, data), torch.rand(systems, generator=generator)


def seconds(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median wall-clock and median processor time of a call, after one that is not counted.

    Processor time is what a busy machine leaves comparable; with several threads it counts all of them.
    """
    call()
    wall, cpu = [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return statistics.median(wall), statistics.median(cpu)


@torch.no_grad()
def measure(systems: int = 64, atoms: int = 19, repeats: int = 5) -> dict[str, float | int | str]:
    """Seconds a call of both forms on the CPU, with the thread count and the matmul rate of the same run."""
    network = edm_network()
    published = PublishedForm(network)
    seen, t = edm_batch(systems, atoms)
    a, b = network(seen, t), published(seen, t)
    apart = max(float((a.data[k] - b.data[k]).abs().max() / b.data[k].abs().max()) for k in a.data)
    square = torch.randn(1024, 1024)
    matmul, _ = seconds(lambda: square @ square, 20)
    result: dict[str, float | int | str] = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "parameters": n_parameters(network),
        "systems": systems,
        "atoms": atoms,
        "matmul_gflop_per_s": round(2 * 1024**3 / matmul / 1e9, 1),
        "largest_relative_difference": float(f"{apart:.1e}"),
    }
    for form, call in (("published", lambda: published(seen, t)), ("ours", lambda: network(seen, t))):
        wall, cpu = seconds(call, repeats)
        result[f"{form}_s_per_call"] = round(wall, 3)
        result[f"{form}_cpu_s_per_call"] = round(cpu, 3)
        result[f"{form}_s_per_molecule_1000_calls"] = round(wall * CALLS_PER_MOLECULE / systems, 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", type=int, default=64)
    parser.add_argument("--atoms", type=int, default=19)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = json.dumps(measure(args.systems, args.atoms, args.repeats), indent=1)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
