"""Time grids: decreasing times from 1 at which a sampler calls the network."""

from __future__ import annotations

import torch
from torch import Tensor

from moldiff.diffusion.schedules import Schedule
from moldiff.errors import unknown


def uniform_grid(n_calls: int, last: float = 1e-3) -> Tensor:
    """n_calls times, equally spaced from 1 to ``last``; with ``VarianceExploding`` dense where training was dense."""
    return torch.linspace(1.0, last, n_calls)


def karras_grid(n_calls: int, schedule: Schedule, rho: float = 7.0, low: float = 2e-3) -> Tensor:
    """Times whose noise ratio falls as in Karras et al. 2022: linear in ratio^(1 / rho), from the schedule's top to ``low``."""
    high = schedule.ratio(torch.ones(()))
    u = torch.linspace(0, 1, n_calls)
    ratio = (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    grid = schedule.time_of_ratio(ratio)
    grid[0] = 1.0
    return grid


def make_grid(name: str, n_calls: int, schedule: Schedule) -> Tensor:
    """A grid by name: ``uniform``, ``karras`` (rho 7) or ``rho2.5``; ``n_calls`` network calls for a one-call sampler."""
    if name == "uniform":
        return uniform_grid(n_calls)
    if name == "karras":
        return karras_grid(n_calls, schedule)
    if name == "rho2.5":
        return karras_grid(n_calls, schedule, 2.5)
    raise unknown("time grid", name, ("uniform", "karras", "rho2.5"))
