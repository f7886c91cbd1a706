"""The networks keep a denoiser's promises, and the check that says so fails on networks that break them."""

from __future__ import annotations

import copy
import importlib.util
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from moldiff.core.batch import AtomBatch
from moldiff.core.geometry import center
from moldiff.denoisers.base import NetworkDenoiser, Signature, n_parameters
from moldiff.denoisers.registry import NETWORKS, build_network, network_options, register_network
from moldiff.diffusion.categorical import Categorical
from moldiff.diffusion.gaussian import Gaussian
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.onehot import OneHot
from moldiff.diffusion.schedules import Cosine, VarianceExploding
from moldiff.errors import BadRequest
from moldiff.testing.denoisers import check_denoiser, perturb
from moldiff.testing.promises import PROMISES
from moldiff.testing.report import CheckFailed
from moldiff.testing.symmetries import random_batch

BONDS = Signature({"atom_types": (5, 5), "charges": (4, 3), "bond_types": (5, 4)}, ("positions",), n_conditions=1)
BOND_FREE = Signature({"atom_types": (5, 5)}, ("positions",))
SIZES = (4, 1, 3)
TINY = {
    "thin_pair": {"width": 16, "n_layers": 2, "n_heads": 2, "pair": 8, "pair_hidden": 8, "n_sets": 3, "ffn": 16, "n_basis": 6},
    "egnn": {"width": 12, "n_layers": 2, "self_conditioning": True},
    "tensor_product": {"width": 8, "n_layers": 1, "pair": 6, "radial": 8, "n_basis": 6},
}


def tiny(name: str, signature: Signature = BONDS, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    return perturb(build_network(name, signature, **{**TINY[name], **options}), 0.05, seed)


@pytest.mark.parametrize("signature", [BONDS, BOND_FREE], ids=["bonds", "bond-free"])
@pytest.mark.parametrize("name", list(TINY))
def test_networks_keep_the_promises(name: str, signature: Signature) -> None:
    report = check_denoiser(tiny(name, signature), signature, sizes=SIZES)
    assert len(report.measurements) > 100
    assert max(m.value for m in report.measurements) < 2e-5


@pytest.mark.parametrize("name", list(TINY))
def test_networks_take_class_vectors_and_lone_atoms(name: str) -> None:
    one_hot = ("atom_types", "charges")
    signature = Signature({**BONDS.categorical, "charges": (3, 3)}, ("positions",))
    check_denoiser(tiny(name, signature), signature, one_hot=one_hot, sizes=(4, 2), skip=("isolation", "gradients"))
    check_denoiser(tiny(name), BONDS, sizes=(1,), skip=("rotation", "reflection", "purity"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("egnn", {"self_conditioning": False}),
        ("egnn", {"attention": False, "use_tanh": False, "normalization": 100.0}),
        ("tensor_product", {"l_max": 1, "self_conditioning": False}),
    ],
)
def test_options_keep_the_promises(name: str, options: dict[str, object]) -> None:
    check_denoiser(tiny(name, **options), BONDS, sizes=SIZES)


@pytest.mark.parametrize("name", ["egnn", "tensor_product"])
def test_in_double_precision_the_symmetries_are_exact(name: str) -> None:
    check_denoiser(tiny(name).double(), BONDS, sizes=SIZES, dtype=torch.float64, tolerance=1e-8)


def test_bfloat16_keeps_the_promises_within_its_precision() -> None:
    check_denoiser(tiny("thin_pair", precision="bfloat16"), BONDS, tolerance=8e-2)


def test_whole_denoisers_keep_the_promises() -> None:
    ve, vp = VarianceExploding(), Cosine()
    absorbing = Diffusion(
        {
            "positions": Gaussian("positions", ve, "karras", scale=1.7, zero_mean=True),
            "atom_types": Categorical("atom_types", vp, 5),
            "charges": Categorical("charges", vp, 3, "absorbing"),
            "bond_types": Categorical("bond_types", vp, 4, "absorbing"),
        }
    )
    check_denoiser(NetworkDenoiser(tiny("thin_pair"), absorbing), BONDS)
    edm = Diffusion({"positions": Gaussian("positions", vp, "v", zero_mean=True), "atom_types": OneHot("atom_types", vp, 5, "v")})
    check_denoiser(NetworkDenoiser(tiny("egnn", BOND_FREE), edm), BOND_FREE, one_hot=("atom_types",))


@pytest.mark.parametrize("name", list(TINY))
def test_given_fields_need_no_prediction(name: str) -> None:
    schedule = Cosine()
    typing = Diffusion({"atom_types": Categorical("atom_types", schedule, 5)})
    check_denoiser(NetworkDenoiser(tiny(name, BOND_FREE), typing), BOND_FREE, given=("positions",), sizes=SIZES)
    given = ("atom_types", "charges", "bond_types")
    plain = Signature({"atom_types": (5, 5), "charges": (3, 3), "bond_types": (4, 4)}, ("positions",))
    conformers = Diffusion({"positions": Gaussian("positions", schedule, "v", zero_mean=True)})
    check_denoiser(NetworkDenoiser(tiny(name, plain), conformers), plain, given=given, sizes=SIZES, skip=("batch", "purity"))


class Faulty(nn.Module):
    """A sound network whose prediction is spoilt by ``fault``."""

    def __init__(self, name: str = "egnn") -> None:
        super().__init__()
        self.net = tiny(name)
        self.calls = 0

    def forward(self, seen: AtomBatch, t: torch.Tensor, memory: AtomBatch | None = None) -> AtomBatch:
        return self.fault(seen, memory, self.net(seen, t, memory))

    def fault(self, seen: AtomBatch, memory: AtomBatch | None, out: AtomBatch) -> AtomBatch:
        return out


class OneAxisStretched(Faulty):
    def fault(self, seen, memory, out):
        return out.replace(positions=out.positions * torch.tensor([1.01, 1, 1]))


class AxisInLogits(Faulty):
    def fault(self, seen, memory, out):
        return out.replace(atom_types=out.atom_types + 0.01 * seen.positions[..., :1] * seen.mask[..., None])


class Handed(Faulty):
    def fault(self, seen, memory, out):
        twist = torch.linalg.cross(seen.positions, out.positions)
        return out.replace(positions=center(out.positions + 0.1 * twist, seen.mask))


class OffCentre(Faulty):
    def fault(self, seen, memory, out):
        outward = seen.positions * seen.positions.norm(dim=-1, keepdim=True) * seen.mask[..., None]
        return out.replace(positions=out.positions + 0.01 * outward)


class Numbered(Faulty):
    def fault(self, seen, memory, out):
        return out.replace(atom_types=out.atom_types + 0.01 * torch.arange(seen.n_max)[:, None] * seen.mask[..., None])


class ReadsPadding(Faulty):
    def fault(self, seen, memory, out):
        leak = 1e-3 * seen.positions.square().sum((1, 2))[:, None, None]
        return out.replace(atom_types=out.atom_types + leak * seen.mask[..., None])


class CountsPadding(Faulty):
    def fault(self, seen, memory, out):
        return out.replace(charges=out.charges + 0.01 * seen.n_max * seen.mask[..., None])


class BatchNormed(Faulty):
    def fault(self, seen, memory, out):
        rows = out.atom_types[seen.mask]
        return out.replace(atom_types=(out.atom_types - rows.mean(0)) * seen.mask[..., None])


class PlaceInBatch(Faulty):
    def fault(self, seen, memory, out):
        return out.replace(atom_types=out.atom_types + 0.01 * torch.arange(seen.n_systems)[:, None, None] * seen.mask[..., None])


class SharesNaN(Faulty):
    def fault(self, seen, memory, out):
        return out.replace(charges=out.charges + 0 * seen.positions.sum() * seen.mask[..., None])


class OneSidedBonds(Faulty):
    def fault(self, seen, memory, out):
        lean = 1e-2 * out.atom_types[:, :, None, :1] * seen.pair_mask[..., None]
        return out.replace(bond_types=out.bond_types + lean)


class WritesInput(Faulty):
    def fault(self, seen, memory, out):
        seen.positions.mul_(1.001)
        return out


class WritesMemory(Faulty):
    def fault(self, seen, memory, out):
        if memory is not None:
            memory.data["atom_types"].add_(0.1)
        return out


class Counts(Faulty):
    def fault(self, seen, memory, out):
        self.calls += 1
        return out.replace(charges=out.charges + 1e-3 * self.calls * seen.mask[..., None])


class DrawsNoise(Faulty):
    def fault(self, seen, memory, out):
        return out.replace(charges=nn.functional.dropout(out.charges, 0.1, training=True))


class UpdatesBuffer(Faulty):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def fault(self, seen, memory, out):
        self.mean += 0.1
        return out


class InfiniteSlope(Faulty):
    def fault(self, seen, memory, out):
        distance = (seen.positions[:, :, None] - seen.positions[:, None]).square().sum(-1).sqrt()
        return out.replace(charges=out.charges + 1e-3 * ((distance * seen.pair_mask).sum(2))[..., None])


class Detached(Faulty):
    def fault(self, seen, memory, out):
        return AtomBatch(out.mask, {k: v.detach() for k, v in out.data.items()})


class Forgets(Faulty):
    def fault(self, seen, memory, out):
        return out.select(["positions", "atom_types", "bond_types"])


class WrongClasses(Faulty):
    def fault(self, seen, memory, out):
        return out.replace(charges=torch.cat([out.charges, out.charges[..., :1]], -1))


class Halves(Faulty):
    def fault(self, seen, memory, out):
        return out.replace(positions=out.positions.half())


class NoBeginning(Faulty):
    def fault(self, seen, memory, out):
        return out.replace(charges=out.charges + memory.charges)


class Silent(Faulty):
    def fault(self, seen, memory, out):
        return out.replace(positions=torch.zeros_like(out.positions))


class Infinite(Faulty):
    def forward(self, seen, t, memory=None):
        out = self.net(seen, t, memory)
        return out.replace(positions=out.positions / t[:, None, None])


FAULTS = {
    OneAxisStretched: "rotation",
    AxisInLogits: "rotation",
    Handed: "reflection",
    OffCentre: "translation",
    Numbered: "permutation",
    ReadsPadding: "padding",
    CountsPadding: "padding",
    BatchNormed: "batch",
    PlaceInBatch: "batch",
    SharesNaN: "isolation",
    OneSidedBonds: "symmetry",
    WritesInput: "purity",
    WritesMemory: "purity",
    Counts: "purity",
    DrawsNoise: "purity",
    UpdatesBuffer: "purity",
    InfiniteSlope: "gradients",
    Detached: "gradients",
    Forgets: "shapes",
    WrongClasses: "shapes",
    Halves: "shapes",
    NoBeginning: "shapes",
    Silent: "shapes",
    Infinite: "shapes",
}


def test_the_sound_network_behind_the_faults_passes() -> None:
    check_denoiser(Faulty(), BONDS)


def test_every_promise_has_a_fault() -> None:
    assert set(FAULTS.values()) | {"images"} == set(PROMISES)  # images: see the crystals below


@pytest.mark.parametrize(("fault", "promise"), FAULTS.items(), ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_faults_are_found_and_named(fault: type[Faulty], promise: str) -> None:
    with pytest.raises(CheckFailed) as caught:
        check_denoiser(fault(), BONDS)
    broken = str(caught.value).splitlines()[0]
    assert f"{promise} (" in broken, str(caught.value)
    only_here = {Handed, OffCentre, SharesNaN, OneSidedBonds, CountsPadding, InfiniteSlope, UpdatesBuffer}
    if fault in only_here:
        assert "breaks 1 of" in broken, str(caught.value)


def test_messages_name_the_field_and_skip_leaves_checks_out() -> None:
    with pytest.raises(CheckFailed, match=r"bond_types of i j and of j i: relative error .*allowed 0.0001"):
        check_denoiser(OneSidedBonds(), BONDS)
    check_denoiser(OneSidedBonds(), BONDS, skip=("symmetry",))
    with pytest.raises(CheckFailed, match="every field is predicted \\(missing: charges\\)"):
        check_denoiser(Forgets(), BONDS)
    with pytest.raises(CheckFailed, match="raised AttributeError"):
        check_denoiser(NoBeginning(), BONDS)
    with pytest.raises(BadRequest, match="did you mean 'symmetry'"):
        check_denoiser(Faulty(), BONDS, skip=("symetry",))


def test_the_check_leaves_the_denoiser_as_it_was() -> None:
    network = tiny("thin_pair").train()
    network.time.eval()
    before = copy.deepcopy(network.state_dict())
    check_denoiser(network, BONDS)
    assert network.training and not network.time.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_tensor_product_copies_pickles_and_leaves_e3nn_as_it_was() -> None:
    import e3nn

    mode = e3nn.get_optimization_defaults()["jit_mode"]
    network = tiny("tensor_product")
    assert e3nn.get_optimization_defaults()["jit_mode"] == mode
    seen, t = random_batch(BONDS, (4, 3), torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.7])
    fresh = tiny("tensor_product", seed=1)
    fresh.load_state_dict(network.state_dict())
    with torch.no_grad():
        out = network(seen, t)
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), fresh):
            assert all(torch.equal(v, other(seen, t).data[k]) for k, v in out.data.items())


def published_edm():
    path = Path(__file__).parents[1] / "benchmarks" / "reference_edm.py"
    spec = importlib.util.spec_from_file_location("reference_edm", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_egnn_is_edms_network() -> None:
    edm = published_edm()
    assert n_parameters(edm.edm_network()) == 5339663
    torch.manual_seed(0)
    signature = Signature({"atom_types": (5, 5), "charges": (1, 1)}, ("positions",))
    network = perturb(build_network("egnn", signature, width=16, n_layers=3), 0.1).double()
    batch, t = edm.edm_batch(3, 6)
    shorter = AtomBatch(batch.mask[2:, :4], {k: v[2:, :4] for k, v in batch.data.items()})
    batch = AtomBatch.from_list([*batch[:2].to_list(), shorter])
    seen, t = batch.to("cpu", torch.float64), t.double()
    ours, theirs = network(seen, t), edm.PublishedForm(network)(seen, t)
    for name, value in theirs.data.items():
        torch.testing.assert_close(ours.data[name], value, rtol=1e-10, atol=1e-12)
    assert set(edm.measure(2, 3, 1)) >= {"published_s_per_call", "ours_s_per_call", "parameters", "matmul_gflop_per_s"}


@pytest.mark.parametrize("name", list(TINY))
def test_networks_learn(name: str) -> None:
    signature = Signature({"atom_types": (3, 3), "bond_types": (2, 2)}, ("positions",))
    torch.manual_seed(0)
    larger = {"width": 16, "n_layers": 2, "pair": 16, "radial": 16} if name == "tensor_product" else {}
    network = build_network(name, signature, **{**TINY[name], **larger})
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(16, 3, dtype=torch.bool)
    # bent triatomics: the middle atom is of type 2 and bonded to both others
    shape = center(torch.tensor([[[1.0, 0.3, 0], [0, 0, 0], [-1.0, 0.3, 0]]]), mask[:1]).expand(16, 3, 3)
    bonds = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).expand(16, 3, 3)
    data = {"atom_types": torch.tensor([0, 2, 0]).expand(16, 3), "bond_types": bonds, "positions": shape}
    clean = AtomBatch(mask, data)
    noisy = clean.replace(
        positions=center(shape + 0.3 * torch.randn(16, 3, 3, generator=generator), mask),
        atom_types=torch.randint(3, (16, 3), generator=generator),
        bond_types=torch.zeros(16, 3, 3, dtype=torch.int64),
    )
    optimizer, t, losses = torch.optim.Adam(network.parameters(), 1e-2), torch.full((16,), 0.5), []
    for _ in range(40):
        out = network(noisy, t)
        loss = (out.positions - clean.positions + noisy.positions).square().mean()
        for field in ("atom_types", "bond_types"):
            inside = clean.scope_mask(field)
            loss = loss + nn.functional.cross_entropy(out.data[field][inside], clean.data[field][inside])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_registry_builds_by_name_and_explains_mistakes() -> None:
    assert isinstance(build_network("egnn", BOND_FREE, width=8, n_layers=1), nn.Module)
    assert network_options("egnn")["n_layers"] == 9
    for call, words in (
        (lambda: build_network("egn", BONDS), "did you mean 'egnn'"),
        (lambda: build_network("egnn", BONDS, widht=8), "did you mean 'width'"),
        (lambda: build_network("egnn", BONDS, width="wide"), "'width' .* must be a whole number, found 'wide'"),
        (lambda: build_network("egnn", BONDS, width=True), "must be a whole number"),
        (lambda: build_network("egnn", BONDS, attention=1), "must be true or false"),
        (lambda: build_network("egnn", BONDS, n_layers=0), "must be at least 1"),
        (lambda: build_network("tensor_product", BONDS, l_max=3), "must be 1 or 2"),
        (lambda: build_network("tensor_product", BONDS, width=10), "multiple of 4"),
        (lambda: build_network("egnn", Signature({}, ("frac_coords", "lattice"))), "frac_coords, lattice"),
        (lambda: register_network("egnn", Faulty), "already"),
    ):
        with pytest.raises(BadRequest, match=words):
            call()


def test_networks_of_ones_own_can_be_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(nn.Module):
        def __init__(self, signature: Signature, dropout: int = 0, scale: float = 1.0) -> None:
            super().__init__()
            self.options = (dropout, scale)

    monkeypatch.setattr("moldiff.denoisers.registry.NETWORKS", dict(NETWORKS))
    register_network("mine", Mine)
    assert build_network("mine", BONDS, dropout=0, scale=2).options == (0, 2)
