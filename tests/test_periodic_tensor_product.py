"""The periodic tensor-product network's promises, faults planted in it, and a short training by one key of a configuration."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moldiff.assemble import build_denoiser, build_vocabulary
from moldiff.config import load_config
from moldiff.core.batch import AtomBatch
from moldiff.core.periodic import minimum_image
from moldiff.core.rng import Streams
from moldiff.data.batches import BucketBatches
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.denoisers import periodic_tensor_product as module
from moldiff.denoisers.base import Signature
from moldiff.denoisers.periodic_tensor_product import PeriodicTensorProduct, cutoffs, gaussians, lattice_sums, reach_of
from moldiff.denoisers.registry import build_network
from moldiff.errors import BadRequest
from moldiff.testing import CheckFailed, check_denoiser
from moldiff.testing.denoisers import perturb

CONFIGS = Path(__file__).parents[1] / "configs"
NAME = "periodic_tensor_product"
SIGNATURE = Signature({"atom_types": (6, 5)}, ("frac_coords", "lattice"), 1, 20)
SMALL = {"width": 16, "n_heads": 4, "n_layers": 2, "pair": 8, "radial": 16, "n_basis": 6, "n_mixed": 3}


def network(cls: type[PeriodicTensorProduct] = PeriodicTensorProduct, **options: object) -> PeriodicTensorProduct:
    """With noise on all weights: those that begin at zero would hide what they do."""
    torch.manual_seed(0)
    made = cls(SIGNATURE, **{**SMALL, **options})
    perturb(made)
    return made


@pytest.mark.parametrize("options", [{}, {"l_max": 1}, {"sees_basis": False}], ids=["default", "degree 1", "no basis"])
def test_the_network_keeps_every_promise(options: dict[str, object]) -> None:
    report = check_denoiser(network(**options), SIGNATURE, raw=True)
    names = {m.name.split(":")[0] for m in report.measurements}
    assert {"images", "translation", "rotation", "reflection", "permutation", "padding", "isolation", "gradients"} <= names


def _two_cells(g: torch.Generator) -> list[tuple[AtomBatch, AtomBatch]]:
    """Random crystals and predictions of them, and the same ones in another cell of their lattice."""
    shear = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]])
    found = []
    for kinds in (torch.tensor([[0, 1, 2, 3], [1, 1, 4, 0]]), torch.rand(2, 4, 5, generator=g)):
        x = torch.rand(2, 4, 3, generator=g)
        lattice = 6.5 * torch.eye(3) + 0.5 * torch.randn(2, 3, 3, generator=g)
        one = AtomBatch(torch.ones(2, 4, dtype=torch.bool), {"frac_coords": x, "lattice": lattice, "atom_types": kinds})
        found.append((one, one.replace(frac_coords=x @ torch.linalg.inv(shear), lattice=shear @ lattice)))
    return found


@pytest.mark.parametrize("sees_basis", [False, True])
@pytest.mark.parametrize("remembering", [False, True])
def test_another_cell_of_the_same_lattice(sees_basis: bool, remembering: bool) -> None:
    """Documented: the same answer exactly without ``sees_basis``, another one with it."""
    (first, other), (old, other_old) = _two_cells(torch.Generator().manual_seed(0))
    net, t = network(sees_basis=sees_basis, cutoff=4.0), torch.full((2,), 0.5)
    for batch in (first, other):  # both cells have room for the whole cutoff
        assert bool((cutoffs(batch.lattice, batch.n_atoms, 4.0) == 4.0).all())
    with torch.no_grad():
        one = net(first, t, old if remembering else None)
        two = net(other, t, other_old if remembering else None)
    strain = [torch.linalg.solve(b.lattice, out.lattice) for b, out in ((first, one), (other, two))]
    errors = [
        one.frac_coords @ first.lattice - two.frac_coords @ other.lattice, one.atom_types - two.atom_types,
        strain[0] - strain[1],
    ]  # fmt: skip
    for error in errors:
        assert (float(error.abs().max()) > 1e-3) == sees_basis, error


def test_gaussians_by_products_are_gaussians() -> None:
    for n in (1, 2, 7, 16, 24):
        x = torch.linspace(0, n, 501)[:, None]
        torch.testing.assert_close(gaussians(x, n), ((x - torch.arange(n)).square() * -0.5).exp(), rtol=0, atol=1e-5)


def test_lattice_sums_are_those_over_all_images() -> None:
    """Against a plain sum over far more images, one pair and degree at a time, from the definitions."""
    g = torch.Generator().manual_seed(3)
    lattice, way = 4 * torch.eye(3) + 0.6 * torch.randn(1, 3, 3, generator=g), torch.rand(1, 5, 3, generator=g) * 4 - 2
    net = network(cutoff=5.0)
    high = cutoffs(lattice, torch.tensor([5]), 5.0)
    found = lattice_sums(way, lattice, high, 1, 5.0 / 6, 6, net.harmonics)
    steps = torch.arange(-6, 7.0)
    shifts = torch.cartesian_prod(steps, steps, steps)
    for k in range(5):
        v = (way[0, k] + shifts) @ lattice[0]
        d = v.norm(dim=1)
        v, d = v[d < high], d[d < high]
        weight = ((d[:, None] / (5 / 6) - torch.arange(6)).square() / -2).exp() * (1 - (d / high)[:, None].square()).square()
        unit = v / (d.square() + 0.01).sqrt()[:, None]
        torch.testing.assert_close(found[0, k, :, 0], weight.sum(0), rtol=1e-4, atol=1e-4)
        vector = math.sqrt(3) * torch.einsum("mb,mx->bx", weight, unit)
        torch.testing.assert_close(found[0, k, :, 1:4], vector, rtol=1e-3, atol=1e-3)
    assert float(found[..., 4:].abs().max()) > 0.1


def test_small_cells_have_their_neighbours() -> None:
    """A chain 2.6 Å apart, as one atom in a cell and as two in a double cell: every neighbour within reach is counted."""
    net = network()
    sums = []
    for n, length in ((1, 2.6), (2, 5.2)):
        x = torch.arange(n)[None, :, None] / n * torch.tensor([1.0, 0, 0])
        lattice, count = torch.diag(torch.tensor([length, 20, 20]))[None], torch.tensor([n])
        assert float(cutoffs(lattice, count, 6.0)) == 6.0 and int(reach_of(count)) == 2
        way = (x[:, None] - x[:, :, None]).flatten(1, 2)
        sums.append(lattice_sums(way, lattice, torch.tensor([6.0]), 2, 1.0, 6, net.harmonics)[0, :n].sum(0))
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-4, atol=1e-4)


def _plant(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    right = module.lattice_sums

    def sums(way: Tensor, lattice: Tensor, high: Tensor, reach: int, *rest: object) -> Tensor:
        if fault == "no minimum image":
            return _flat(way, lattice, high, *rest)
        if fault == "nearest image only, by rounding":
            return right(way, lattice, high, 0, *rest)
        return right(way, lattice.transpose(1, 2), high, reach, *rest)  # columns for rows

    def _flat(way: Tensor, lattice: Tensor, high: Tensor, width: float, n: int, harmonics: torch.nn.Module) -> Tensor:
        v = way @ lattice
        d = (v.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        radial = gaussians((d / width).clamp_max(n), n)
        return radial[..., None] * harmonics(v / (d.square() + 0.01).sqrt())[..., None, :]

    monkeypatch.setattr(module, "lattice_sums", sums)


@pytest.mark.parametrize(
    ("fault", "promise"),
    [("no minimum image", "images"), ("nearest image only, by rounding", "images"), ("columns for rows", "rotation")],
)
def test_planted_geometric_faults_are_found(monkeypatch: pytest.MonkeyPatch, fault: str, promise: str) -> None:
    """Rounding alone jumps where two images are equally far, as atoms half a cell apart have them."""
    half = torch.tensor([[[0.0, 0, 0], [0.5, 0.25, 0.1], [0.3, 0.8, 0.5]]]).repeat(2, 1, 1)
    lattice = 4 * torch.eye(3) + 0.5 * torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1))
    types = torch.tensor([[0, 1, 2]] * 2)
    data = {"frac_coords": half, "lattice": lattice, "atom_types": types, "conditions": torch.ones(2, 1)}
    example = AtomBatch(torch.ones(2, 3, dtype=torch.bool), data)
    check_denoiser(network(), SIGNATURE, raw=True, example=example)
    _plant(monkeypatch, fault)
    with pytest.raises(CheckFailed, match=promise):
        check_denoiser(network(), SIGNATURE, raw=True, example=example)


class SeesTheOrigin(PeriodicTensorProduct):
    def forward(self, seen: AtomBatch, t: Tensor, memory: AtomBatch | None = None) -> AtomBatch:
        out = super().forward(seen, t, memory)
        return out.replace(frac_coords=out.frac_coords + 0.1 * (seen.frac_coords * 2 * math.pi).sin())


class NotFractional(PeriodicTensorProduct):
    """Says displacements in Å of the laboratory, not in cell vectors."""

    def forward(self, seen: AtomBatch, t: Tensor, memory: AtomBatch | None = None) -> AtomBatch:
        out = super().forward(seen, t, memory)
        return out.replace(frac_coords=out.frac_coords @ seen.lattice)


class AveragesPadding(PeriodicTensorProduct):
    def forward(self, seen: AtomBatch, t: Tensor, memory: AtomBatch | None = None) -> AtomBatch:
        return AtomBatch(seen.mask, super().forward(AtomBatch(torch.ones_like(seen.mask), seen.data), t, memory).data)


@pytest.mark.parametrize(
    ("cls", "promise"), [(SeesTheOrigin, "translation"), (NotFractional, "rotation"), (AveragesPadding, "padding")]
)
def test_planted_network_faults_are_found(cls: type[PeriodicTensorProduct], promise: str) -> None:
    with pytest.raises(CheckFailed, match=promise):
        check_denoiser(network(cls), SIGNATURE, raw=True)


def test_a_displacement_is_a_vector_of_the_crystal() -> None:
    """Of two atoms the way from one to the other is all there is: both move along the minimum image, against each other."""
    x = torch.tensor([[[0.9, 0.1, 0.2], [0.15, 0.2, 0.1]]])
    lattice = torch.diag(torch.tensor([9.0, 9.0, 9.0]))[None]
    types = torch.zeros(1, 2, dtype=torch.int64)
    batch = AtomBatch(torch.ones(1, 2, dtype=torch.bool), {"frac_coords": x, "lattice": lattice, "atom_types": types})
    with torch.no_grad():
        out = network(cutoff=4.0)(batch, torch.tensor([0.5]))
    moved = out.frac_coords @ lattice
    way = minimum_image(x[:, 0], x[:, 1], lattice)[0]
    assert float(torch.linalg.cross(moved[0, 0], way).abs().max()) < 1e-4 * float(way.norm()) * float(moved.abs().max()) + 1e-5
    torch.testing.assert_close(moved[0, 0], -moved[0, 1], rtol=1e-3, atol=1e-4)
    assert float(moved.abs().max()) > 1e-3


def test_it_copies_and_comes_back_from_its_weights() -> None:
    net, again = network(), network(width=16)
    with torch.no_grad():
        again.mixing.zero_()
    again.load_state_dict(net.state_dict())
    batch, t = _two_cells(torch.Generator().manual_seed(1))[0][0], torch.full((2,), 0.3)
    with torch.no_grad():
        out = [n(batch, t).frac_coords for n in (net, again, copy.deepcopy(net))]
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])


def test_wrong_fields_and_options_are_one_sentence() -> None:
    for wrong, words in (
        ({"l_max": 3}, "'l_max' .* must be 1 or 2, found 3"),
        ({"width": 24}, "'width' .* must be a multiple of 32, found 24"),
        ({"n_basis": 25}, "n_basis of at most 24"),
        ({"cutoff": 0.0}, "cutoff above 0"),
    ):
        with pytest.raises(BadRequest, match=words):
            build_network(NAME, SIGNATURE, **wrong)
    with pytest.raises(BadRequest, match="works on frac_coords and lattice, not on these continuous fields: positions"):
        build_network(NAME, Signature({"atom_types": (5, 5)}, ("positions",)))
    with pytest.raises(BadRequest, match="makes no bond_types"):
        build_network(NAME, Signature({"atom_types": (5, 5), "bond_types": (4, 4)}, ("frac_coords", "lattice")))


@pytest.mark.parametrize("name", ["quickstart-crystal", "mp20-csp"])
@pytest.mark.parametrize("remembering", [False, True])
def test_a_training_step_reaches_every_weight(name: str, remembering: bool) -> None:
    """Also where the types are given, and without a previous prediction."""
    denoiser, x0 = _model(name)
    t = torch.linspace(0.05, 1, x0.n_systems)
    xt = denoiser.diffusion.noise(x0, t, Streams.single(0))
    with torch.no_grad():
        previous = denoiser(xt, t) if remembering else None
    losses = denoiser.diffusion.loss(denoiser(xt, t, previous), x0, xt, t)
    denoiser.diffusion.total(losses).mean().backward()
    for name, weight in denoiser.named_parameters():
        assert weight.grad is not None and bool(weight.grad.isfinite().all()), name


def _model(name: str) -> tuple[torch.nn.Module, AtomBatch]:
    """A denoiser of a configuration in which only ``network`` is another, and a batch of the quickstart's crystals."""
    options = ", ".join(f"{k}: {v}" for k, v in {**SMALL, "width": 32}.items())
    config = load_config(CONFIGS / f"{name}.yaml", [f"network={{name: {NAME}, {options}}}"])
    vocabulary = build_vocabulary(config)
    torch.manual_seed(0)
    denoiser = build_denoiser(config)
    fields = ("frac_coords", "lattice", "atom_types")
    store = Store(find_data("quickstart-crystal", CONFIGS.parent / "data"), "train")
    stored = {k: store.tensor(k) for k in (*fields, "n_atoms")}
    return denoiser, BucketBatches(stored, vocabulary, 24, bucket_width=6, fields=fields).batch(0)


def test_a_few_steps_of_training_let_the_loss_fall() -> None:
    """``configs/quickstart-crystal.yaml`` with another ``network.name``: held noise, so that the loss can be compared."""
    denoiser, x0 = _model("quickstart-crystal")
    t = torch.linspace(0.05, 0.95, x0.n_systems)
    xt = denoiser.diffusion.noise(x0, t, Streams.single(0))
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = denoiser.diffusion.total(denoiser.diffusion.loss(denoiser(xt, t), x0, xt, t)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0], losses
