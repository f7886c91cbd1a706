"""The benchmark of the command line: both kinds of models, and the yardstick of crystals."""

from __future__ import annotations

import json

import pytest
import torch

from moldiff import bench
from moldiff.bench_crystals import COMPOSITIONS, PublishedCSPNet, compositions_for
from moldiff.composition import make_composition
from moldiff.denoisers.base import n_parameters
from moldiff.model_store import model_info


def test_diffcsp_s_network_has_its_size_and_its_symmetries():
    assert abs(n_parameters(PublishedCSPNet()) / 12.3e6 - 1) < 0.01
    torch.manual_seed(0)
    network = PublishedCSPNet(width=24, n_layers=2, n_frequencies=4, time=8).double()
    types, x, t = torch.randint(1, 90, (2, 5)), torch.rand(2, 5, 3).double(), torch.tensor([0.2, 0.7]).double()
    lattice = 4 * torch.eye(3).double() + torch.rand(2, 3, 3).double()
    moved, cell = network(types, x, lattice, t)
    order = torch.tensor([3, 1, 4, 0, 2])
    shifted = (x + torch.tensor([0.3, 0.7, 0.1])) % 1
    again, same = network(types[:, order], shifted[:, order], lattice, t)
    assert torch.allclose(again, moved[:, order], atol=1e-9) and torch.allclose(same, cell, atol=1e-9)


def test_compositions_to_draw_are_known_and_as_large_as_said(tiny_csp):
    sizes = [make_composition(*row).n_atoms for row in COMPOSITIONS]
    assert max(sizes) == 20 and min(sizes) == 2 and abs(sum(sizes) / len(sizes) - 9.8) < 0.1
    assert compositions_for(model_info(tiny_csp)) == [("NaCl", 1)]


@pytest.mark.parametrize("model", ["tiny_csp", "tiny_crystal", "tiny_model"])
def test_a_bench_runs(model, request, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "matmul_rate", lambda *_: 100.0)
    monkeypatch.setattr(bench, "edm_row", lambda *_: {"s_per_molecule_1000_calls": 1.0})
    monkeypatch.setattr("moldiff.bench_crystals.diffcsp_row", lambda *_: {"s_per_crystal_2000_calls": 1.0})
    kind = "molecule" if model == "tiny_model" else "crystal"
    said: list[str] = []
    bench.bench(str(request.getfixturevalue(model)), 4, 3, "cpu", None, tmp_path / "x.json", said.append)
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["calls"] and found["training"][f"{kind}s_per_s"] > 0 and found["sampling"][f"s_per_{kind}"] > 0
    assert f"mflop_per_{kind}" in found["calls"][0] and "peak memory" in said[-1]
