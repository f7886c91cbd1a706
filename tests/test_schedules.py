"""Schedules against their definitions, and time grids on all of them."""

from __future__ import annotations

import math

import pytest
import torch

from moldiff.diffusion.schedules import Cosine, Linear, Polynomial, Schedule, VarianceExploding
from moldiff.errors import BadRequest
from moldiff.sampling.grids import GRIDS, make_grid

SCHEDULES = [Cosine(), Polynomial(), Linear(), VarianceExploding()]
IDS = [type(s).__name__ for s in SCHEDULES]


@pytest.fixture(params=SCHEDULES, ids=IDS)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    found: Schedule = request.param
    return found


def test_ends_and_monotony(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 2001)
    assert (schedule.ratio(t).diff() >= 0).all() and (schedule.alpha(t).diff() <= 0).all()
    assert (schedule.keep(t).diff() <= 0).all() and schedule.keep(t).min() >= 0 and schedule.keep(t).max() <= 1
    assert float(schedule.alpha(t[:1])) == pytest.approx(1, abs=1e-5)
    assert 0 < float(schedule.sigma(t[:1])) < 4e-3
    # almost nothing of the data is left at t = 1, of numbers or of classes
    assert float(schedule.ratio(t[-1:])) > 50 and float(schedule.keep(t[-1:])) < 0.02
    assert schedule.sigma(t).isfinite().all()


@pytest.mark.parametrize("schedule", [Cosine(), Polynomial()], ids=["Cosine", "Polynomial"])
def test_variance_is_preserved(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 501)
    total = schedule.alpha(t).square() + schedule.sigma(t).square()
    torch.testing.assert_close(total, torch.ones_like(t), atol=2e-6, rtol=0)


def test_time_of_ratio_is_the_inverse(schedule: Schedule) -> None:
    t = torch.linspace(0.02, 0.98, 49)
    torch.testing.assert_close(schedule.time_of_ratio(schedule.ratio(t)), t, atol=2e-5, rtol=0)


def test_polynomial_is_edms() -> None:
    # the schedule of EDM's code at T = 1000, in double precision
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    squared = (1 - 2e-5) * (1 - t**2) ** 2 + 1e-5
    ours = Polynomial()
    torch.testing.assert_close(ours.alpha(t).square(), squared)
    torch.testing.assert_close(ours.sigma(t).square(), 1 - squared, rtol=1e-9, atol=1e-12)
    # single precision must not lose the small end: sigma(0) is exactly the precision's root
    assert float(ours.sigma(torch.zeros(1))) == pytest.approx(math.sqrt(1e-5), rel=1e-6)
    assert float(ours.sigma(torch.tensor([1e-3]))) == pytest.approx(math.sqrt(1 - float(squared[1])), rel=1e-5)


def test_variance_exploding_density_is_log_normal() -> None:
    schedule = VarianceExploding(mean=-1.26, std=1.41)
    t = (torch.arange(20000) + 0.5) / 20000
    logs = schedule.sigma(t).log()
    assert float(logs.mean()) == pytest.approx(-1.26, abs=0.01)
    assert float(logs.std()) == pytest.approx(1.41, abs=0.01)
    ends = schedule.sigma(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([1e-3, 80.0]), rtol=1e-3, atol=0)
    sigma = torch.tensor([0.1, 1.0, 10.0])
    torch.testing.assert_close(schedule.keep(schedule.time_of_ratio(sigma)), 1 / (1 + sigma), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", [*GRIDS, "rho3.5"])
def test_grids_fall_from_one_to_almost_nothing(name: str, schedule: Schedule) -> None:
    grid = make_grid(name, 40, schedule)
    assert len(grid) == 40 and float(grid[0]) == 1
    assert (grid.diff() < 0).all() and float(grid[-1]) >= 0
    assert float(schedule.ratio(grid[-1:])) < 5e-3


def test_karras_grid_is_karras() -> None:
    schedule = VarianceExploding()
    ratios = schedule.ratio(make_grid("karras", 10, schedule))
    u = torch.linspace(0, 1, 10)
    expected = (80 ** (1 / 7) + u * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(ratios, expected, rtol=5e-3, atol=0)


def test_grid_spends_the_calls_it_is_given() -> None:
    schedule = Cosine()
    assert [len(make_grid("log", n, schedule, 2)) for n in (3, 4, 5, 101)] == [2, 2, 3, 51]
    with pytest.raises(BadRequest, match="at least 3 network calls, found 2"):
        make_grid("log", 2, schedule, 2)
    with pytest.raises(BadRequest, match=r"unknown time grid 'karas'; did you mean 'karras'\?"):
        make_grid("karas", 20, schedule)
    with pytest.raises(BadRequest, match="unknown time grid 'rho0'"):
        make_grid("rho0", 20, schedule)
