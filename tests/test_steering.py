"""Steering: a tilted distribution that is known, particles that take their history along, rewards that fail, bad requests."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import yaml

from moldiff.cli import main
from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.data.workers import Workers
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.gaussian import Gaussian
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.schedules import VarianceExploding
from moldiff.errors import BadRequest
from moldiff.generator import Generator
from moldiff.samples import Sample, SampleSet
from moldiff.sampling.dpm_solver import DPMSolver
from moldiff.sampling.grids import make_grid, winding_grid
from moldiff.sampling.loop import Memory, sample
from moldiff.sampling.registry import make_sampler
from moldiff.sampling.steering import Steered, balanced_strength, effective_size, neutral, systematic
from moldiff.sampling.watch import Watched
from moldiff.steer.reward import LEVELS, Reward, can_be_noised, reward_from
from moldiff.steer.rewards import Term
from moldiff.steer.scoring import Scorer, importable
from moldiff.testing import MixtureOracle, NormalField

SCHEDULE = VarianceExploding()
DIFFUSION = Diffusion({"positions": Gaussian("positions", SCHEDULE, zero_mean=True)})
WEIGHTS, MEANS, STDS = torch.tensor([0.7, 0.3]), torch.tensor([-0.8, 1.0]), torch.tensor([0.3, 0.4])


def oracle() -> MixtureOracle:
    """Two atoms whose distance along x is one of two normals: x_0 - x_1 ~ N(MEANS, 2 STDS^2)."""
    places = torch.zeros(2, 2, 3)
    places[:, 0, 0], places[:, 1, 0] = MEANS / 2, -MEANS / 2
    return MixtureOracle(WEIGHTS, 2, {"positions": NormalField("positions", places, STDS, True)})


def gap(batch: AtomBatch) -> torch.Tensor:
    return (batch.positions[:, 0, 0] - batch.positions[:, 1, 0]).double()


def tilted_cdf(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Of p(x) exp(strength x), each normal moved by strength times its variance."""
    variance = 2 * STDS.double().square()
    log_weight = WEIGHTS.double().log() + strength * MEANS.double() + strength**2 * variance / 2
    normal = torch.distributions.Normal(MEANS.double() + strength * variance, variance.sqrt())
    return (log_weight.softmax(0) * normal.cdf(x[:, None])).sum(1)


def steered(strength: float | None, rounds: int, potential: str, k: int, groups: int, pick: str = "draw") -> Steered:
    exact, like = oracle().denoiser(DIFFUSION), oracle().like(k * groups)
    high, low = (float(SCHEDULE.time_of_ratio(torch.tensor([level]))) for level in (0.9, 0.4))
    grid = winding_grid(lambda n: make_grid("karras", n, SCHEDULE), 80, 1, high, low, rounds)
    levels = () if rounds else (2.0, 1.0, 0.5, 0.25)
    control = Steered(gap, k, strength, potential, 0.7, pick, levels, 0.4 if rounds else None)
    sampler = make_sampler("dpm_solver", {"eta": 1.0})
    control.out = sample(exact, DIFFUSION, like, Streams.single(4), sampler, grid, control=control)
    return control


def distance(values: torch.Tensor, strength: float) -> float:
    """The greatest gap between the samples' distribution function and the tilted one."""
    ordered = values.sort().values
    steps = (torch.arange(len(ordered)) + 0.5) / len(ordered)
    return float((tilted_cdf(ordered, strength) - steps).abs().max())


@pytest.mark.parametrize(("potential", "rounds"), [("difference", 0), ("difference", 2), ("max", 0), ("max", 2)])
def test_particles_reproduce_the_tilted_distribution(potential, rounds):
    control = steered(1.0, rounds, potential, 24, 250)
    first = gap(control.out)[:: control.k]
    limit = 1.63 / math.sqrt(len(first)) + 0.02  # Kolmogorov-Smirnov at 1 %, and a little for 24 particles
    assert control.n_resampled > 100
    assert distance(first, 1.0) < limit
    assert distance(first, 0.0) > 2 * limit and distance(first, 2.5) > 2 * limit, "the test can tell strengths apart"
    torch.testing.assert_close(control.rewards, first)


def test_without_strength_the_best_of_each_group_comes_first_and_is_better_than_the_best_of_as_many():
    control = steered(None, 3, "difference", 8, 100, "best")
    values = gap(control.out).reshape(100, 8)
    assert torch.equal(values[:, 0], values.amax(1)) and torch.equal(control.rewards, values[:, 0])
    plain = gap(oracle().draw(800, 0)).reshape(100, 8).amax(1)
    assert float(control.rewards.mean()) > float(plain.mean()) + 3 * float(plain.std()) / 10


def test_one_particle_is_plain_sampling():
    grid = make_grid("karras", 30, SCHEDULE)
    draws = [
        sample(oracle().denoiser(DIFFUSION), DIFFUSION, oracle().like(5), Streams.of(1, range(5)), make_sampler("ddpm", {}), grid,
               control=control)
        for control in (None, Steered(gap, 1, levels=(1.0, 0.5)))
    ]  # fmt: skip
    assert torch.equal(draws[0].positions, draws[1].positions)


def test_systematic_resampling_gives_each_its_share():
    weight = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    total = torch.zeros(3, 4)
    for u in torch.linspace(0, 1, 201)[:-1]:
        parents = systematic(weight, u.double().expand(3))
        count = torch.stack([torch.bincount(p, minlength=4) for p in parents])
        assert bool((count >= (4 * weight).floor()).all()) and bool((count <= (4 * weight).ceil()).all())
        total += count
    torch.testing.assert_close(total / 200 / 4, weight.float(), atol=0.01, rtol=0)


def test_a_strength_is_found_for_any_scale_and_particles_without_a_reward():
    rewards = torch.tensor(
        [[0.0, 1, 2, 3, 4, 5, 6, 7], [0.0, 1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 7e-5], [2.0] * 8, [math.nan] * 8,
         [math.nan, -math.inf, 0, 1, 2, 3, 4, 5], [1, 1, 1, 1, 1, 1, 0, 0]], dtype=torch.float64,
    )  # fmt: skip
    strength = balanced_strength(rewards, 0.5)
    assert effective_size(strength[:2] * rewards[:2]).tolist() == pytest.approx([4, 4], rel=1e-3)
    assert strength[2:4].flatten().tolist() == [0, 0]
    copies = torch.tensor([[9.384, 9.384 + 1e-7, 9.384 - 1e-7]], dtype=torch.float64)
    assert float(balanced_strength(copies, 0.5)) == 0, "what rounding makes of copies is no reason to choose"
    alive = torch.where(rewards[4].isfinite(), rewards[4] * strength[4], -math.inf)
    assert float(effective_size(alive[None])) == pytest.approx(3, rel=1e-3)
    assert float(strength[5]) > 100, "more than half share the best: the rest is dropped"


def test_unknown_weights_are_the_mean_of_the_known_ones():
    weights = neutral(torch.tensor([[0.0, math.log(3), math.nan, -math.inf], [math.nan] * 4], dtype=torch.float64)).exp()
    torch.testing.assert_close(weights, torch.tensor([[1.0, 3.0, 4 / 3, 0.0], [1.0] * 4], dtype=torch.float64))


def test_particles_take_the_memory_of_sampler_denoiser_and_watch_along():
    exact = oracle().denoiser(DIFFUSION)

    def with_memory(xt: AtomBatch, t: torch.Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        found = exact(xt, t)
        return found if previous is None else found.replace(positions=0.7 * found.positions + 0.3 * previous.positions)

    def run(order: torch.Tensor | None, at: int) -> torch.Tensor:
        xt = DIFFUSION.prior(oracle().like(4), Streams.of(0, range(4)))
        watched = Watched(with_memory, 4, torch.device("cpu"))
        watched.spoilt[1] = True
        model, sampler, times = Memory(watched), DPMSolver(), make_grid("karras", 6, SCHEDULE)
        sampler.start(5)
        for k in range(5):
            xt = sampler.step(model, DIFFUSION, xt, times[k].expand(4), times[k + 1].expand(4), Streams.of(0, range(4)))
            if k == at and order is not None:
                xt = xt[order]
                model.reorder(order)
                sampler.reorder(order)
        return torch.cat([gap(xt), watched.spoilt.double()])

    plain, order = run(None, 2), torch.tensor([3, 1, 1, 0])
    found = run(order, 2)
    torch.testing.assert_close(found, torch.cat([plain[:4][order], plain[4:][order]]))


def test_the_way_winds_and_spends_no_more_calls():
    for n in (5, 20, 50, 100):
        for per_step in (1, 2) if n > 5 else (1,):
            grid = winding_grid(lambda k, p=per_step: make_grid("uniform", k, SCHEDULE, p), n, per_step, 0.57, 0.37, 3)
            calls = per_step * int((grid[1:] < grid[:-1]).sum()) + 1
            assert calls <= n and calls >= n - 4 * per_step
            rises = grid[1:][grid[1:] > grid[:-1]]
            assert len(rises) == 3 or n <= 20
            assert all(float(x) >= 0.57 for x in rises)
            assert float(grid[0]) == 1 and float(grid[-1]) == pytest.approx(1e-3)


# rewards of a model's samples


@pytest.fixture
def generator(tiny_model, monkeypatch) -> Generator:
    """A model with random weights whose samples count as molecules, whatever they are."""
    monkeypatch.setattr("moldiff.steer.rewards.molecule", lambda sample: sample)
    return Generator.from_pretrained(tiny_model, device="cpu")


def compact(sample: Sample) -> float:
    return -float((sample.positions**2).sum())


def same(a: Sample, b: Sample) -> bool:
    return a.info == b.info and all(np.array_equal(a.fields[k], b.fields[k]) for k in a.fields)


@pytest.mark.parametrize("sampler", ["ddpm", "dpm_solver"])
def test_a_steered_sample_does_not_depend_on_its_batch(generator, sampler):
    options = {"eta": 1.0} if sampler == "dpm_solver" else {}

    def draw(n: int, **more) -> list[Sample]:
        spec = reward_from(lambda sample: compact(sample), particles=5, options={"n_processes": 0})
        return list(generator.sample(n, seed=2, steps=25, sampler=sampler, options=options, controls=[spec], **more))

    whole = draw(7)
    assert [s.index for s in whole] == list(range(7))
    assert all(same(a, b) for a, b in zip(whole, draw(7, batch_size=3), strict=True))
    assert all(same(a, b) for a, b in zip(whole[5:], draw(2, start=5, batch_size=1), strict=True))


def test_the_reward_that_comes_with_a_sample_is_its_own_and_particles_help(generator):
    means = []
    for particles in (1, 6):
        spec = reward_from(compact, particles=particles, options={"n_processes": 0})
        drawn = generator.sample(10, seed=0, steps=20, size=6, controls=[spec])
        for s in drawn:
            assert s.info["reward"] == pytest.approx(compact(s), rel=1e-4)
        means.append(np.mean([s.info["reward"] for s in drawn]))
    assert means[1] > means[0] + 1


def test_rewards_that_fail_are_counted_shown_once_and_dropped(generator):
    def moody(sample: Sample) -> float:
        if float(sample.positions[0, 0]) > 0:
            raise ValueError("no such\nmood")
        return math.nan if float(sample.positions[0, 1]) > 0 else 1.0

    spec = reward_from(moody, particles=6)
    with pytest.warns(UserWarning, match=r"the reward failed for \d+ of \d+ structures, whose particles were dropped; first"):
        drawn = generator.sample(8, seed=0, steps=20, size=6, controls=[spec])
    kept = [s.info["reward"] for s in drawn]
    assert kept.count(1.0) >= 5, "a particle that has a reward is chosen where there is any"
    assert spec.notices() == [], "shown once"

    def hopeless(sample: Sample) -> float:
        raise RuntimeError("never")

    spec = reward_from(hopeless, particles=4)
    with pytest.warns(UserWarning, match="first with RuntimeError: never"):
        drawn = generator.sample(3, seed=0, steps=10, controls=[spec])
    assert [s.info["reward"] for s in drawn] == [None] * 3 and not any(s.problem for s in drawn)


def test_a_structure_that_is_none_is_no_failure(tiny_model):
    spec = reward_from("qed", particles=2)
    drawn = Generator.from_pretrained(tiny_model, device="cpu").sample(3, steps=8, controls=[spec])
    assert [s.info["reward"] for s in drawn] == [None] * 3
    assert spec.scorer.n_failed == 0 and spec.notices() == []


def methane(stretch: float = 1.0) -> Sample:
    x = np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=np.float32) * 0.629 * stretch
    bonds = np.zeros((5, 5), dtype=np.int64)
    bonds[0, 1:] = bonds[1:, 0] = 1
    return Sample(0, {"atom_types": np.array([6, 1, 1, 1, 1]), "positions": x, "bond_types": bonds, "charges": np.zeros(5, int)})


def test_named_rewards_targets_and_sums():
    spec = reward_from(["mol_weight", "-2*ring_count", "logp"], {"tpsa": (10, 5)})
    assert spec.settings()["terms"] == ["rdkit:MolWt", "-2*rdkit:RingCount", "rdkit:MolLogP", "rdkit:TPSA=10:5"]
    scorer = Scorer(spec.terms)
    assert not scorer.in_processes
    (value,) = scorer([methane()])
    assert value == pytest.approx(16.043 + 0.6361 - 4.0, abs=1e-3)
    apart = methane(9.0)
    apart.fields["bond_types"][0, 1] = apart.fields["bond_types"][1, 0] = 0
    assert math.isnan(scorer([apart])[0]) and scorer.n_invalid == 1, "fragments are no molecule"


def test_slow_and_importable_rewards_work_in_processes_that_stay():
    pytest.importorskip("tblite")
    spec = reward_from("xtb:gap", {"dipole": 0.0}, options={"n_processes": 1})
    scorer = spec.scorer
    assert scorer.in_processes
    first = scorer([methane(), methane(1.1)])
    children = list(scorer._pool()._pool.children)
    second = scorer([methane()])
    assert second[0] == pytest.approx(first[0]) and first[0] > first[1] > 5
    assert scorer._pool()._pool.children == children and len(children) == 1


def test_what_another_process_can_not_load_stays_here():
    assert importable(compact) and importable(math.sqrt)
    assert not importable(lambda mol: 1.0)
    strange = Term(lambda mol: 1.0)
    assert not Scorer([strange, Term("xtb:dipole")]).in_processes


def test_workers_answer_again_and_survive_a_crash():
    workers = Workers(abs, 1, 20.0)
    assert [r.value for r in workers.map([-1, -2, 3])] == [1, 2, 3]
    again = workers.map(["x", -5])
    assert not again[0].ok and again[0].value.startswith("TypeError: bad operand") and again[1] == (True, 5)
    workers.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"reward": "qedd"}, "unknown reward 'qedd'; did you mean 'qed'"),
        ({"reward": "rdkit:MolLogPP"}, "unknown RDKit descriptor 'MolLogPP'"),
        ({"reward": "xtb:dipol"}, "unknown GFN2-xTB property 'dipol'; did you mean 'dipole'"),
        ({"reward": "nowhere_at_all:f"}, "can't be imported"),
        ({"reward": "math:pi"}, "no function"),
        ({"reward": "x*qed"}, "weight must be a number"),
        ({"reward": 3}, "a function or a name"),
        ({"target": ["dipole"]}, "NAME=VALUE"),
        ({"target": ["dipole=much"]}, "must be a number"),
        ({"target": ["dipole=3:0"]}, "must be positive"),
        ({"particles": 4}, "particles need a reward"),
        ({"strength": 4.0}, "particles need a reward"),
        ({"reward": "qed", "particles": 0}, "whole number from 1 to 1024"),
        ({"reward": "qed", "particles": 2.5}, "whole number from 1 to 1024"),
        ({"reward": "qed", "strength": -1}, "positive number"),
        ({"reward": "qed", "strength": math.nan}, "positive number"),
        ({"reward": "qed", "options": {"potential": "sum"}}, "unknown potential 'sum'"),
        ({"reward": "qed", "options": {"threshold": 2}}, "at most 1"),
        ({"reward": "qed", "options": {"rounds": -1}}, "rounds"),
        ({"reward": "qed", "options": {"high": 0.1}}, "high must be above low"),
        ({"reward": "qed", "options": {"levels": [0]}}, "levels"),
        ({"reward": "qed", "options": {"particle": 2}}, "unknown option of the reward"),
    ],
)
def test_a_reward_that_can_not_be_read_is_refused(arguments, words):
    with pytest.raises(BadRequest, match=words):
        reward_from(**{"reward": None, **arguments})


def test_a_reward_that_does_not_fit_the_model_is_refused(tiny_model):
    generator = Generator.from_pretrained(tiny_model, device="cpu")
    with pytest.raises(BadRequest, match="is one of a crystal: tiny makes molecules"):
        generator.request(1, controls=[reward_from("chgnet:energy")])
    with pytest.raises(BadRequest, match="two rewards can't steer at once"):
        generator.request(1, controls=[reward_from("qed"), reward_from("logp")])
    request = generator.request(1, controls=[reward_from("qed", {"dipole": 3}, 4)])
    assert request.settings()["reward"]["terms"] == ["rdkit:qed", "xtb:dipole=3:1.5"]
    assert isinstance(request.controls[0], Reward) and request.controls[0].rows_each == 4


def test_a_denoiser_without_memory_needs_no_method():
    plain: Denoiser = oracle().denoiser(DIFFUSION)
    Memory(plain).reorder(torch.tensor([0]))


def test_a_reward_goes_with_element_limits_and_gradients(generator):
    drawn = generator.sample(
        4, seed=1, steps=16, size=6, reward=compact, particles=3, reward_options={"n_processes": 0}, exclude="O,N",
        guidance_function=lambda atoms: atoms.count(6),
    )  # fmt: skip
    assert all(set(s.numbers.tolist()) <= {1, 6} for s in drawn)
    assert all(s.info["reward"] == pytest.approx(compact(s), rel=1e-4) for s in drawn)
    carbons = [int((s.numbers == 6).sum()) for s in drawn]
    plain = generator.sample(4, seed=1, steps=16, size=6, exclude="O,N")
    assert sum(carbons) > sum(int((s.numbers == 6).sum()) for s in plain)


def test_generate_takes_rewards_and_says_in_one_sentence_what_is_wrong(tiny_model, tmp_path, capsys):
    out = tmp_path / "run"
    asked = ["generate", "--model", str(tiny_model), "-n", "2", "--steps", "8", "--out", str(out)]
    steering = ["--reward", "qed", "--target", "ring_count=2:0.5", "--particles", "2"]

    def run(*more: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main([*asked, *more])
        return int(end.value.code or 0), capsys.readouterr().err

    assert run(*steering)[0] == 0
    assert (out / "samples.csv").read_text().splitlines()[0].endswith(",reward")
    settings = yaml.safe_load((out / "run.yaml").read_text())["settings"]["reward"]
    assert settings["terms"] == ["rdkit:qed", "rdkit:RingCount=2:0.5"] and settings["particles"] == 2
    assert run("--resume", *steering)[0] == 0
    code, message = run("--resume", *steering, "--reward-strength", "3")
    assert code == 2 and "was made with reward = " in message
    for wrong, words in (
        (["--reward", "qedd"], "did you mean 'qed'"),
        (["--particles", "3"], "particles need a reward"),
        (["--condition", "gap=9"], "was trained without conditions"),
        (["--guidance", "2"], "guidance needs a condition"),
        (["--guidance-function", "nowhere:f"], "can't be imported"),
        (["--reward", "chgnet:energy"], "is one of a crystal"),
    ):
        code, message = run(*wrong)
        assert code == 2 and words in message and len(message.strip().splitlines()) == 1


def test_a_model_that_can_not_be_noised_is_resampled_on_the_way_down(tiny_crystal):
    generator = Generator.from_pretrained(tiny_crystal, device="cpu")
    assert not can_be_noised(generator.info)
    spec = reward_from("crystal:density", particles=3, info=generator.info)
    assert spec.rounds == 0 and spec.levels == LEVELS and spec.returns is None
    with pytest.raises(BadRequest, match="ask for rounds=0"):
        generator.request(1, reward="crystal:density", reward_options={"rounds": 2})
    drawn = generator.sample(3, seed=0, steps=10, reward=lambda structure: structure.density, particles=3)
    again = generator.sample(1, seed=0, steps=10, start=2, reward=lambda structure: structure.density, particles=3)
    assert drawn[2].info["reward"] == pytest.approx(again[0].info["reward"], rel=1e-5)
    for one in drawn:
        if one.info["reward"] is not None:
            structure = SampleSet([one]).to_pymatgen()[0]
            assert one.info["reward"] == pytest.approx(float(structure.density), rel=1e-4)
