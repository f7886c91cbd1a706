"""Processes against exact oracles, parameterisations against each other, EDM's one-hot types against EDM's equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.core.vocabulary import Vocabulary
from moldiff.diffusion import gaussian
from moldiff.diffusion.categorical import Categorical, draw_classes
from moldiff.diffusion.gaussian import Gaussian
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.onehot import OneHot
from moldiff.diffusion.process import Process
from moldiff.diffusion.registry import build_process
from moldiff.diffusion.schedules import Cosine, Linear, Polynomial, Schedule, VarianceExploding
from moldiff.errors import BadRequest
from moldiff.sampling.ddpm import DDPM
from moldiff.sampling.grids import make_grid
from moldiff.sampling.loop import sample
from moldiff.testing import CheckFailed, ClassField, MixtureOracle, check_process, check_sampler, default_oracle
from moldiff.testing.statistics import energy_test

VE, VP, POLY, LINE = VarianceExploding(), Cosine(), Polynomial(), Linear()
PROCESSES: list[Process] = [
    Gaussian("positions", VE, "karras", 1.4, zero_mean=True),
    Gaussian("positions", POLY, "eps", 1.0, zero_mean=True),
    Gaussian("positions", VP, "v", 2.0),
    Gaussian("lattice", LINE, "x0", 3.0),
    Categorical("atom_types", VE, 4, "uniform", "resample"),
    Categorical("charges", VP, 3, "uniform", "posterior"),
    Categorical("bond_types", VE, 3, "absorbing", "resample"),
    Categorical("bond_types", LINE, 4, "absorbing", "posterior"),
    OneHot("atom_types", POLY, 5),
    OneHot("bond_types", VE, 3, "karras", factor=0.5),
]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{type(p).__name__}-{p.name}-{type(p.schedule).__name__}")
def test_every_process_meets_its_definition(process: Process) -> None:
    report = check_process(process, samplers=())
    assert len(report.measurements) > 25 and not report.failures


def test_check_process_also_samples() -> None:
    report = check_process(Categorical("charges", VP, 3, "uniform", "posterior"))
    assert sum("total variation" in m.name for m in report.measurements) == 2


@pytest.mark.parametrize("schedule", [VE, VP, POLY, LINE], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", ["eps", "v", "score"])
def test_parameterisations_are_inverse_to_each_other(kind: str, schedule: Schedule) -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)[:, None]
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, eps = torch.randn(2, 19, 7, generator=generator, dtype=torch.float64)
    xt = alpha * x0 + sigma * eps
    expected = {"eps": eps, "v": alpha * eps - sigma * x0, "score": -eps / sigma}[kind]
    made = getattr(gaussian, f"{kind}_from_x0")(x0, xt, alpha, sigma)
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(getattr(gaussian, f"x0_from_{kind}")(made, xt, alpha, sigma), x0)


def _batch(n: int = 6) -> AtomBatch:
    oracle = default_oracle(Diffusion({"positions": Gaussian("positions", VE, zero_mean=True)}))
    return oracle.draw(n, 0)


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "karras"])
@pytest.mark.parametrize("schedule", [VE, POLY], ids=["VE", "Polynomial"])
def test_network_that_is_right_gives_the_clean_value(kind: gaussian.Parameterization, schedule: Schedule) -> None:
    process = Gaussian("positions", schedule, kind, scale=1.7, zero_mean=True)
    x0, t = _batch(), torch.linspace(0.1, 0.9, 6)
    xt = x0.replace(positions=process.noise(x0, t, Streams.single(0)))
    alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
    clean, value = x0.positions / 1.7, xt.positions / 1.7
    eps = (value - alpha * clean) / sigma
    r = sigma / alpha
    raw = {
        "x0": clean,
        "eps": eps,
        "v": alpha * eps - sigma * clean,
        "karras": (clean - value / alpha / (1 + r**2)) * (1 + r**2).sqrt() / r,
    }[kind]
    torch.testing.assert_close(process.to_clean(raw, xt, t), x0.positions, rtol=1e-3, atol=2e-4)


def test_karras_network_works_at_unit_scale_at_every_time() -> None:
    """Input and target of the network have unit variance when the data have spread ``scale``; the loss is its plain error."""
    process = Gaussian("lattice", VE, "karras", scale=2.5)
    n = 4000
    generator = torch.Generator().manual_seed(1)
    x0 = AtomBatch(torch.ones(n, 1, dtype=torch.bool), {"lattice": 2.5 * torch.randn(n, 3, 3, generator=generator)})
    for time in (0.02, 0.3, 0.7, 0.99):
        t = torch.full((n,), time)
        xt = x0.replace(lattice=process.noise(x0, t, Streams.single(2)))
        assert float(process.network_input(xt, t).std()) == pytest.approx(1, abs=0.02)
        zero = process.to_clean(torch.zeros_like(x0.lattice), xt, t)
        # a network that says nothing has loss 1: the variance of its target
        assert float(process.loss(zero, x0, xt, t).mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("name", ["positions", "atom_types"])
def test_eps_loss_is_the_plain_error_of_eps(name: str) -> None:
    process = Gaussian(name, POLY, "eps", zero_mean=True) if name == "positions" else OneHot(name, POLY, 3)
    diffusion = Diffusion({name: process})
    oracle = default_oracle(diffusion)
    x0, t = oracle.draw(5, 0), torch.tensor([0.05, 0.3, 0.6, 0.9, 0.99])
    xt = diffusion.noise(x0, t, Streams.single(1))
    clean = oracle.fields[name].certain(process, x0.data[name], xt.data[name], t)
    alpha, sigma = POLY.alpha(t)[:, None, None], POLY.sigma(t)[:, None, None]
    true = (xt.data[name] - alpha * clean) / (sigma * process.scale)
    guess = true + 0.3 * torch.randn(true.shape, generator=torch.Generator().manual_seed(0)) * x0.mask[..., None]
    expected = ((guess - true).square() * x0.mask[..., None]).sum((1, 2)) / (3 * true.shape[-1])
    torch.testing.assert_close(process.loss(process.to_clean(guess, xt, t), x0, xt, t), expected, rtol=2e-2, atol=1e-4)


def test_one_hot_is_edms() -> None:
    """The network sees alpha 0.25 onehot + sigma eps; a step is the ancestral one of that variable."""
    process = OneHot("atom_types", POLY, 5, "eps")
    x0 = AtomBatch(torch.ones(400, 6, dtype=torch.bool), {"atom_types": torch.arange(2400).reshape(400, 6) % 5})
    t, s = torch.full((400,), 0.5), torch.full((400,), 0.4)
    xt = x0.replace(atom_types=process.noise(x0, t, Streams.single(0)))
    z = process.network_input(xt, t)
    hot = 0.25 * torch.nn.functional.one_hot(x0.atom_types, 5)
    alpha_t, sigma_t, alpha_s, sigma_s = (f(x[:1]) for x in (t, s) for f in (POLY.alpha, POLY.sigma))
    eps = (z - alpha_t * hot) / sigma_t
    assert float(eps.mean()) == pytest.approx(0, abs=0.03) and float(eps.std()) == pytest.approx(1, abs=0.03)
    # EDM's step: mu = z / alpha_ts - sigma_ts^2 / (alpha_ts sigma_t) eps, standard deviation sigma_ts sigma_s / sigma_t
    alpha_ts = alpha_t / alpha_s
    variance = sigma_t**2 - alpha_ts**2 * sigma_s**2
    mean = z / alpha_ts - variance / (alpha_ts * sigma_t) * eps
    prediction = process.to_clean(eps, xt, t)
    moved = process.network_input(xt.replace(atom_types=process.step(xt, prediction, t, s, Streams.single(3), 1.0)), s)
    noise = (moved - mean) / (variance.sqrt() * sigma_s / sigma_t)
    assert float(noise.mean()) == pytest.approx(0, abs=0.03) and float(noise.std()) == pytest.approx(1, abs=0.03)
    assert torch.equal(process.finish(prediction, xt), x0.atom_types)


def test_given_fields_condition_the_sample() -> None:
    """Types given, positions made: the exact denoiser of the conditional must be reproduced by the same joint object."""
    both = Diffusion({"positions": PROCESSES[0], "atom_types": Categorical("atom_types", VE, 3)})
    oracle = default_oracle(both, entangled=True)
    alone = Diffusion({"positions": PROCESSES[0]})
    data = oracle.draw(1500, 3)
    given = oracle.like(1500).replace(atom_types=data.atom_types)
    drawn = sample(oracle.denoiser(alone), alone, given, Streams.single(0), DDPM(), make_grid("karras", 60, VE))
    assert torch.equal(drawn.atom_types, data.atom_types)
    # the pairs (types, positions) are then distributed as fresh data, correlation and all
    assert energy_test(oracle.features(drawn), oracle.features(oracle.draw(1500, 4))) < 6
    shuffled = drawn.replace(atom_types=drawn.atom_types.roll(1, 0))
    assert energy_test(oracle.features(shuffled), oracle.features(oracle.draw(1500, 4))) > 9


def _coupled(rule: str) -> tuple[Diffusion, MixtureOracle]:
    process = Categorical("atom_types", VP, 2, "uniform", rule)  # type: ignore[arg-type]
    p = torch.tensor([[0.99, 0.01], [0.01, 0.99]])[:, None].expand(2, 3, 2)
    oracle = MixtureOracle(torch.tensor([0.8, 0.2]), 3, {"atom_types": ClassField("atom_types", p, 3)})
    return Diffusion({"atom_types": process}), oracle


def test_posterior_rule_is_exact_for_coupled_classes_and_resample_is_not() -> None:
    diffusion, oracle = _coupled("posterior")
    check_sampler(DDPM(), diffusion, oracle, n_calls=60)
    diffusion, oracle = _coupled("resample")
    with pytest.raises(CheckFailed, match="total variation of atom_types"):  # as its docstring says
        check_sampler(DDPM(), diffusion, oracle, n_calls=60)


def test_impossible_classes_are_never_drawn() -> None:
    p = torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0])
    edge = torch.tensor([0.0, 1e-12, 0.3, 0.5, 1 - 2**-24, 1.0])
    assert set(draw_classes(p.expand(6, 5), edge).tolist()) == {1, 3}
    u = (torch.arange(1000) + 0.5) / 1000
    frequency = torch.bincount(draw_classes(p.expand(1000, 5), u), minlength=5)
    assert frequency.tolist() == [0, 300, 0, 700, 0]


def test_loss_ignores_padding() -> None:
    for process in PROCESSES:
        diffusion = Diffusion({process.name: process})
        oracle = default_oracle(diffusion)
        x0, t = oracle.draw(4, 0), torch.full((4,), 0.4)
        xt = diffusion.noise(x0, t, Streams.single(0))
        good = oracle.denoiser(diffusion)(xt, t).data[process.name]
        real = x0.scope_mask(process.name)
        junk: Tensor = torch.where(real.reshape(*real.shape, *[1] * (good.dim() - real.dim())), good, good + 7)
        losses = process.loss(good, x0, xt, t), process.loss(junk, x0, xt, t)
        torch.testing.assert_close(*losses)


def test_processes_by_name_explain_what_is_wrong() -> None:
    vocabulary = Vocabulary({"atom_types": [1, 6]})
    made = build_process("atom_types", vocabulary, {"process": "one_hot", "schedule": {"name": "polynomial"}})
    assert isinstance(made, OneHot) and made.n_classes == 2
    with pytest.raises(BadRequest, match="unknown process 'onehot'; did you mean 'one_hot'"):
        build_process("atom_types", vocabulary, {"process": "onehot", "schedule": {"name": "cosine"}})
    with pytest.raises(BadRequest, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        build_process("atom_types", vocabulary, {"process": "one_hot", "schedule": {"name": "cosin"}})
    with pytest.raises(BadRequest, match="factr"):
        build_process("atom_types", vocabulary, {"process": "one_hot", "schedule": {"name": "cosine"}, "factr": 1})
    with pytest.raises(BadRequest, match="unknown parameterization 'epsilon'"):
        Gaussian("positions", VP, "epsilon")  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="unknown prior 'mask'"):
        Categorical("atom_types", VP, 2, "mask")  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="unknown step rule"):
        Categorical("atom_types", VP, 2, "uniform", "ancestral")  # type: ignore[arg-type]
