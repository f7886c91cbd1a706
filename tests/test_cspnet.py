"""CSPNet's promises, faults planted in it, and the crystal models of configs/ put together: a training step and samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from moldiff.assemble import build_denoiser, build_vocabulary
from moldiff.config import load_config
from moldiff.core.batch import AtomBatch
from moldiff.core.geometry import random_rotations
from moldiff.core.periodic import volume
from moldiff.core.rng import Streams
from moldiff.core.vocabulary import Vocabulary
from moldiff.data.batches import BucketBatches
from moldiff.denoisers import cspnet
from moldiff.denoisers.base import NetworkDenoiser, Signature
from moldiff.denoisers.cspnet import CSPNet, distance_features
from moldiff.denoisers.registry import build_network
from moldiff.errors import BadRequest
from moldiff.sampling.grids import make_grid
from moldiff.sampling.loop import sample
from moldiff.sampling.registry import make_sampler
from moldiff.testing import CheckFailed, check_denoiser

CONFIGS = Path(__file__).parents[1] / "configs"
SIGNATURE = Signature({"atom_types": (6, 5)}, ("frac_coords", "lattice"), 1, 20)


def network(**options: object) -> CSPNet:
    torch.manual_seed(0)
    return CSPNet(SIGNATURE, width=32, n_layers=2, n_frequencies=12, **{"pair": 16, **options})


@pytest.mark.parametrize(
    "options",
    [{}, {"pair": 0, "deep_edges": False, "edge": 16}, {"n_distances": 8}, {"precision": "bfloat16"}],
    ids=["as published but thin", "shallow edges", "distances", "bfloat16"],
)
def test_cspnet_keeps_every_promise(options: dict[str, object]) -> None:
    check_denoiser(network(**options), SIGNATURE, raw=True, tolerance=5e-2 if "precision" in options else 1e-4)


def test_another_cell_of_the_same_lattice_gives_another_answer() -> None:
    """Documented: the network sees the vectors that span the cell, so that cells must be reduced the same way."""
    g = torch.Generator().manual_seed(0)
    lattice = 4 * torch.eye(3).expand(2, 3, 3) + 0.5 * torch.randn(2, 3, 3, generator=g)
    x = torch.rand(2, 4, 3, generator=g)
    shear = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]])
    same = {"lattice": shear @ lattice, "frac_coords": x @ torch.linalg.inv(shear)}
    torch.testing.assert_close(x @ lattice, same["frac_coords"] @ same["lattice"], rtol=1e-4, atol=1e-4)
    mask, types = torch.ones(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.int64)
    first = AtomBatch(mask, {"frac_coords": x, "lattice": lattice, "atom_types": types})
    net, t = network(), torch.full((2,), 0.5)
    with torch.no_grad():
        one, two = net(first, t), net(first.replace(**same), t)
    moves = one.frac_coords @ lattice, two.frac_coords @ same["lattice"]
    assert float((moves[0] - moves[1]).abs().max()) > 1e-2


def test_distance_features_know_the_images() -> None:
    """A chain of atoms 2 Å apart, as one atom in a cell and as two in a double cell, has the same distances."""
    one = distance_features(torch.zeros(1, 1, 3), torch.diag(torch.tensor([2.0, 20, 20]))[None], 6, 2.4)
    two = distance_features(torch.tensor([[[0.0, 0, 0], [0.5, 0, 0]]]), torch.diag(torch.tensor([4.0, 20, 20]))[None], 6, 2.4)
    torch.testing.assert_close(one[0, 0, 0], two[0, 0].sum(0), rtol=1e-3, atol=1e-3)
    assert float(one.max()) == pytest.approx(2, abs=0.1)  # two neighbours, at 2 Å


def _plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    right = {name: getattr(cspnet, name) for name in ("fourier", "lattice_features", "distance_features", "symmetric_from_six")}

    def fourier(x: Tensor, n: int) -> Tensor:
        return right["fourier"](x / 2 if fault == "half a period" else x.abs(), n)

    def features(lattice: Tensor, n_atoms: Tensor) -> Tensor:
        return right["lattice_features"](lattice.transpose(1, 2), n_atoms)  # L^T L instead of L L^T

    def distances(x: Tensor, lattice: Tensor, n: int, high: float = 6.0) -> Tensor:
        d = ((x[:, None] - x[:, :, None]) @ lattice[:, None]).square().sum(-1, keepdim=True).add(1e-6).sqrt()  # no minimum image
        return (-(d - torch.linspace(0, high, n)).square()).exp()

    planted = {"half a period": ("fourier", fourier), "columns for rows": ("lattice_features", features),
               "no minimum image": ("distance_features", distances)}  # fmt: skip
    name, wrong = planted[fault]
    monkeypatch.setattr(cspnet, name, wrong)


@pytest.mark.parametrize(
    ("fault", "promise"), [("half a period", "images"), ("columns for rows", "rotation"), ("no minimum image", "images")]
)
def test_planted_periodic_faults_are_found(monkeypatch: pytest.MonkeyPatch, fault: str, promise: str) -> None:
    _plant(monkeypatch, fault)
    with pytest.raises(CheckFailed, match=promise):
        check_denoiser(network(n_distances=4), SIGNATURE, raw=True)


class SeesTheOrigin(CSPNet):
    def forward(self, seen: AtomBatch, t: Tensor, memory: AtomBatch | None = None) -> AtomBatch:
        out = super().forward(seen, t, memory)
        return out.replace(frac_coords=out.frac_coords + 0.1 * (seen.frac_coords * 6.2832).sin())


class CellNotTurned(CSPNet):
    def forward(self, seen: AtomBatch, t: Tensor, memory: AtomBatch | None = None) -> AtomBatch:
        out = super().forward(seen, t, memory)
        return out.replace(lattice=out.lattice @ torch.linalg.inv(seen.lattice))


class AveragesPadding(CSPNet):
    def forward(self, seen: AtomBatch, t: Tensor, memory: AtomBatch | None = None) -> AtomBatch:
        return AtomBatch(seen.mask, super().forward(AtomBatch(torch.ones_like(seen.mask), seen.data), t, memory).data)


@pytest.mark.parametrize(
    ("cls", "promise"), [(SeesTheOrigin, "translation"), (CellNotTurned, "rotation"), (AveragesPadding, "padding")]
)
def test_planted_network_faults_are_found(cls: type[CSPNet], promise: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(CheckFailed, match=promise):
        check_denoiser(cls(SIGNATURE, width=32, n_layers=1, n_frequencies=8, pair=8), SIGNATURE, raw=True)


def test_wrong_fields_and_options_are_one_sentence() -> None:
    with pytest.raises(BadRequest, match="works on frac_coords and lattice, not on these continuous fields: positions"):
        build_network("cspnet", Signature({"atom_types": (5, 5)}, ("positions",)))
    with pytest.raises(BadRequest, match="makes no bond_types"):
        build_network("cspnet", Signature({"atom_types": (5, 5), "bond_types": (4, 4)}, ("frac_coords", "lattice")))
    with pytest.raises(BadRequest, match="float32 or bfloat16"):
        build_network("cspnet", SIGNATURE, precision="half")


# --- whole models ---


def assembled(name: str) -> tuple[NetworkDenoiser, Vocabulary]:
    small = ["network.width=32", "network.n_layers=2", "network.pair=16", "network.n_frequencies=8", "network.precision=float32"]
    config = load_config(CONFIGS / f"{name}.yaml", small)
    torch.manual_seed(0)
    return build_denoiser(config), build_vocabulary(config)


def columns(sizes: list[int]) -> dict[str, Tensor]:
    """A store's columns: crystals of random places, cells turned at random."""
    g, m, a = torch.Generator().manual_seed(1), len(sizes), sum(sizes)
    cells = (torch.eye(3) + 0.1 * torch.randn(m, 3, 3, generator=g)) * (20.0 * torch.tensor(sizes)).pow(1 / 3)[:, None, None]
    return {
        "n_atoms": torch.tensor(sizes, dtype=torch.int32),
        "atom_types": torch.randint(1, 10, (a,), generator=g).to(torch.uint8),
        "frac_coords": torch.rand(a, 3, generator=g),
        "lattice": cells @ random_rotations(m, g),
    }


def clean(vocabulary: Vocabulary) -> AtomBatch:
    fields = ("frac_coords", "lattice", "atom_types")
    return BucketBatches(columns([1, 3, 4, 4, 2, 6]), vocabulary, 6, bucket_width=6, fields=fields).batch(0)


@pytest.mark.parametrize("name", ["mp20-csp", "mp20"])
@pytest.mark.parametrize("remembering", [False, True])
def test_a_training_step_reaches_every_weight(name: str, remembering: bool) -> None:
    """None is left without a gradient (data parallelism would wait for it), also where the types are given."""
    denoiser, vocabulary = assembled(name)
    x0, rng = clean(vocabulary), Streams.single(0)
    assert sorted(x0.n_atoms.tolist()) == [1, 2, 3, 4, 4, 6] and x0.n_max == 6
    t = torch.linspace(0.05, 1, 6)
    xt = denoiser.diffusion.noise(x0, t, rng)
    previous = None
    if remembering:
        with torch.no_grad():
            previous = denoiser(xt, t)
    losses = denoiser.diffusion.loss(denoiser(xt, t, previous), x0, xt, t)
    assert set(losses) == set(denoiser.diffusion.processes) and all(bool(v.isfinite().all()) for v in losses.values())
    denoiser.diffusion.total(losses).mean().backward()
    for weight in denoiser.parameters():
        assert weight.grad is not None and bool(weight.grad.isfinite().all())


@pytest.mark.parametrize("name", ["mp20-csp", "mp20"])
def test_turning_a_crystal_changes_no_loss(name: str) -> None:
    denoiser, vocabulary = assembled(name)
    x0, t = clean(vocabulary), torch.linspace(0.1, 0.9, 6)
    turned = x0.replace(lattice=x0.lattice @ random_rotations(6, torch.Generator().manual_seed(5)))

    def total(x: AtomBatch) -> Tensor:
        xt = denoiser.diffusion.noise(x, t, Streams.single(3))
        with torch.no_grad():
            return denoiser.diffusion.total(denoiser.diffusion.loss(denoiser(xt, t), x, xt, t))

    torch.testing.assert_close(total(x0), total(turned), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["mp20-csp", "mp20"])
def test_samples_are_crystals_whatever_the_network_says(name: str) -> None:
    denoiser, vocabulary = assembled(name)
    x0, diffusion = clean(vocabulary), denoiser.diffusion
    given = [] if name == "mp20" else ["atom_types"]

    def draw(like: AtomBatch, rng: Streams, sampler: str) -> AtomBatch:
        return sample(denoiser, diffusion, like, rng, make_sampler(sampler), make_grid("uniform", 6, diffusion.schedule))

    for sampler in ("ddim", "ddpm", "dpm_solver"):
        made = draw(x0.select(given), Streams.of(0, range(6)), sampler)
        assert made.lattice.shape == (6, 3, 3) and bool((volume(made.lattice) > 0.1).all())
        assert bool(((made.frac_coords >= 0) & (made.frac_coords < 1)).all()) and not bool(made.frac_coords[~made.mask].any())
        assert int(vocabulary.decode(made).atom_types[made.mask].min()) >= 1
        if given:
            assert torch.equal(made.atom_types, x0.atom_types)
        alone = draw(x0.select(given)[2:3], Streams.of(0, [2]), sampler)
        torch.testing.assert_close(alone.lattice, made.lattice[2:3], rtol=1e-3, atol=1e-3)


def test_buckets_of_neighbouring_sizes_see_every_crystal_once_an_epoch() -> None:
    sizes = [1, 2, 3, 4, 5, 6, 7, 8] * 5
    stored, vocabulary = columns(sizes), Vocabulary({"atom_types": range(1, 11)})
    fields = ("frac_coords", "lattice", "atom_types")
    exact, joined = (BucketBatches(stored, vocabulary, 8, bucket_width=w, fields=fields) for w in (1, 3))
    assert joined.per_epoch < exact.per_epoch
    seen = [i for step in range(joined.per_epoch) for i in joined.indices(step).tolist()]
    assert sorted(seen) == list(range(40))
    for step in range(joined.per_epoch):
        batch, index = joined.batch(step), joined.indices(step)
        assert batch.n_max in (3, 6, 8) and int(batch.n_atoms.min()) > batch.n_max - 3
        for row, i in zip(batch.to_list(), index.tolist(), strict=True):
            alone = exact.gather(torch.tensor([i]))
            assert all(torch.equal(row.data[k], alone.data[k]) for k in fields)
