"""Expected counts of a prediction are what is wanted, where a bounded shift can bring that about; nothing else is touched."""

from __future__ import annotations

import torch

from moldiff.core.batch import AtomBatch
from moldiff.sampling.count_shift import MOST, Count, CountShifted, shifted_bonds, shifted_types

#: Classes H, C, N, O and orders 0 to 3.
COUNTS = (Count(2), Count(3), Count(1, 3, 2), Count(1, 1, 2))
N = 9


def prediction(seed: int = 0, sizes: tuple[int, ...] = (9, 7)) -> tuple[AtomBatch, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(N) < torch.tensor(sizes)[:, None]
    bonds = torch.randn(len(sizes), N, N, 4, generator=g)
    batch = AtomBatch(mask, {
        "atom_types": 4 * torch.randn(len(sizes), N, 4, generator=g) + torch.tensor([0.0, 3.0, 0.0, 0.0]),
        "bond_types": bonds + bonds.transpose(1, 2) + torch.tensor([4.0, 0, 0, 0]),
        "positions": torch.randn(len(sizes), N, 3, generator=g),
    })  # fmt: skip
    return batch, torch.tensor([[2.0, 3.0, 3.0, 0.5], [1.0, 2.0, 2.0, torch.nan]])


def expected(batch: AtomBatch) -> torch.Tensor:
    """The expected counts [S, 4], pair by pair."""
    p = batch.atom_types.softmax(-1) * batch.mask[..., None]
    b = batch.bond_types.softmax(-1)
    out = torch.zeros(batch.n_systems, 4)
    out[:, 0], out[:, 1] = p[..., 2].sum(1), p[..., 3].sum(1)
    for i in range(N):
        for j in range(i + 1, N):
            out[:, 2] += (p[:, i, 1] * p[:, j, 3] + p[:, i, 3] * p[:, j, 1]) * b[:, i, j, 2]
            out[:, 3] += p[:, i, 1] * p[:, j, 1] * b[:, i, j, 2]
    return out


def test_expected_counts_are_the_wanted_ones():
    batch, wanted = prediction()
    before = expected(batch)
    assert (before - wanted).abs().nan_to_num().amax() > 0.5
    shifted = CountShifted(lambda xt, t, previous: batch, COUNTS, wanted)(batch, torch.full((2,), 0.5))
    known = ~wanted.isnan()
    assert (expected(shifted) - wanted).abs()[known].amax() < 0.25 * (before - wanted).abs()[known].amax()
    assert torch.equal(shifted.positions, batch.positions)
    assert torch.allclose(shifted.bond_types, shifted.bond_types.transpose(1, 2), atol=1e-5)


def test_what_is_not_wanted_stays_as_it_was():
    batch, wanted = prediction()
    none = torch.full_like(wanted, torch.nan)
    assert torch.equal(shifted_types(batch.atom_types, COUNTS, none, batch.mask, MOST), batch.atom_types)
    p = batch.atom_types.softmax(-1)
    assert torch.equal(shifted_bonds(batch.bond_types, p, COUNTS, none, batch.pair_mask, MOST), batch.bond_types)


def test_a_sure_network_is_not_overruled():
    batch, wanted = prediction()
    sure = torch.nn.functional.one_hot(torch.ones(2, N, dtype=torch.int64), 4).float() * 40
    found = shifted_types(sure, COUNTS, wanted, batch.mask, MOST)
    assert (found - sure).abs().amax() <= MOST + 1e-5
    assert (found.argmax(-1) == 1).all(), "all carbon, whatever is wanted"


def test_a_system_does_not_depend_on_its_neighbours():
    batch, wanted = prediction(sizes=(9, 9))
    both = shifted_types(batch.atom_types, COUNTS, wanted, batch.mask, MOST)
    alone = shifted_types(batch.atom_types[1:], COUNTS, wanted[1:], batch.mask[1:], MOST)
    assert torch.equal(both[1:], alone)
