"""Candidates of molecules: the one that a regressor finds nearest to what is asked comes back, whatever the batch."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from conftest import SIZES, tiny_config

from moldiff import generate as runs
from moldiff.assemble import build_denoiser, build_regressor
from moldiff.chem.shape import has_shape, least_depth, most_twist
from moldiff.cli import main
from moldiff.config import ConditionStats
from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.errors import BadRequest
from moldiff.generator import Generator
from moldiff.model_export import export_model
from moldiff.regressor import PropertyRegressor
from moldiff.samples import Sample
from moldiff.sampling.candidates import Judged
from moldiff.steer.conditions import conditions_from
from moldiff.steer.judged import JudgedCandidates, fits, outside, sound

WIDE = {"mean": 2.0, "std": 0.5, "low": -90, "high": 90, "least": -99, "greatest": 99, "known": 50}
STATS = {name: ConditionStats(**WIDE) for name in ("gap", "dipole")}
FIELDS = {
    "positions": {"process": "gaussian", "schedule": {"name": "variance_exploding"}, "parameterization": "karras", "scale": 1.4},
    "atom_types": {"process": "categorical"},
}
METHANE = {
    "atom_types": np.array([6, 1, 1, 1, 1]),
    "positions": np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * np.float32(0.63),
    "bond_types": np.pad([[0, 1, 1, 1, 1]], ((0, 4), (0, 0))) + np.pad([[0, 1, 1, 1, 1]], ((0, 4), (0, 0))).T,
    "charges": np.zeros(5, dtype=int),
}


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A regressor of two properties with random weights."""
    torch.manual_seed(3)
    config = tiny_config(name="tiny-judge", fields=FIELDS, targets=["gap", "dipole"], vocabulary={"atom_types": [1, 6, 7, 8]})
    config = config.model_copy(update={"condition_stats": STATS})
    regressor = build_regressor(config)
    with torch.no_grad():
        for p in regressor.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    folder = tmp_path_factory.mktemp("models") / "tiny-judge"
    export_model(regressor.state_dict(), config, None, folder, sizes=SIZES)
    return folder


@pytest.fixture(scope="module")
def conditional(judge, tmp_path_factory):
    """A generator that is told three properties, of which its judge knows two."""
    torch.manual_seed(1)
    sampling = {"sampler": "ddpm", "steps": 5, "judge": str(judge)}
    config = tiny_config(name="told", conditions=["gap", "dipole", "charm"], sampling=sampling)
    config = config.model_copy(update={"condition_stats": {**STATS, "charm": STATS["gap"]}})
    folder = tmp_path_factory.mktemp("models") / "told"
    export_model(build_denoiser(config).state_dict(), config, None, folder, sizes=SIZES)
    return Generator.from_pretrained(folder, device="cpu")


def arrays(samples) -> list[bytes]:
    return [b"".join(s.fields[name].tobytes() for name in sorted(s.fields)) for s in samples]


def judged(judge, **asked) -> JudgedCandidates:
    """The specification with its judge found, no model beside it."""
    from types import SimpleNamespace

    from moldiff.model_store import model_info

    spec = JudgedCandidates(3, conditions_from(asked), str(judge))
    known = SimpleNamespace(conditions=("gap", "dipole"), condition_classes={}, condition_stats=STATS, sampling=None)
    spec.check(SimpleNamespace(name="any", config=known))
    assert spec.settings()["judge_sha256"] == model_info(judge).weights_sha256
    return spec


def test_distances_are_in_deviations_summed_and_nought_within_a_range(judge):
    found = {"gap": np.array([2.0, 5.0, 9.5]), "dipole": np.array([1.0, 3.0, 1.0])}
    good = [Sample(i, METHANE) for i in range(3)]
    assert judged(judge, gap=5.0).ranks(0, good, found) == [6.0, 0.0, 9.0]
    assert judged(judge, gap=(4, 9), dipole=1.5).ranks(0, good, found) == [4.0 + 1.0, 0.0 + 3.0, 1.0 + 1.0]
    assert outside(np.array([1.0, 2.0, 3.0, 4.5]), 2.0, 3.0).tolist() == [1.0, 0.0, 0.0, 1.5]
    table = JudgedCandidates(3, conditions_from([{"gap": 2.0}, {"dipole": 3.0}]), str(judge))
    table._shared.update(judged(judge, gap=5.0)._shared)
    assert [np.argmin(table.ranks(i, good, found)) for i in (0, 1, 2)] == [0, 1, 0], "each sample by its own row"


def test_what_is_no_molecule_comes_last(judge):
    def broken(**changes):
        return Sample(0, {**METHANE, **changes})

    open_valence = METHANE["bond_types"].copy()
    open_valence[0, 1] = open_valence[1, 0] = 0
    apart = {"atom_types": np.array([1, 1, 1, 1]), "bond_types": np.kron(np.eye(2, dtype=int), [[0, 1], [1, 0]]),
             "charges": np.zeros(4, dtype=int), "positions": np.zeros((4, 3), dtype=np.float32)}  # fmt: skip
    assert sound(Sample(0, METHANE)) and not sound(broken(bond_types=open_valence)), "a hydrogen without a bond"
    assert not sound(Sample(0, apart)), "two hydrogen molecules"
    assert not sound(broken(charges=np.array([1, 0, 0, 0, 0]))), "no valence of a cation"
    assert not sound(Sample(0, METHANE, "non-finite numbers"))
    stretched = broken(positions=METHANE["positions"] * np.float32(1.3))
    assert sound(stretched) and not fits(stretched) and fits(Sample(0, METHANE)), "bonds of 1.4 Å to hydrogen"
    samples = [broken(bond_types=open_valence), Sample(1, METHANE), Sample(2, apart)]
    of_methanes = judged(judge, gap=5.0).ranks(0, [stretched, Sample(1, METHANE)], {"gap": np.array([5.0, 99.0])})
    in_parts = judged(judge, gap=5.0).ranks(0, [Sample(2, apart)], {"gap": np.array([5.0])})
    assert of_methanes[1] < of_methanes[0] < in_parts[0]
    ranks = judged(judge, gap=5.0).ranks(0, samples, {"gap": np.array([5.0, 99.0, np.nan])})
    assert np.nanargmin(ranks) == 1 and np.isnan(ranks[2]), "a sound one however far, before an unsound one however near"


def ethene(twist: float):
    """Bonds and positions of ethene, one end turned by so many degrees."""
    a = np.radians(twist)
    end, turned = np.array([1.24, 0, 0]), np.array([0, np.cos(a), np.sin(a)]) * 0.93
    ends = [[-1.24, 0.93, 0], [-1.24, -0.93, 0], end + turned, end - turned]
    bonds = np.zeros((6, 6), dtype=int)
    for i, j, order in ((0, 1, 2), (0, 2, 1), (0, 3, 1), (1, 4, 1), (1, 5, 1)):
        bonds[i, j] = bonds[j, i] = order
    return bonds, np.array([[-0.67, 0, 0], [0.67, 0, 0], *ends])


def test_shapes_that_bonds_forbid():
    bonds, positions = METHANE["bond_types"], METHANE["positions"]
    assert least_depth(bonds, positions) == pytest.approx(4 / 3, rel=1e-5) and has_shape(bonds, positions)
    flat = np.array([[0, 0, 0], [1.09, 0, 0], [-1.09, 0, 0], [0, 1.09, 0], [0, -1.09, 0]])
    assert least_depth(bonds, flat) == pytest.approx(0, abs=1e-9) and not has_shape(bonds, flat)
    assert not fits(Sample(0, {**METHANE, "positions": flat})), "each distance to the carbon is a good one"
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    for twist in (0.0, 20.0, 75.0, 105.0, 170.0):
        b, x = ethene(twist)
        assert most_twist(b, x @ turn) == pytest.approx(min(twist, 180 - twist), abs=1e-3)
        assert has_shape(b, x) == (min(twist, 180 - twist) <= 30)
    assert least_depth(*ethene(0)) == np.inf and most_twist(bonds, positions) == 0
    allene = np.zeros((7, 7), dtype=int)  # its two ends lie at a right angle, and are no twisted bond
    for i, j, order in ((0, 1, 2), (1, 2, 2), (0, 3, 1), (0, 4, 1), (2, 5, 1), (2, 6, 1)):
        allene[i, j] = allene[j, i] = order
    x = np.array([[-1.31, 0, 0], [0, 0, 0], [1.31, 0, 0], [-1.9, 0.93, 0], [-1.9, -0.93, 0], [1.9, 0, 0.93], [1.9, 0, -0.93]])
    assert has_shape(allene, x)


class Moved:
    def __init__(self) -> None:
        self.index = None

    def reorder(self, index):
        self.index = index.tolist()


def test_the_least_rank_comes_first_and_takes_all_memory_along():
    x0 = AtomBatch(torch.ones(6, 2, dtype=torch.bool), {"positions": torch.arange(36.0).reshape(6, 2, 3)})
    ranks = [[2.0, float("nan"), 1.0], [float("nan")] * 3]

    def judge(group, systems):
        assert torch.equal(systems.positions, x0.positions[3 * group : 3 * group + 3])
        return ranks[group], [{"row": k} for k in range(3)]

    control, moved = Judged(judge, 3), Moved()
    control.wrap(moved, None)
    out = control.choose(control.finish(x0, None), None)
    assert moved.index == [2, 1, 2, 3, 4, 5] and torch.equal(out.positions[0], x0.positions[2])
    assert [control.facts(k) for k in (0, 1, 3)] == [{"row": 2}, {}, {"row": 0}]
    filled = Judged(lambda group, systems: (ranks[group], [{}] * 3), 3, n_groups=1)
    filled.wrap(Moved(), None)
    filled.choose(x0, None)
    assert len(filled.said) == 1, "rows that only fill up are not judged"
    with pytest.raises(ValueError, match="whole number of groups"):
        Judged(judge, 4).start(x0, None, Streams.of(0, range(6)))


def test_the_nearest_of_the_plain_draws_comes_back_whatever_the_batch(conditional, judge):
    asked = {"gap": 2.1, "dipole": (1.5, 1.9)}
    whole = conditional.sample(6, conditions=asked, candidates=4, seed=7, size=6)
    for size in (1, 4):
        assert arrays(conditional.sample(6, conditions=asked, candidates=4, seed=7, size=6, batch_size=size)) == arrays(whole)
    later = conditional.sample(2, conditions=asked, candidates=4, seed=7, size=6, start=4)
    assert arrays(later) == arrays(whole)[4:] and [s.info for s in later] == [s.info for s in whole[4:]]

    # one value for all, so that the plain draws are told what the candidates are
    one = conditional.sample(6, conditions={"gap": 2.1}, candidates=4, seed=7, size=6)
    plain = conditional.sample(24, conditions={"gap": 2.1}, seed=7, size=6)
    found = PropertyRegressor.from_pretrained(judge, "cpu").predict(plain)["gap"].reshape(6, 4)
    good, fair = (np.array([ask(s) for s in plain]).reshape(6, 4) for ask in (sound, fits))
    nearest = (np.abs(found - 2.1) + np.where(good, 1e3 * ~fair, 1e6)).argmin(1)
    assert [arrays(plain).index(x) for x in arrays(one)] == [4 * i + int(k) for i, k in enumerate(nearest)]
    assert len(set(nearest.tolist())) > 1, "not always the same of them"
    assert [s.info["gap_predicted"] for s in one] == pytest.approx(found[range(6), nearest], abs=1e-4)
    assert "dipole_predicted" not in one[0].info and "gap_predicted" not in plain[0].info


def test_candidates_of_a_sample_share_what_it_is_asked_and_are_judged_as_they_settle(conditional, judge):
    rows = [{"gap": 1.0, "n_atoms": 5}, {"gap": 3.0, "n_atoms": 6}, {"dipole": 2.0}]
    drawn = conditional.sample(5, conditions=rows, candidates=3, seed=2)
    assert [len(s) for s in drawn[:2]] + [len(s) for s in drawn[3:]] == [5, 6, 5, 6]
    assert [s.info.get("asked_gap") for s in drawn] == [1.0, 3.0, None, 1.0, 3.0]
    assert all({"gap_predicted", "dipole_predicted"} <= set(s.info) for s in drawn), "columns that don't depend on the batch"
    settled = conditional.sample(4, conditions={"gap": 2.0}, candidates=3, seed=1, steps=9, settle=3)
    found = PropertyRegressor.from_pretrained(judge, "cpu").predict(settled)["gap"]
    assert [s.info["gap_predicted"] for s in settled] == pytest.approx(found.tolist(), abs=1e-4)


def test_a_run_in_parts_leaves_the_same_bytes(conditional, tmp_path):
    def go(out, batch, stop=None):
        request = conditional.request(6, conditions={"gap": (1.9, 2.0)}, candidates=3, seed=2)
        assert request.calls_each == 3 * request.steps
        folder = runs.open_run(out, request, "cpu", out.exists())
        if stop is None:
            runs.run(conditional, request, folder, batch)
        else:
            with pytest.raises(RuntimeError, match="stopped"):
                runs.run(conditional, request, folder, batch, progress=stop)
        return folder

    def stop(done: float, n: int) -> None:
        if done > 2.5:
            raise RuntimeError("stopped")

    whole = go(tmp_path / "a", 6)
    go(tmp_path / "b", 2, stop)
    parts = go(tmp_path / "b", 1)
    for name in ("samples.sdf", "samples.csv", "metrics.json", "run.yaml"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
    rows = list(csv.DictReader((whole / "samples.csv").open()))
    assert len(rows) == 6 and all(float(row["gap_predicted"]) > 0 for row in rows)
    other = conditional.request(6, conditions={"gap": (1.9, 2.0)}, candidates=4, seed=2)
    with pytest.raises(BadRequest, match="candidates"):
        runs.open_run(tmp_path / "b", other, "cpu", True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"candidates": 4}, "chosen by what is asked of them: name a condition"),
        ({"candidates": 4, "conditions": {"charm": 1.0}}, "unknown property of the judge tiny-judge 'charm'"),
        ({"candidates": 4, "conditions": {"sweetness": 1.0}}, "unknown condition 'sweetness'"),
        ({"candidates": 4, "conditions": {"gap": 2.0}, "reward": "qed"}, "candidates and reward both draw"),
        ({"candidates": 65, "conditions": {"gap": 2.0}}, "whole number from 1 to 64"),
        ({"conditions": {"gap": 2.0}, "judge": "SELF"}, "a judge chooses among several candidates"),
        ({"candidates": 4, "conditions": {"gap": 2.0}, "judge": "SELF"}, "told makes samples and can't judge them"),
        ({"candidates": 4, "conditions": {"gap": 2.0}, "judge": "nobody"}, "unknown model 'nobody'"),
    ],
)
def test_bad_requests(conditional, options, said):
    if options.get("judge") == "SELF":
        options = {**options, "judge": conditional.info.folder}
    with pytest.raises(BadRequest, match=said):
        conditional.request(2, **options)


def test_from_the_shell(conditional, judge, tiny_model, tiny_csp, tmp_path, capsys):
    out = tmp_path / "run"
    ask = ["generate", "--model", str(conditional.info.folder), "-n", "3", "--condition", "gap=2", "--device", "cpu"]
    with pytest.raises(SystemExit, match="0"):
        main([*ask, "--candidates", "2", "--judge", str(judge), "--out", str(out)])
    rows = list(csv.DictReader((out / "samples.csv").open()))
    assert [row["asked_gap"] for row in rows] == ["2.0"] * 3 and all(row["gap_predicted"] for row in rows)
    for model, more, said in (
        (tiny_model, ["--candidates", "2"], "name a condition"),
        (tiny_csp, ["--formula", "NaCl", "--candidates", "2", "--judge", "qm9"], "candidates of crystals are ranked"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["generate", "--model", str(model), "-n", "2", *more, "--out", str(tmp_path / "none")])
        assert said in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_elements_that_the_judge_does_not_know_are_warned_of(judge, tmp_path):
    vocabulary = {"atom_types": [1, 6, 9], "charges": [-1, 0, 1], "bond_types": [0, 1, 2, 3]}
    config = tiny_config(name="told", conditions=["gap"], vocabulary=vocabulary)
    config = config.model_copy(update={"condition_stats": {"gap": STATS["gap"]}})
    export_model(build_denoiser(config).state_dict(), config, None, tmp_path / "told", sizes=SIZES)
    generator = Generator.from_pretrained(tmp_path / "told", device="cpu")
    with pytest.warns(UserWarning, match="tiny-judge does not know F: what holds it comes last"):
        drawn = generator.sample(8, conditions={"gap": 2.0}, candidates=6, judge=judge, size=3)
    plain = generator.sample(48, conditions={"gap": 2.0}, size=3)
    foreign = [9 in s.numbers for s in plain]
    assert [s.info["gap_predicted"] is None for s in drawn] == [all(foreign[6 * i : 6 * i + 6]) for i in range(8)]
    assert any(foreign) and not all(foreign)


def test_without_a_judge(tmp_path):
    config = tiny_config(name="told", conditions=["gap"]).model_copy(update={"condition_stats": {"gap": STATS["gap"]}})
    export_model(build_denoiser(config).state_dict(), config, None, tmp_path / "told", sizes=SIZES)
    generator = Generator.from_pretrained(tmp_path / "told", device="cpu")
    with pytest.raises(BadRequest, match="told names none: --judge REGRESSOR"):
        generator.request(2, conditions={"gap": 2.0}, candidates=3)
