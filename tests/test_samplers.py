"""Every sampler with every schedule and field mix against exact oracles, and against the papers' own formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.categorical import Categorical
from moldiff.diffusion.gaussian import Gaussian
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.onehot import OneHot
from moldiff.diffusion.schedules import Cosine, Linear, Polynomial, Schedule, VarianceExploding
from moldiff.errors import BadRequest
from moldiff.sampling.grids import make_grid
from moldiff.sampling.loop import Memory, Sampler, sample
from moldiff.sampling.noise import ScaledNoise
from moldiff.sampling.registry import SAMPLERS, make_sampler, sampler_options
from moldiff.sampling.sharpen import Sharpened
from moldiff.testing import MixtureOracle, NormalField, check_sampler, default_diffusion, default_oracle

CHOICES: list[tuple[str, dict[str, float]]] = [
    ("ddpm", {}),
    ("ddim", {"eta": 0.5}),
    ("ddim", {}),
    ("euler", {"s_churn": 20}),
    ("heun", {}),
    ("heun", {"s_churn": 0}),
    ("exponential_heun", {"s_churn": 0}),
    ("dpm_solver", {}),
    ("dpm_solver", {"eta": 1}),
]
SCHEDULES = [VarianceExploding(), Cosine(), Polynomial(), Linear()]


def mix_a(schedule: Schedule) -> Diffusion:
    """The flagship's fields, charges absorbing by the posterior rule."""
    return Diffusion(
        {
            "positions": Gaussian("positions", schedule, "karras", 1.4, zero_mean=True),
            "atom_types": Categorical("atom_types", schedule, 3, "uniform", "resample"),
            "charges": Categorical("charges", schedule, 3, "absorbing", "posterior"),
            "bond_types": Categorical("bond_types", schedule, 3, "uniform", "posterior"),
        }
    )


def mix_b(schedule: Schedule) -> Diffusion:
    """EDM's continuous types, absorbing bonds by resampling."""
    return Diffusion(
        {
            "positions": Gaussian("positions", schedule, "eps", zero_mean=True),
            "atom_types": OneHot("atom_types", schedule, 3),
            "bond_types": Categorical("bond_types", schedule, 3, "absorbing", "resample"),
        }
    )


@pytest.mark.parametrize("s", range(4), ids=[type(s).__name__ for s in SCHEDULES])
@pytest.mark.parametrize("k", range(len(CHOICES)), ids=[f"{n}-{o}" for n, o in CHOICES])
def test_every_sampler_reproduces_the_data(k: int, s: int) -> None:
    name, options = CHOICES[k]
    mix = (mix_a, mix_b)[(k + s) % 2]  # each sampler and each schedule meets both
    check_sampler(make_sampler(name, options), mix(SCHEDULES[s]), n_samples=600, n_calls=40)


@pytest.mark.parametrize("grid", ["uniform", "log", "tan", "rho2.5"])
def test_other_grids_reproduce_the_data(grid: str) -> None:
    check_sampler(make_sampler("exponential_heun"), n_samples=600, n_calls=60, grid=grid)


def test_categorical_fields_alone() -> None:
    for name in SAMPLERS:
        diffusion = Diffusion({"atom_types": Categorical("atom_types", Cosine(), 4, "uniform", "posterior")})
        if SAMPLERS[name].calls_per_step == 1:
            check_sampler(make_sampler(name), diffusion, n_samples=600, n_calls=60)


def _normal(schedule: Schedule) -> tuple[Diffusion, MixtureOracle, Denoiser]:
    """One field of two normals under one schedule, with its exact denoiser."""
    diffusion = Diffusion({"lattice": Gaussian("lattice", schedule, scale=1.0)})
    means = torch.zeros(2, 3, 3)
    means[0], means[1, 0] = 0.7, -1.1
    model = NormalField("lattice", means, torch.tensor([0.3, 0.5]), zero_mean=False)
    oracle = MixtureOracle(torch.tensor([0.6, 0.4]), 2, {"lattice": model})
    return diffusion, oracle, oracle.denoiser(diffusion)


def _unit_normal() -> tuple[Diffusion, MixtureOracle]:
    model = NormalField("lattice", torch.zeros(1, 3, 3), torch.ones(1), zero_mean=False)
    diffusion = Diffusion({"lattice": Gaussian("lattice", VarianceExploding())})
    return diffusion, MixtureOracle(torch.ones(1), 1, {"lattice": model})


def _path(sampler: Sampler, diffusion: Diffusion, denoiser: Denoiser, start: AtomBatch, times: Tensor) -> Tensor:
    model, rng, xt, n = Memory(denoiser), Streams.single(9), start, start.n_systems
    sampler.start(len(times) - 1)
    for t, s in pairwise(times):
        xt = sampler.step(model, diffusion, xt, t.expand(n), s.expand(n), rng)
    return xt.lattice


def test_heun_is_algorithm_2_of_karras() -> None:
    """Against the paper's own loop over sigma, with its derivative d = (x - D) / sigma."""
    schedule = VarianceExploding()
    diffusion, oracle, denoiser = _normal(schedule)
    like = oracle.like(16)
    times = make_grid("karras", 12, schedule)
    start = diffusion.prior(like, Streams.single(0))

    def clean(x: Tensor, sigma: Tensor) -> Tensor:
        t = schedule.time_of_ratio(sigma)
        return denoiser(like.replace(lattice=x), t.expand(16)).lattice

    x, sigmas = start.lattice, schedule.sigma(times)
    rng, n_steps = Streams.single(9), len(times) - 1
    for a, b in pairwise(sigmas):
        inside = 0.05 <= float(a) <= 20
        gamma = min(6 / n_steps, math.sqrt(2) - 1) if inside else 0.0
        hat = a * (1 + gamma)
        x = x + (hat**2 - a**2).clamp_min(0).sqrt() * 1.1 * rng.normal(like, "lattice")
        slope = (x - clean(x, hat)) / hat
        guess = x + (b - hat) * slope
        x = x + (b - hat) * (slope + (guess - clean(guess, b)) / b) / 2
    sampler = make_sampler("heun", {"s_churn": 6, "s_min": 0.05, "s_max": 20, "s_noise": 1.1})
    torch.testing.assert_close(_path(sampler, diffusion, denoiser, start, times), x, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_dpm_solver_is_the_papers_formula(schedule: Schedule, eta: float) -> None:
    """Against DPM-Solver++(2M) and its SDE form, written with lambda = log(alpha / sigma) as in Lu et al."""
    diffusion, oracle, denoiser = _normal(schedule)
    like = oracle.like(16)
    times = make_grid("log", 14, schedule)
    start = diffusion.prior(like, Streams.single(0))
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    lam = (alpha / sigma).log()
    x, before, rng = start.lattice, None, Streams.single(9)
    for i in range(1, len(times)):
        value = denoiser(like.replace(lattice=x), times[i - 1].expand(16)).lattice
        h = lam[i] - lam[i - 1]
        d = value
        if before is not None:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * value - 1 / (2 * r) * before
        before = value
        if eta == 0:
            x = sigma[i] / sigma[i - 1] * x - alpha[i] * torch.expm1(-h) * d
        else:
            x = sigma[i] / sigma[i - 1] * (-h).exp() * x - alpha[i] * torch.expm1(-2 * h) * d
            x = x + sigma[i] * (-torch.expm1(-2 * h)).sqrt() * rng.normal(like, "lattice")
    found = _path(make_sampler("dpm_solver", {"eta": eta}), diffusion, denoiser, start, times)
    torch.testing.assert_close(found, x, rtol=2e-3, atol=2e-3)


def test_second_order_samplers_are_more_accurate_at_equal_calls() -> None:
    diffusion, oracle, denoiser = _normal(VarianceExploding())
    start = diffusion.prior(oracle.like(64), Streams.single(0))

    def run(name: str, options: dict[str, float], n_calls: int) -> Tensor:
        sampler = make_sampler(name, options)
        grid = make_grid("karras", n_calls, diffusion.schedule, sampler.calls_per_step)
        return _path(sampler, diffusion, denoiser, start, grid)

    exact = run("exponential_heun", {"s_churn": 0}, 401)
    error = {
        name: float((run(name, {"s_churn": 0} if "heun" in name else {}, 41) - exact).square().mean().sqrt())
        for name in ("euler", "exponential_heun", "dpm_solver")
    }
    assert error["exponential_heun"] < error["euler"] / 2
    assert error["dpm_solver"] < error["euler"] / 4


def test_noise_with_second_order_keeps_the_spread_in_twenty_calls() -> None:
    """The ancestral step narrows a normal by an eighth at 20 calls; DPM-Solver++'s stochastic form hardly does."""
    diffusion, oracle = _unit_normal()
    grid = make_grid("uniform", 20, diffusion.schedule)

    def spread(name: str) -> float:
        sampler = make_sampler(name, {"eta": 1})
        rng, like = Streams.single(0), oracle.like(2000)
        return float(sample(oracle.denoiser(diffusion), diffusion, like, rng, sampler, grid).lattice.std())

    assert spread("ddpm") < 0.9
    assert abs(spread("dpm_solver") - 1) < 0.03


def test_euler_without_churn_is_ddim() -> None:
    diffusion, oracle, denoiser = _normal(Cosine())
    start = diffusion.prior(oracle.like(4), Streams.single(0))
    times = make_grid("uniform", 9, diffusion.schedule)
    a, b = (_path(make_sampler(n), diffusion, denoiser, start, times) for n in ("euler", "ddim"))
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["heun", "exponential_heun"])
def test_corrector_leaves_the_classes_that_the_predictor_drew(name: str) -> None:
    """Classes move once a step, by their process's own draw; the corrector's call sees them."""
    diffusion = default_diffusion()
    oracle = default_oracle(diffusion)
    exact = oracle.denoiser(diffusion)
    seen: list[AtomBatch] = []

    def watched(xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        seen.append(xt)
        return exact(xt, t)

    t, s = torch.full((50,), 0.7), torch.full((50,), 0.6)
    xt = diffusion.noise(oracle.draw(50, 0), t, Streams.single(0))
    model = Memory(watched)
    moved = make_sampler(name, {"s_churn": 0}).step(model, diffusion, xt, t, s, Streams.single(1))
    once = diffusion.step(xt, exact(xt, t), t, s, Streams.single(1), eta=0.0)
    assert model.calls == 2
    for field in ("atom_types", "bond_types"):
        assert torch.equal(moved.data[field], once.data[field])
        assert torch.equal(moved.data[field], seen[1].data[field])
        assert not torch.equal(moved.data[field], xt.data[field])
    assert not torch.allclose(moved.positions, once.positions)


def test_churn_raises_all_fields_to_one_later_time() -> None:
    diffusion = default_diffusion()
    oracle = default_oracle(diffusion)
    exact, times = oracle.denoiser(diffusion), []

    def watched(xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        times.append(float(t[0]))
        return exact(xt, t)

    grid = make_grid("karras", 21, diffusion.schedule)
    sample(watched, diffusion, oracle.like(3), Streams.single(0), make_sampler("euler", {"s_churn": 4}), grid)
    called = diffusion.schedule.ratio(torch.tensor(times[:-1]))
    plain = diffusion.schedule.ratio(grid[:-1])
    inside = (plain >= 0.03) & (plain <= 3)
    torch.testing.assert_close(called[inside], plain[inside] * 1.2, rtol=1e-3, atol=0)
    torch.testing.assert_close(called[~inside], plain[~inside])
    assert 3 < int(inside.sum()) < 17


@pytest.mark.parametrize(("name", "option"), [("ddpm", "noise_scale"), ("dpm_solver", "noise_scale"), ("heun", "s_noise")])
def test_temperature_narrows_the_samples(name: str, option: str) -> None:
    """Less injected noise than is right: samples of one normal come out too narrow, monotonously."""
    diffusion, oracle = _unit_normal()
    spread = []
    for scale in (1.0, 0.8, 0.6):
        options = {option: scale} | ({"eta": 1.0} if name != "heun" else {})
        sampler = make_sampler(name, options)
        grid = make_grid("karras", 61, diffusion.schedule, sampler.calls_per_step)
        drawn = sample(oracle.denoiser(diffusion), diffusion, oracle.like(1500), Streams.single(0), sampler, grid)
        spread.append(float(drawn.lattice.std()))
    assert spread[0] == pytest.approx(1, abs=0.12)
    assert spread[1] < spread[0] - 0.05 and spread[2] < spread[1] - 0.05


def test_scaled_noise_leaves_uniform_draws_and_streams_alone() -> None:
    like = default_oracle(default_diffusion()).like(3)
    rng, other = ScaledNoise(Streams.of(1, [0, 1, 2]), 0.5), Streams.of(1, [0, 1, 2])
    torch.testing.assert_close(rng.normal(like, "positions"), 0.5 * other.normal(like, "positions"))
    assert torch.equal(rng.uniform(like, "bond_types"), other.uniform(like, "bond_types"))
    part = rng.subset([2]).normal(like[2:], "positions")
    torch.testing.assert_close(part, 0.5 * other.subset([2]).normal(like[2:], "positions"))


def test_sharpened_denoiser() -> None:
    diffusion = default_diffusion()
    oracle = default_oracle(diffusion)
    exact = oracle.denoiser(diffusion)
    given: list[AtomBatch | None] = []

    def network(xt: AtomBatch, t: Tensor, previous: AtomBatch | None = None) -> AtomBatch:
        given.append(previous)
        return exact(xt, t)

    x0, t = oracle.draw(5, 0), torch.full((5,), 0.6)
    xt = diffusion.noise(x0, t, Streams.single(0))
    plain = exact(xt, t)
    cold = Sharpened(network, diffusion, {"atom_types": 0.5})
    first = cold(xt, t)
    cold(xt, t, first)
    torch.testing.assert_close(first.atom_types, 2 * plain.atom_types)
    assert torch.equal(first.bond_types, plain.bond_types) and torch.equal(first.positions, plain.positions)
    # the network sees its own prediction again, not the tempered one
    assert given[1] is not None
    torch.testing.assert_close(given[1].atom_types, plain.atom_types)
    with pytest.raises(BadRequest, match="unknown categorical field 'positions'"):
        Sharpened(network, diffusion, {"positions": 0.5})
    with pytest.raises(BadRequest, match="temperature of 'atom_types' must be positive, found 0"):
        Sharpened(network, diffusion, 0)


def test_sampling_can_start_from_a_noised_system() -> None:
    diffusion = default_diffusion()
    oracle = default_oracle(diffusion)
    x0 = oracle.draw(200, 0)
    far = []
    for ratio in (0.05, 0.5, 5.0):
        first = diffusion.schedule.time_of_ratio(torch.tensor([ratio]))
        start = diffusion.noise(x0, first.expand(200), Streams.single(0))
        grid = torch.cat([first, first * torch.linspace(0.9, 0.01, 20)])
        new = sample(oracle.denoiser(diffusion), diffusion, x0, Streams.single(1), make_sampler("ddpm"), grid, start=start)
        far.append(float((new.positions - x0.positions).square().mean().sqrt()))
    assert far[0] < 0.1 < far[1] < far[2]


def test_a_sampler_forgets_between_runs() -> None:
    diffusion = default_diffusion()
    oracle = default_oracle(diffusion)
    sampler, grid = make_sampler("dpm_solver"), make_grid("log", 10, diffusion.schedule)

    def run(n: int) -> Tensor:
        return sample(oracle.denoiser(diffusion), diffusion, oracle.like(n), Streams.of(0, range(n)), sampler, grid).positions

    first = run(3)
    run(5)
    assert torch.equal(run(3), first)


def test_samplers_by_name_explain_what_is_wrong() -> None:
    assert sampler_options("ddim") == {"eta": 0.0, "noise_scale": 1.0}
    assert all(make_sampler(name).calls_per_step in (1, 2) for name in SAMPLERS)
    with pytest.raises(BadRequest, match=r"unknown sampler 'hein'; did you mean 'heun'\?"):
        make_sampler("hein")
    with pytest.raises(BadRequest, match=r"unknown option of sampler 'heun' 'churn'; did you mean 's_churn'"):
        make_sampler("heun", {"churn": 1})
    with pytest.raises(BadRequest, match="option 'eta' of sampler 'ddpm' must be a number, found 'x'"):
        make_sampler("ddpm", {"eta": "x"})
    with pytest.raises(BadRequest, match="'eta' must be a finite number >= 0, found -1"):
        make_sampler("ddim", {"eta": -1})
    with pytest.raises(BadRequest, match="'s_max' must be >= s_min"):
        make_sampler("euler", {"s_min": 2, "s_max": 1})
