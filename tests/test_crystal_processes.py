"""Torus and lattice processes against exact oracles, and the faults that people make with them, planted."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.geometry import random_rotations
from moldiff.core.periodic import log_lattice, six_from_symmetric, volume, wrap
from moldiff.core.rng import Streams
from moldiff.core.vocabulary import Vocabulary
from moldiff.diffusion.categorical import Categorical
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.lattice import LogLattice
from moldiff.diffusion.process import Process, per_system
from moldiff.diffusion.registry import build_process
from moldiff.diffusion.schedules import Cosine, Linear, Schedule, Straight, VarianceExploding
from moldiff.diffusion.torus import Geodesic, Torus, WrappedNormal, wrapped_displacement
from moldiff.errors import BadRequest
from moldiff.sampling.annealed import Annealed
from moldiff.sampling.ddpm import DDIM, DDPM
from moldiff.sampling.dpm_solver import DPMSolver
from moldiff.sampling.euler import Euler
from moldiff.sampling.heun import Heun
from moldiff.sampling.loop import Memory, Sampler
from moldiff.sampling.predictor_corrector import PredictorCorrector
from moldiff.testing import CheckFailed, check_process, check_sampler, default_oracle

VE = VarianceExploding(0.005, 0.5, -1.6, 1.2)  # noisier than for training: most checks are then at noise that wraps
LINE, STRAIGHT = Linear(), Straight()


@pytest.mark.parametrize(
    "process",
    [
        WrappedNormal("frac_coords", VE),
        WrappedNormal("frac_coords", VE, zero_drift=False),
        Geodesic("frac_coords", STRAIGHT),
        Geodesic("frac_coords", STRAIGHT, zero_drift=False),
        LogLattice("lattice", LINE),
        LogLattice("lattice", Cosine(), parameterization="v"),
    ],
    ids=lambda p: f"{type(p).__name__}-{getattr(p, 'zero_drift', '')}",
)
def test_every_process_meets_its_definition(process: Process) -> None:
    report = check_process(process, n_draws=4000, samplers=())
    assert len(report.measurements) > 25 and not report.failures


def joint(coordinates: Torus) -> Diffusion:
    types = Categorical("atom_types", LINE, 4, "absorbing", "posterior")
    return Diffusion({"frac_coords": coordinates, "lattice": LogLattice("lattice", LINE), "atom_types": types})


@pytest.mark.parametrize(
    ("sampler", "coordinates"),
    [
        (DDPM(), WrappedNormal("frac_coords", VE, zero_drift=False)),
        (Heun(s_churn=20, s_min=0.01, s_max=0.4), WrappedNormal("frac_coords", VE, zero_drift=False)),
        (PredictorCorrector(), WrappedNormal("frac_coords", VE, zero_drift=False)),
        (Annealed(slope=0), Geodesic("frac_coords", STRAIGHT, zero_drift=False)),
        (DDPM(), Geodesic("frac_coords", STRAIGHT, zero_drift=False)),
        (DPMSolver(), Geodesic("frac_coords", STRAIGHT, zero_drift=False)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_samplers_reproduce_whole_crystals(sampler: Sampler, coordinates: Torus) -> None:
    """Coordinates, cell and types depend on each other; all three must come out as in fresh data."""
    check_sampler(sampler, joint(coordinates), n_samples=800, n_calls=100)


@pytest.mark.parametrize(
    ("sampler", "process"),
    [(DDPM(), WrappedNormal("frac_coords", VE)), (DDIM(), Geodesic("frac_coords", STRAIGHT))],
    ids=lambda x: type(x).__name__,
)
def test_samplers_reproduce_crystals_that_begin_anywhere(sampler: Sampler, process: Torus) -> None:
    check_sampler(sampler, Diffusion({"frac_coords": process}), n_samples=300, n_calls=30, bias=0.02)


def test_annealed_coordinates_run_ahead_but_never_past_the_prediction() -> None:
    process = Geodesic("frac_coords", STRAIGHT)
    diffusion = Diffusion({"frac_coords": process})
    x0 = crystals(8)
    aim = 0.1 * torch.randn(8, 5, 3, generator=torch.Generator().manual_seed(1))
    aim = aim - aim.mean(1, keepdim=True)

    def moved(slope: float, t: float, s: float) -> Tensor:
        model = Memory(lambda xt, t, previous=None: xt.replace(frac_coords=xt.frac_coords + aim))
        times = torch.full((8,), t), torch.full((8,), s)
        after = Annealed(slope).step(model, diffusion, x0, *times, Streams.single(0)).frac_coords - x0.frac_coords
        return after - after.round()

    torch.testing.assert_close(moved(0, 0.8, 0.6), aim / 4, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(moved(5, 0.8, 0.6), aim / 4 * 2, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(moved(5, 0.2, 0.1), aim, atol=1e-6, rtol=1e-4)


def test_wrapped_score_against_the_density() -> None:
    """The displacement is sigma^2 times the gradient of the log of the wrapped density, here summed in Fourier space."""
    offset = torch.linspace(-1.3, 1.3, 41, dtype=torch.float64, requires_grad=True)
    for sigma in (0.05, 0.1, 0.2, 0.5, 0.9):
        k = torch.arange(1, 60, dtype=torch.float64)
        waves = torch.exp(-2 * math.pi**2 * sigma**2 * k**2) * torch.cos(2 * math.pi * k * offset[:, None])
        density = 1 + 2 * waves.sum(-1)
        (score,) = torch.autograd.grad(density.log().sum(), offset)
        found = wrapped_displacement(offset.detach(), torch.full_like(offset, sigma).detach(), 6)
        inside = density.detach() > 1e-9
        torch.testing.assert_close(found[inside], sigma**2 * score[inside], rtol=1e-6, atol=1e-9)


def crystals(n: int = 64, n_atoms: int = 5, seed: int = 0) -> AtomBatch:
    g = torch.Generator().manual_seed(seed)
    lattice = (4 * torch.eye(3) + 0.7 * torch.randn(n, 3, 3, generator=g)) @ random_rotations(n, g)
    x = torch.rand(n, n_atoms, 3, generator=g)
    return AtomBatch(torch.ones(n, n_atoms, dtype=torch.bool), {"frac_coords": x, "lattice": lattice})


@pytest.mark.parametrize(
    "process", [WrappedNormal("frac_coords", VE), Geodesic("frac_coords", STRAIGHT)], ids=lambda p: type(p).__name__
)
def test_network_that_says_nothing_has_loss_one_at_every_time(process: Torus) -> None:
    """Raw outputs are of unit variance: 1 less the share that the zero drift takes out."""
    x0 = crystals(1500)
    for time in (0.05, 0.4, 0.8, 0.97):
        t = torch.full((1500,), time)
        xt = x0.replace(frac_coords=process.noise(x0, t, Streams.single(1)))
        silent = process.to_clean(torch.zeros_like(xt.frac_coords), xt, t)
        assert float(process.loss(silent, x0, xt, t).mean()) == pytest.approx(4 / 5, abs=0.03)


def test_drift_has_no_mean_and_deterministic_steps_leave_the_origin() -> None:
    process, x0 = WrappedNormal("frac_coords", VE), crystals()
    t, s = torch.full((64,), 0.7), torch.full((64,), 0.5)
    xt = x0.replace(frac_coords=process.noise(x0, t, Streams.single(1)))
    raw = torch.randn(xt.frac_coords.shape, generator=torch.Generator().manual_seed(2))
    assert float((process.to_clean(raw, xt, t) - xt.frac_coords).mean(1).abs().max()) < 1e-6
    moved = process.step(xt, xt.frac_coords + 0.1 * raw, t, s, Streams.single(3), eta=0.0) - xt.frac_coords
    assert float((moved - moved.round()).mean(1).abs().max()) < 1e-6


def test_a_clean_coordinate_as_a_prediction() -> None:
    process, x0 = Geodesic("frac_coords", STRAIGHT, zero_drift=False), crystals()
    t = torch.full((64,), 0.6)
    xt = x0.replace(frac_coords=process.noise(x0, t, Streams.single(1)))
    known = process.toward(xt, x0.frac_coords + 3)
    assert float(process.loss(known, x0, xt, t).max()) < 1e-6
    gap = process.finish(known, xt) - x0.frac_coords
    assert float((gap - gap.round()).abs().max()) < 1e-6


def test_lattice_process_does_not_see_a_turn() -> None:
    process, x0, t = LogLattice("lattice", LINE), crystals(), torch.full((64,), 0.5)
    turned = x0.replace(lattice=x0.lattice @ random_rotations(64, torch.Generator().manual_seed(9)))
    noisy = [x.replace(lattice=process.noise(x, t, Streams.single(1))) for x in (x0, turned)]
    torch.testing.assert_close(noisy[0].lattice, noisy[1].lattice, rtol=1e-4, atol=1e-4)
    losses = [process.loss(torch.zeros(64, 6), x, xt, t) for x, xt in zip((x0, turned), noisy, strict=True)]
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


def test_lattice_network_is_read_in_the_frame_of_the_cell_that_it_saw() -> None:
    """M L is read as M: a network's answer that turns with its input gives the same numbers."""
    process, x0, t = LogLattice("lattice", Cosine(), parameterization="x0"), crystals(), torch.full((64,), 0.5)
    xt = x0.replace(lattice=process.noise(x0, t, Streams.single(1)))
    cell = process.network_input(xt, t)
    assert cell.shape == (64, 3, 3)
    torch.testing.assert_close(cell, cell.mT)
    m = torch.randn(64, 3, 3, generator=torch.Generator().manual_seed(0))
    m = m + m.mT
    expected = process._physical(six_from_symmetric(m), xt)
    torch.testing.assert_close(process.to_clean(m @ cell, xt, t), expected, rtol=1e-4, atol=1e-4)


def test_prior_volume_grows_with_the_number_of_atoms() -> None:
    process = LogLattice("lattice", LINE, mean=(0, 0, 0, 0, 0, 2.7), std=(0.3, 0.3, 0.3, 0.3, 0.3, 0.2))
    for n in (1, 4, 20):
        like = AtomBatch(torch.ones(2000, n, dtype=torch.bool))
        drawn = process.finish(process.prior(like, Streams.single(0)), like)
        size = (volume(drawn) / n).log()
        assert float(size.mean()) == pytest.approx(2.7, abs=0.02) and float(size.std()) == pytest.approx(0.2, abs=0.02)


def test_bad_settings_are_one_sentence() -> None:
    vocabulary = Vocabulary({"atom_types": [1]})
    with pytest.raises(BadRequest, match="needs a schedule without shrinking"):
        WrappedNormal("frac_coords", Cosine())
    with pytest.raises(BadRequest, match="a largest sigma between"):
        WrappedNormal("frac_coords", VarianceExploding())
    with pytest.raises(BadRequest, match="sigma ends at 1"):
        Geodesic("frac_coords", VE)
    with pytest.raises(BadRequest, match="six numbers"):
        LogLattice("lattice", LINE, mean=(1.0, 2.0))
    with pytest.raises(BadRequest, match="std of the lattice must be positive"):
        LogLattice("lattice", LINE, std=(1.0, 1, 1, 1, 1, 0))
    with pytest.raises(BadRequest, match="'geodesic' is one of 'frac_coords', not of 'positions'"):
        build_process("positions", vocabulary, {"process": "geodesic", "schedule": {"name": "straight"}})
    with pytest.raises(BadRequest, match="cannot be noised on from x_t"):
        check_sampler(Euler(s_churn=10), Diffusion({"frac_coords": Geodesic("frac_coords", STRAIGHT)}), n_samples=10, n_calls=10)


# --- planted faults ---


class NoMinimumImage(WrappedNormal):
    """The target leads to the clean coordinate the long way where the short one crosses the cell's edge."""

    def _target(self, offset: Tensor, t: Tensor) -> Tensor:
        return -offset


class NearestImageOnly(WrappedNormal):
    """The Gaussian score of the nearest image taken for that of the wrapped normal."""

    def _target(self, offset: Tensor, t: Tensor) -> Tensor:
        return -(offset - offset.round())


class TooFewImages(WrappedNormal):
    def _target(self, offset: Tensor, t: Tensor) -> Tensor:
        return wrapped_displacement(offset, self._sigma(t, offset).expand_as(offset), 0)


class ScoreForDisplacement(WrappedNormal):
    """sigma instead of sigma^2 in Tweedie's formula."""

    def _ode(self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor) -> Tensor:
        value = xt.data[self.name]
        share = 1 - (self._sigma(s, value) / self._sigma(t, value)).square()
        return value + share * (prediction - value)


class FreshWithoutRoot(WrappedNormal):
    def step(self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor, rng: Streams, eta: float = 1.0) -> Tensor:
        value = xt.data[self.name]
        sigma_t, sigma_s = self._sigma(t, value), self._sigma(s, value)
        left = 1 - (sigma_s / sigma_t).square()
        fresh, stay = eta * sigma_s * left, (sigma_s.square() - (eta * sigma_s).square() * left).sqrt()
        moved = value + (1 - stay / sigma_t) * (prediction - value) + fresh * rng.normal(xt, self.name)
        return self._real(wrap(moved), xt)


class RenoiseAddsDeviations(WrappedNormal):
    def renoise(self, xt: AtomBatch, t: Tensor, u: Tensor, rng: Streams) -> Tensor:
        value = xt.data[self.name]
        added = self._sigma(u, value) - self._sigma(t, value)
        return self._real(wrap(value + added * rng.normal(xt, self.name)), xt)


class NormalPrior(WrappedNormal):
    def prior(self, like: AtomBatch, rng: Streams) -> Tensor:
        return self._real(wrap(0.2 * rng.normal(like, self.name)), like)


class HiddenCentring(WrappedNormal):
    """The drift is centred although data begin at a fixed origin."""

    def _drift(self, displacement: Tensor, like: AtomBatch) -> Tensor:
        return displacement - displacement[:, : int(like.n_atoms[0])].mean(1, keepdim=True)


class StraightThroughTheCell(Geodesic):
    """Interpolation of coordinates as they are written, without the minimum image."""

    def noise(self, x0: AtomBatch, t: Tensor, rng: Streams) -> Tensor:
        value, sigma = x0.data[self.name], self._sigma(t, x0.data[self.name])
        return self._real(wrap((1 - sigma) * value + sigma * rng.uniform(x0, self.name)), x0)


class VelocityNotScaled(Geodesic):
    """The step moves by the velocity times the whole time, not times what is left of it."""

    def _ode(self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor) -> Tensor:
        value = xt.data[self.name]
        return value + per_system(t - s, value) * (prediction - value)


class AbsoluteLoss(Geodesic):
    def loss(self, prediction: Tensor, x0: AtomBatch, xt: AtomBatch, t: Tensor) -> Tensor:
        value = xt.data[self.name]
        error = self._drift(prediction - value - self._target(value - x0.data[self.name], t), xt)
        return error.abs().flatten(1).sum(1)


class SeesOrientation(LogLattice):
    """The six numbers of the matrix itself, not of its symmetric factor."""

    def clean(self, x0: AtomBatch) -> Tensor:
        return self._standard(six_from_symmetric(x0.data[self.name]), x0)


class ForgetsTheNumberOfAtoms(LogLattice):
    def prior(self, like: AtomBatch, rng: Streams) -> Tensor:
        return super().prior(AtomBatch(like.mask[:, :1]), rng)


class LogOfTheGramMatrix(LogLattice):
    """log(L L^T) without its half."""

    def clean(self, x0: AtomBatch) -> Tensor:
        return self._standard(2 * log_lattice(x0.data[self.name]), x0)


class RenoiseInWrongUnits(LogLattice):
    def renoise(self, xt: AtomBatch, t: Tensor, u: Tensor, rng: Streams) -> Tensor:
        alpha_t, sigma_t = self._factors(t, xt.data[self.name])
        alpha_u, sigma_u = self._factors(u, xt.data[self.name])
        added = (sigma_u.square() - (alpha_u / alpha_t * sigma_t).square()).sqrt()
        return alpha_u / alpha_t * xt.data[self.name] + added * self.draw(xt, rng)


def normal(cls: type[WrappedNormal], zero_drift: bool = False) -> Callable[[], Process]:
    return lambda: cls("frac_coords", VE, zero_drift=zero_drift)


def line(cls: type[Geodesic]) -> Callable[[], Process]:
    return lambda: cls("frac_coords", STRAIGHT, zero_drift=False)


def cell(cls: type[LogLattice], schedule: Schedule = LINE) -> Callable[[], Process]:
    return lambda: cls("lattice", schedule)


FAULTS: list[tuple[Callable[[], Process], str]] = [
    (normal(NoMinimumImage), "slope of the loss"),
    (normal(NearestImageOnly), "slope of the loss"),
    (normal(TooFewImages), "slope of the loss"),
    (normal(ScoreForDisplacement), "at eta 0.0"),
    (normal(FreshWithoutRoot), "step from"),
    (normal(RenoiseAddsDeviations), "renoise from"),
    (normal(NormalPrior), "prior"),
    (normal(HiddenCentring), "step from"),
    (line(StraightThroughTheCell), "noise at t"),
    (line(VelocityNotScaled), "step from"),
    (line(AbsoluteLoss), "slope of the loss"),
    (cell(SeesOrientation), "noise at t"),
    (cell(ForgetsTheNumberOfAtoms), "prior"),
    (cell(LogOfTheGramMatrix), "noise at t"),
    (cell(RenoiseInWrongUnits), "renoise from"),
]


@pytest.mark.parametrize(("build", "where"), FAULTS, ids=lambda x: type(x()).__name__ if callable(x) else "")
def test_planted_process_faults_are_found(build: Callable[[], Process], where: str) -> None:
    with pytest.raises(CheckFailed, match=where):
        check_process(build(), n_draws=8000 if where == "step from" else 2000, samplers=())  # a tenth of a deviation needs many


class BlendTheLongWay(WrappedNormal):
    """Two predictions that lie in different images are mixed as if they were numbers."""

    def blend(self, first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
        return first + per_system(weight, first) * (second - first)


def test_planted_blend_is_found_by_a_second_order_sampler() -> None:
    diffusion = Diffusion({"frac_coords": BlendTheLongWay("frac_coords", VE, zero_drift=False)})
    with pytest.raises(CheckFailed, match="energy distance"):
        check_sampler(Heun(s_churn=0), diffusion, default_oracle(diffusion), n_samples=800, n_calls=60)
