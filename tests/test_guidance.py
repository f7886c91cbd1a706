"""Guidance: classifier-free guidance that is exact on a toy, gradients that tilt as they should, conditions that are read."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import SIZES, tiny_config

from moldiff.assemble import build_denoiser
from moldiff.config import ConditionStats
from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.core.vocabulary import Vocabulary
from moldiff.diffusion.categorical import Categorical
from moldiff.diffusion.gaussian import Gaussian
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.schedules import VarianceExploding
from moldiff.errors import BadRequest, MoldiffError
from moldiff.generator import Generator
from moldiff.model_export import export_model
from moldiff.sampling.gradient_guidance import Gradient, GradientGuided
from moldiff.sampling.grids import make_grid
from moldiff.sampling.guidance import Conditioned, Guided
from moldiff.sampling.loop import Memory, sample
from moldiff.sampling.registry import make_sampler
from moldiff.steer.conditions import Conditions, conditions_from
from moldiff.steer.gradient import guide_from
from moldiff.testing import ClassField, MixtureOracle, NormalField

SCHEDULE = VarianceExploding()
LATTICE = Diffusion({"positions": Gaussian("positions", SCHEDULE, zero_mean=True)})
DIRECTION = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])


def toy(xt: AtomBatch, t: torch.Tensor, previous: AtomBatch | None = None) -> AtomBatch:
    """The exact denoiser of a joint Gaussian: y ~ N(0, 1), and x = y DIRECTION + 0.5 noise (two atoms, mean zero)."""
    sigma = SCHEDULE.sigma(t)
    y = xt.conditions[:, 0]
    known = ~y.isnan()
    y = torch.where(known, y, 0.0)[:, None, None]
    across = xt.positions[..., 0:1] * DIRECTION[:, 0:1]
    along = across.mean(1, keepdim=True) * DIRECTION  # the part of x_t along the direction
    rest = xt.positions - along
    # conditional: variance 0.25 in every direction around y DIRECTION; unconditional: along it 0.25 + 2 for the unit vector
    gain, s2 = 0.25 / (0.25 + sigma.square()), sigma.square()[:, None, None]
    told = y * DIRECTION + gain[:, None, None] * (xt.positions - y * DIRECTION)
    wide = 2.25
    untold = gain[:, None, None] * rest + wide / (wide + s2) * along
    return AtomBatch(xt.mask, {"positions": torch.where(known[:, None, None], told, untold)})


def drawn(scale: float, y: float, n: int = 3000, together: bool = False) -> torch.Tensor:
    """The coordinate along DIRECTION (unit vector), [n], of guided samples."""
    like = AtomBatch(torch.ones(n, 2, dtype=torch.bool))
    control = Conditioned(torch.full((n, 1), y), scale, together)
    grid = make_grid("karras", 100, SCHEDULE)
    out = sample(toy, LATTICE, like, Streams.single(3), make_sampler("heun", {"s_churn": 0}), grid, control=control)
    return (out.positions[:, 0, 0] - out.positions[:, 1, 0]) / math.sqrt(2)


def test_scale_one_is_the_known_conditional_and_zero_the_marginal():
    told = drawn(1.0, 1.5)
    assert float(told.mean()) == pytest.approx(1.5 * math.sqrt(2), abs=0.05)
    assert float(told.std()) == pytest.approx(0.5, abs=0.03)
    untold = drawn(0.0, 1.5)
    assert float(untold.mean()) == pytest.approx(0.0, abs=0.1)
    assert float(untold.std()) == pytest.approx(1.5, abs=0.08)


def test_guidance_solves_the_guided_ode_exactly():
    """Along the direction the guided ODE is linear, dx/ds = (x - D_w(x, s)) / s: solved here apart from the code."""
    scale, y = 2.0, 1.0
    m = y * math.sqrt(2)
    x, s = 80.0 * torch.linspace(-1, 1, 5, dtype=torch.float64), 80.0
    start = x.clone()
    ratios = torch.logspace(math.log10(80.0), math.log10(2e-3), 4001, dtype=torch.float64)
    for a, b in zip(ratios[:-1].tolist(), ratios[1:].tolist(), strict=True):
        s = math.sqrt(a * b)
        cond = m + 0.25 / (0.25 + s * s) * (x - m)
        null = 2.25 / (2.25 + s * s) * x
        x = x + (b - a) * (x - (null + scale * (cond - null))) / s
    slope, offset = float((x[-1] - x[0]) / (start[-1] - start[0])), float(x.mean())
    found = drawn(scale, y, n=4000)
    top = float(SCHEDULE.ratio(torch.tensor([1.0])))
    assert top == pytest.approx(80.0, rel=1e-3)
    assert float(found.mean()) == pytest.approx(offset, abs=0.03)
    assert float(found.std()) == pytest.approx(80.0 * slope, rel=0.06)
    assert offset > 1.15 * m, "guidance goes further than the conditional mean"


class Counted:
    """A denoiser that counts its calls and the systems in them, and keeps what it was handed."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, AtomBatch | None]] = []

    def __call__(self, xt: AtomBatch, t: torch.Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        self.calls.append((xt.n_systems, previous))
        return toy(xt, t, previous)


@pytest.mark.parametrize(("scale", "together", "sizes"), [(1, False, [4]), (0, False, [4]), (2, False, [4, 4]), (2, True, [8])])
def test_calls_are_spent_only_where_both_branches_are_needed(scale, together, sizes):
    counted, xt = Counted(), LATTICE.prior(AtomBatch(torch.ones(4, 2, dtype=torch.bool)), Streams.single(0))
    xt = xt.replace(conditions=torch.tensor([[1.0], [torch.nan], [0.5], [2.0]]))
    found = Guided(counted, scale, together)(xt, torch.full((4,), 0.5))
    assert [n for n, _ in counted.calls] == sizes
    plain = Guided(toy, scale)(xt, torch.full((4,), 0.5))
    torch.testing.assert_close(found.positions, plain.positions)
    torch.testing.assert_close(found.positions[1], toy(xt, torch.full((4,), 0.5)).positions[1], msg="nothing asked: no guidance")


@pytest.mark.parametrize("together", [False, True])
def test_each_branch_sees_its_own_last_prediction_and_follows_its_row(together):
    counted = Counted()
    guided = Guided(counted, 3.0, together)
    xt = LATTICE.prior(AtomBatch(torch.ones(3, 2, dtype=torch.bool)), Streams.single(1))
    xt, t = xt.replace(conditions=torch.tensor([[1.0], [0.2], [-2.0]])), torch.full((3,), 0.4)
    told, untold = toy(xt, t), toy(xt.replace(conditions=torch.full((3, 1), torch.nan)), t)
    memory = Memory(guided)
    memory(xt, t)
    order = torch.tensor([2, 2, 0])
    memory.reorder(order)
    counted.calls.clear()
    memory(xt[order], t)
    before = [p for _, p in counted.calls]
    seen = torch.cat([p.positions for p in before])
    torch.testing.assert_close(seen, torch.cat([told.positions[order], untold.positions[order]]))


def test_logits_are_extrapolated_too():
    logits = {False: torch.zeros(1, 2, 3), True: torch.tensor([[[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]])}

    def classes(xt: AtomBatch, t: torch.Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        return AtomBatch(xt.mask, {"atom_types": logits[not bool(xt.conditions.isnan().any())]})

    xt = AtomBatch(torch.ones(1, 2, dtype=torch.bool), {"conditions": torch.zeros(1, 1)})
    assert torch.equal(Guided(classes, 2.5)(xt, torch.ones(1)).atom_types, 2.5 * logits[True])


# gradients

TYPES = Vocabulary({"atom_types": [1, 6, 7]})


def tilted(way: str, scale: float, clip: float = math.inf, n: int = 2500) -> tuple[AtomBatch, Gradient]:
    """Guided samples of one Gaussian with independent types, f = 1.2 x_0 - 1.2 x_1 + 1.5 count(C)."""
    diffusion = Diffusion(
        {
            "positions": Gaussian("positions", SCHEDULE, zero_mean=True, scale=0.6),
            "atom_types": Categorical("atom_types", SCHEDULE, 3, "uniform", "posterior"),
        }
    )
    oracle = MixtureOracle(
        torch.ones(1),
        2,
        {
            "positions": NormalField("positions", torch.zeros(1, 2, 3), torch.tensor([0.6]), True),
            "atom_types": ClassField("atom_types", torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]]), 2),
        },
    )

    def function(atoms):
        return 1.2 * (atoms.positions[:, 0, 0] - atoms.positions[:, 1, 0]) + 1.5 * atoms.count(6)

    control = Gradient(TYPES, function, scale, way, clip)
    grid, sampler = make_grid("karras", 80, SCHEDULE, 2), make_sampler("heun", {"s_churn": 0})
    exact = oracle.denoiser(diffusion)
    out = sample(exact, diffusion, oracle.like(n), Streams.single(2), sampler, grid, control=control)
    return out, control


@pytest.mark.parametrize("way", ["clean", "denoiser"])
def test_a_linear_function_tilts_a_gaussian_and_its_classes_exactly(way):
    out, control = tilted(way, 1.0)
    gap = out.positions[:, 0, 0] - out.positions[:, 1, 0]
    # x0 - x1 has variance 2 (0.6)^2, and f = 1.2 of it: the mean moves by 1.2 times the variance, the variance stays
    assert float(gap.mean()) == pytest.approx(1.2 * 0.72, abs=0.06)
    assert float(gap.std()) == pytest.approx(math.sqrt(0.72), abs=0.05)
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]) * torch.tensor([1.0, math.exp(1.5), 1.0])
    p = p / p.sum(-1, keepdim=True)
    for atom in range(2):
        found = torch.bincount(out.atom_types[:, atom], minlength=3) / len(out.atom_types)
        torch.testing.assert_close(found, p[atom], atol=0.04, rtol=0)
    assert control.guided.n_dropped == 0


def test_moves_are_clipped_and_non_finite_gradients_leave_the_system_as_it_is():
    diffusion = LATTICE
    vocabulary = Vocabulary({})
    xt = AtomBatch(torch.ones(3, 2, dtype=torch.bool), {"positions": torch.randn(3, 2, 3), "conditions": torch.zeros(3, 1)})
    t = torch.full((3,), 0.5)
    plain = toy(xt, t).positions

    def steep(atoms):
        return 1e6 * atoms.positions[:, 0, 0] * torch.tensor([1.0, math.nan, 0.0])

    guided = GradientGuided(toy, diffusion, vocabulary, steep, clip=0.5)
    found = guided(xt, t).positions - plain
    sigma = float(SCHEDULE.sigma(t[:1]))
    spread = sigma / math.sqrt(1 + sigma**2)
    assert float(found[0].square().mean().sqrt()) == pytest.approx(0.5 * spread, rel=1e-4)
    assert not bool(found[1].any()) and not bool(found[2].any())
    assert (guided.n_dropped, guided.n_asked) == (1, 3)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda atoms: atoms.positions.sum(), r"one number a system, \[3\], found \(\)"),
        (lambda atoms: 1.0, "found float"),
        (lambda atoms: torch.ones(3), "does not depend on the atoms"),
        (lambda atoms: atoms.position, "raised AttributeError"),
    ],
)
def test_a_function_of_another_kind_is_refused_in_a_sentence(function, words):
    xt = AtomBatch(torch.ones(3, 2, dtype=torch.bool), {"positions": torch.randn(3, 2, 3), "conditions": torch.zeros(3, 1)})
    with pytest.raises(MoldiffError, match=words):
        GradientGuided(toy, LATTICE, Vocabulary({}), function)(xt, torch.full((3,), 0.5))


# requests

STATS = {"mean": 7.0, "std": 2.0, "low": 4.0, "high": 10.0, "least": 2.0, "greatest": 12.0, "known": 100, "unit": "eV"}


@pytest.fixture(scope="module")
def conditional(tmp_path_factory) -> Generator:
    """A model with random weights that is told a gap, a dipole and a class; its conditions matter."""
    torch.manual_seed(0)
    config = tiny_config(
        conditions=["gap", "dipole", "group"],
        condition_classes={"group": 4},
        condition_stats={name: ConditionStats(**STATS).model_dump() for name in ("gap", "dipole", "group")},
    )
    denoiser = build_denoiser(config)
    with torch.no_grad():
        for layer in denoiser.network.time.condition.each:
            layer.weight.normal_()
    folder = tmp_path_factory.mktemp("models") / "tiny-cond"
    export_model(denoiser.state_dict(), config, None, folder, {}, sizes=SIZES)
    return Generator.from_pretrained(folder, device="cpu")


def test_asked_values_are_drawn_by_sample_told_standardised_and_come_back(conditional):
    spec = conditions_from(["gap=4..10", "group=1..3"], 1.5)
    assert isinstance(spec, Conditions)
    assert spec.settings() == {"values": {"gap": "4.0..10.0", "group": "1.0..3.0"}, "guidance": 1.5}
    told = []
    inner = conditional.denoiser.network.forward

    def listening(seen, *rest):
        told.append(seen.conditions)
        return inner(seen, *rest)

    conditional.rule()
    conditional.denoiser.network.forward = listening
    try:
        samples = conditional.sample(12, seed=1, size=6, controls=[spec])
    finally:
        del conditional.denoiser.network.forward
    asked = [s.info["asked_gap"] for s in samples]
    assert not any(s.problem for s in samples) and "conditions" not in samples[0].fields
    assert len(set(asked)) == 12 and all(4 <= x <= 10 for x in asked)
    assert {s.info["asked_group"] for s in samples} == {1.0, 2.0, 3.0}
    told_gap = (torch.tensor(asked) - 7) / 2
    assert any(torch.allclose(x[:12, 0], told_gap) for x in told) and all(bool(x[:, 1].isnan().all()) for x in told)
    assert any(bool(x.isnan().all()) for x in told), "the null branch"
    again = conditional.sample(5, seed=1, size=6, start=7, batch_size=2, controls=[spec])
    assert [s.info["asked_gap"] for s in again] == asked[7:]
    assert all((a.positions == b.positions).all() for a, b in zip(samples[7:], again, strict=True))
    other = conditional.sample(12, seed=1, size=6, controls=[conditions_from({"gap": (4, 10), "group": (1, 3)}, 3.0)])
    assert [s.info["asked_gap"] for s in other] == asked
    assert any((a.positions != b.positions).any() for a, b in zip(samples, other, strict=True)), "the scale changes the samples"


def test_values_outside_of_training_are_warned_of_with_the_range(conditional):
    inside = conditions_from({"gap": 5.0, "group": 2})
    assert inside.cautions(conditional.info) == []
    outside = conditions_from(["gap=5..11"])
    (sentence,) = outside.cautions(conditional.info)
    assert "gap = 5..11" in sentence and "4..10 eV" in sentence and "2..12 eV" in sentence
    with pytest.warns(UserWarning, match="gap = 5..11 lies outside"):
        conditional.sample(1, controls=[outside])


def test_conditions_that_a_model_does_not_have_are_refused(conditional, tiny_model):
    with pytest.raises(BadRequest, match=r"unknown condition 'gapp'; did you mean 'gap'\? \(known: dipole, gap, group\)"):
        conditional.request(1, controls=[conditions_from(["gapp=9"])])
    with pytest.raises(BadRequest, match="group is a class, a whole number from 0 to 3, found 4"):
        conditional.request(1, controls=[conditions_from(["group=4"])])
    with pytest.raises(BadRequest, match="tiny was trained without conditions"):
        Generator.from_pretrained(tiny_model, device="cpu").request(1, controls=[conditions_from(["gap=9"])])


@pytest.mark.parametrize(
    ("asked", "guidance", "words"),
    [
        (["gap"], None, "NAME=VALUE or NAME=LEAST..GREATEST, found 'gap'"),
        (["gap=x"], None, "condition 'gap' must be a number, found 'x'"),
        (["gap=9..8"], None, r"the range 9..8 is empty"),
        (["gap=1..inf"], None, "finite"),
        (["gap=1..2..3"], None, "a number or a range"),
        (["gap=1", "gap=2"], None, "given twice"),
        (["gap=1"], -1, "guidance must be a finite number of at least 0"),
        (["gap=1"], math.nan, "guidance must be a finite number"),
        (None, 2.0, "guidance needs a condition"),
    ],
)
def test_conditions_that_can_not_be_read_are_refused(asked, guidance, words):
    with pytest.raises(BadRequest, match=words):
        conditions_from(asked, guidance)


def test_a_condition_may_be_left_out():
    assert conditions_from({"gap": None, "dipole": math.nan, "homo": 1}).values == (("homo", 1.0, 1.0),)
    assert conditions_from(None) is None and conditions_from([]) is None


def closer(atoms):
    """A guidance function that can be imported: small molecules."""
    return -0.2 * atoms.positions.square().sum((1, 2))


def test_gradient_guidance_of_a_model_is_reproducible_and_does_what_it_says(conditional):
    spec = guide_from(closer, 1.0)
    assert spec.settings()["function"].endswith(":closer") and spec.needs_gradients
    plain = conditional.sample(8, seed=3, size=6)
    for way in ("clean", "denoiser"):
        spec = guide_from(closer, 1.0, way)
        guided = conditional.sample(8, seed=3, size=6, controls=[spec])
        extent = [sum(float((s.positions**2).sum()) for s in found) for found in (plain, guided)]
        assert way == "denoiser" or extent[1] < 0.8 * extent[0], "an untrained network's own gradient means nothing"
        assert extent[1] != extent[0]
        again = conditional.sample(3, seed=3, size=6, start=5, batch_size=1, controls=[spec])
        assert all((a.positions == b.positions).all() for a, b in zip(guided[5:], again, strict=True))
        assert spec.notices() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None, 1.0), "needs a function"),
        (("nowhere:function",), "can't be imported"),
        (("math:tow",), "has no 'tow'"),
        (("math:pi",), "is no function but float"),
        (("gapregressor",), "unknown guidance function"),
        (("qm9@gap=9",), "unknown property of qm9 'gap'"),
        (("qm9@gap",), "REGRESSOR@PROPERTY=VALUE"),
        (("qm9@gap=9:0",), "the deviation positive"),
        (("nowhere@gap=9",), "unknown model 'nowhere'"),
        ((closer, 0.0), "positive"),
        ((closer, 1.0, "sideways"), "unknown way"),
        ((5,), "a function or a name"),
    ],
)
def test_gradient_guidance_that_can_not_be_read_is_refused(arguments, words):
    with pytest.raises(BadRequest, match=words):
        guide_from(*arguments)


def test_a_regressor_guides_by_name(conditional, monkeypatch):
    config = SimpleNamespace(name="judge", targets=["carbons"], condition_stats={"carbons": SimpleNamespace(std=2.0)})
    monkeypatch.setattr("moldiff.model_store.model_info", lambda name: SimpleNamespace(config=config))
    judge = SimpleNamespace(from_pretrained=lambda name, device: lambda atoms: {"carbons": atoms.count(6)})
    monkeypatch.setattr("moldiff.regressor.PropertyRegressor", judge)
    found = []
    for value in (0.0, 6.0):
        spec = guide_from(f"judge@carbons={value:g}")
        assert spec.loaded().deviation == 0.5 and spec.settings()["function"] == f"judge@carbons={value:g}"
        drawn = conditional.sample(6, seed=1, size=6, controls=[spec])
        found.append(sum(int((s.numbers == 6).sum()) for s in drawn))
    assert found[0] < found[1]


def test_a_regressor_guides_every_sample_to_what_it_is_asked(conditional, monkeypatch):
    config = SimpleNamespace(name="judge", targets=["gap"], condition_stats={"gap": SimpleNamespace(std=2.0)})
    monkeypatch.setattr("moldiff.model_store.model_info", lambda name: SimpleNamespace(config=config))
    judge = SimpleNamespace(from_pretrained=lambda name, device: lambda atoms: {"gap": atoms.count(6)})
    monkeypatch.setattr("moldiff.regressor.PropertyRegressor", judge)
    rows = [{"gap": 0.0, "n_atoms": 6}, {"gap": 6.0, "n_atoms": 6}, {"dipole": 1.0, "n_atoms": 6}]
    asked = {"conditions": rows, "guidance": 0, "seed": 1}
    guided = conditional.sample(12, guidance_function="judge@gap=asked", guidance_scale=2.0, **asked)
    carbons = [sum(int((s.numbers == 6).sum()) for s in guided[k::3]) for k in (0, 1)]
    assert carbons[0] < carbons[1], "towards its own row, the model not told"
    plain = conditional.sample(12, **asked)
    same = [bool((a.positions == b.positions).all()) for a, b in zip(guided, plain, strict=True)]
    assert same == [False, False, True] * 4, "a sample of which nothing is asked is left alone"
    again = conditional.sample(2, start=4, batch_size=1, guidance_function="judge@gap=asked", guidance_scale=2.0, **asked)
    assert all((a.positions == b.positions).all() for a, b in zip(guided[4:6], again, strict=True))
    assert conditional.request(1, guidance_function="judge@gap=asked", settle=2, conditions={"gap": 1.0}).settle == 2
    with pytest.raises(BadRequest, match="settle moves positions and does not go together with guidance_function"):
        conditional.request(1, guidance_function=closer, settle=2)
    for conditions in (None, {"dipole": 1.0}):
        with pytest.raises(BadRequest, match="follows a condition that is not asked for: --condition gap=VALUE"):
            conditional.request(1, conditions=conditions, guidance_function="judge@gap=asked")


def test_a_table_asks_every_sample_for_values_and_a_size_of_its_own(conditional, tmp_path):
    path = tmp_path / "targets.csv"
    path.write_text("gap,dipole,n_atoms\n5,,6\n8..9,1,5\n")
    spec = conditions_from([str(path)], 2.0)
    samples = conditional.sample(5, seed=2, controls=[spec])
    assert [len(s) for s in samples] == [6, 5, 6, 5, 6]
    assert [s.info["asked_gap"] for s in samples][::2] == [5.0] * 3 and 8 <= samples[1].info["asked_gap"] <= 9
    assert "asked_dipole" not in samples[0].info and samples[1].info["asked_dipole"] == 1.0
    rows = [{"gap": 5, "n_atoms": 6}, {"gap": (8, 9), "dipole": 1, "n_atoms": 5}]
    again = conditional.sample(2, seed=2, start=3, conditions=rows, guidance=2.0)
    assert all((a.positions == b.positions).all() for a, b in zip(samples[3:], again, strict=True))
    assert spec.settings()["sizes"] == [6, 5] and spec.values[0] == ("gap", 5.0, 9.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gap\n", "targets.csv has no rows"),
        ("", "targets.csv is empty"),
        ("gap\n5\nx\n", "targets.csv, row 2: condition 'gap' must be a number, found 'x'"),
        ("gap\n5,6\n", "row 1: more values than the 1 columns"),
        ("n_atoms\n5\n", "asks for no property"),
        ("gap,n_atoms\n5,2.5\n", "row 1: n_atoms must be a whole number"),
        ("gap,n_atoms\n5,99\n", "n_atoms = 99 is asked for, tiny makes 3 to 9 atoms"),
        ("gapp\n5\n", "unknown condition 'gapp'"),
    ],
)
def test_tables_that_can_not_be_read_are_refused(conditional, tmp_path, text, words):
    path = tmp_path / "targets.csv"
    path.write_text(text)
    with pytest.raises(BadRequest, match=words):
        conditional.request(1, controls=[conditions_from(path)])


def test_a_table_stands_alone(conditional, tmp_path):
    with pytest.raises(BadRequest, match=r"t.csv says what each sample is asked for: give it alone"):
        conditions_from(["t.csv", "gap=5"])
    with pytest.raises(BadRequest, match="cannot read"):
        conditions_from(tmp_path / "missing.csv")
    with pytest.raises(BadRequest, match="both say how many atoms"):
        conditional.request(1, conditions=[{"gap": 5, "n_atoms": 6}], smiles="CC")
