"""The matched coupling of the geodesic process: an exact way from the prior to the data, and a shorter one."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from moldiff.core.batch import AtomBatch
from moldiff.core.periodic import torus_log
from moldiff.core.rng import Streams
from moldiff.diffusion.coupling import nearest_order
from moldiff.diffusion.schedules import Straight
from moldiff.diffusion.torus import Geodesic
from moldiff.errors import BadRequest


def crystals(n_systems: int = 40, n: int = 6) -> AtomBatch:
    g = torch.Generator().manual_seed(3)
    mask = torch.arange(n) < torch.randint(2, n + 1, (n_systems, 1), generator=g)
    types = torch.randint(0, 2, (n_systems, n), generator=g)
    return AtomBatch(mask, {"frac_coords": torch.rand(n_systems, n, 3, generator=g), "atom_types": types}).masked()


def spread(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared length of the ways without their mean, [S]."""
    way = torus_log(x, y) * mask[..., None]
    way = (way - way.sum(1, keepdim=True) / mask.sum(1)[:, None, None]) * mask[..., None]
    return way.square().sum((1, 2))


def test_matched_noise_is_the_same_noise() -> None:
    x0 = crystals()
    noise = torch.rand(x0.frac_coords.shape, generator=torch.Generator().manual_seed(0))
    near = nearest_order(x0.frac_coords, noise, x0.mask, x0.atom_types)
    for s in range(x0.n_systems):
        n = int(x0.mask[s].sum())
        for kind in (0, 1):
            there = (x0.atom_types[s] == kind) & x0.mask[s]
            before, after = noise[s, there], near[s, there]
            if len(before) < 2:
                continue
            # up to one shift of the whole cell: distances between atoms of a kind are the same ones
            pairs = [torus_log(v[:, None], v[None]).square().sum(-1).flatten().sort().values for v in (before, after)]
            assert torch.allclose(*pairs, atol=1e-5)
        shift = torus_log(noise[s, :n].sum(0), near[s, :n].sum(0))
        assert torch.isfinite(shift).all()


def test_matched_ways_are_shorter() -> None:
    x0 = crystals(200)
    noise = torch.rand(x0.frac_coords.shape, generator=torch.Generator().manual_seed(1))
    near = nearest_order(x0.frac_coords, noise, x0.mask, x0.atom_types)
    before, after = (spread(x0.frac_coords, y, x0.mask).mean() for y in (noise, near))
    assert after < 0.85 * before


def test_one_round_finds_the_best_order() -> None:
    g = torch.Generator().manual_seed(5)
    x, noise = torch.rand(1, 4, 3, generator=g), torch.rand(1, 4, 3, generator=g)
    mask = torch.ones(1, 4, dtype=torch.bool)
    found = nearest_order(x, noise, mask, rounds=1)
    costs = [torus_log(x, noise[:, list(p)]).square().sum() for p in permutations(range(4))]
    assert torch.isclose(torus_log(x, found).square().sum(), torch.stack(costs).min())


def test_kinds_are_not_exchanged() -> None:
    x = torch.tensor([[[0.0, 0, 0], [0.5, 0.5, 0.5]]])
    noise = torch.tensor([[[0.5, 0.5, 0.5], [0.0, 0, 0]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert torch.allclose(nearest_order(x, noise, mask, rounds=1), x)
    assert torch.allclose(nearest_order(x, noise, mask, torch.tensor([[0, 1]]), rounds=1), noise)


def test_process_noises_along_the_matched_way() -> None:
    x0 = crystals(300)
    t = torch.full((x0.n_systems,), 0.5)
    lengths = {}
    for coupling in ("independent", "matched"):
        process = Geodesic("frac_coords", Straight(), coupling=coupling)
        xt = process.noise(x0, t, Streams.single(0))
        way = torus_log(x0.frac_coords, xt)
        assert way.abs().max() <= 0.25 + 1e-5
        assert (way * ~x0.mask[..., None]).abs().max() == 0
        lengths[coupling] = spread(x0.frac_coords, xt, x0.mask).mean()
    assert lengths["matched"] < 0.85 * lengths["independent"]


def test_at_t_1_matched_noise_covers_the_cell_evenly() -> None:
    x0 = crystals(2000, 3)
    process = Geodesic("frac_coords", Straight(), coupling="matched")
    x1 = process.noise(x0, torch.ones(x0.n_systems), Streams.single(0))
    # what no order and no origin can change: how the ways between atoms are distributed, uniform as before
    full = x0.mask.all(1)
    between = torus_log(x1[full, 0], x1[full, 1]).flatten()
    share, _ = torch.histogram(between, 8, range=(-0.5, 0.5))
    assert (share / share.sum() - 1 / 8).abs().max() < 0.02


def test_unknown_coupling_names_the_known_ones() -> None:
    with pytest.raises(BadRequest, match="independent"):
        Geodesic("frac_coords", Straight(), coupling="ot")  # type: ignore[arg-type]
