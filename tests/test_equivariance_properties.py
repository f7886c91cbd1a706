"""Any turn, mirror, renumbering and padding of any small system: the networks answer alike."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moldiff.denoisers.base import Signature
from moldiff.denoisers.registry import build_network
from moldiff.testing.denoisers import perturb
from moldiff.testing.symmetries import (
    exact_rotations,
    pad,
    permute,
    random_batch,
    random_order,
    random_prediction,
    rotate,
)

SIGNATURE = Signature({"atom_types": (4, 4), "bond_types": (4, 4)}, ("positions",))
TINY = {
    "thin_pair": {"width": 16, "n_layers": 1, "n_heads": 2, "pair": 8, "pair_hidden": 8, "n_sets": 3, "ffn": 16, "n_basis": 6},
    "egnn": {"width": 12, "n_layers": 2, "self_conditioning": True},
    "tensor_product": {"width": 8, "n_layers": 1, "pair": 6, "radial": 8, "n_basis": 6},
}
sizes = st.lists(st.integers(1, 6), min_size=1, max_size=3)
seeds = st.integers(0, 2**31)


@functools.cache
def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return perturb(build_network(name, SIGNATURE, **TINY[name]), 0.05).eval()


@pytest.mark.parametrize("name", list(TINY))
@settings(max_examples=15, deadline=None)
@given(sizes=sizes, seed=seeds, mirror=st.booleans(), remember=st.booleans(), extra=st.integers(0, 3))
def test_all_symmetries_at_once(name: str, sizes: list[int], seed: int, mirror: bool, remember: bool, extra: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = random_batch(SIGNATURE, sizes, generator)
    t = torch.rand(batch.n_systems, generator=generator)
    turn = exact_rotations(batch.n_systems, generator) * (-1 if mirror else 1)
    order = random_order(batch, generator)
    with torch.no_grad():
        previous = random_prediction(network(name)(batch, t, None), generator) if remember else None

        def moved(x):
            return pad(permute(rotate(x, turn), order), x.n_max + extra, generator)

        wanted = network(name)(batch, t, previous)
        got = network(name)(moved(batch), t, None if previous is None else moved(previous))
    for field, value in pad(permute(rotate(wanted, turn), order), batch.n_max + extra).masked().data.items():
        error = (got.masked().data[field] - value).abs().max()
        assert error <= 5e-5 * value.abs().max().clamp_min(0.01), (field, float(error))


@settings(max_examples=25, deadline=None)
@given(sizes=sizes, seed=seeds, extra=st.integers(0, 3))
def test_moving_there_and_back_changes_nothing(sizes: list[int], seed: int, extra: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    crystal = Signature(SIGNATURE.categorical, ("positions", "frac_coords", "lattice"), n_conditions=1)
    batch = random_batch(crystal, sizes, generator)
    order, turn = random_order(batch, generator), exact_rotations(batch.n_systems, generator)
    there = pad(permute(rotate(batch, turn), order), batch.n_max + extra, generator)
    back = order.argsort(1)
    again = permute(rotate(there, turn.transpose(1, 2)), _wide(back, there.n_max))
    for one, same in zip(again.to_list(), batch.to_list(), strict=True):
        for field, value in one.data.items():
            torch.testing.assert_close(value, same.data[field], rtol=1e-5, atol=1e-5, equal_nan=True)
    # inner products of vectors and of cell vectors do not turn
    torch.testing.assert_close(
        there.lattice @ there.lattice.transpose(1, 2), batch.lattice @ batch.lattice.transpose(1, 2), rtol=1e-4, atol=1e-4
    )


def _wide(order: torch.Tensor, n_max: int) -> torch.Tensor:
    rest = torch.arange(order.shape[1], n_max).expand(order.shape[0], -1)
    return torch.cat([order, rest], 1)
