"""Time grids: decreasing times from 1 at which a sampler calls the network."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch
from torch import Tensor

from moldiff.diffusion.schedules import Schedule
from moldiff.errors import BadRequest, unknown

GRIDS = ("uniform", "karras", "rho2.5", "log", "tan")


def uniform_grid(n_calls: int, last: float = 1e-3) -> Tensor:
    """n_calls times, equally spaced from 1 to ``last``; with ``VarianceExploding`` dense where training was dense."""
    return torch.linspace(1.0, last, n_calls)


def part_below(grid: Tensor, first: float) -> Tensor:
    """The part of a grid at earlier times than ``first``, which becomes its own first; all of it for 1."""
    if first >= 1:
        return grid
    return torch.cat([torch.tensor([first]), grid[grid < first]]) if bool((grid < first).any()) else torch.tensor([first, 0.0])


def _from_ratios(ratio: Tensor, schedule: Schedule) -> Tensor:
    grid = schedule.time_of_ratio(ratio)
    grid[0] = 1.0
    return grid


def _ends(schedule: Schedule, low: float) -> tuple[float, float]:
    """Noise over signal at t = 1, and the lower end: ``low``, or the least that the schedule has."""
    high, least = schedule.ratio(torch.tensor([1.0, 0.0])).tolist()
    return high, max(low, least)


def karras_grid(n_calls: int, schedule: Schedule, rho: float = 7.0, low: float = 2e-3) -> Tensor:
    """Times whose noise ratio falls as in Karras et al. 2022: linear in ratio^(1 / rho), from the schedule's top to ``low``."""
    high, low = _ends(schedule, low)
    u = torch.linspace(0, 1, n_calls)
    return _from_ratios((high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho, schedule)


def log_grid(n_calls: int, schedule: Schedule, low: float = 2e-3) -> Tensor:
    """Equal steps of the log signal-to-noise ratio, as DPM-Solver proposes (Lu et al. 2022)."""
    high, low = _ends(schedule, low)
    return _from_ratios(torch.linspace(math.log(high), math.log(low), n_calls).exp(), schedule)


def tan_grid(n_calls: int, schedule: Schedule, pivot: float = 0.3, low: float = 2e-3) -> Tensor:
    """Equal steps of arctan(ratio / pivot): densest in log ratio around ``pivot``, where structure is decided.

    With pivot 1 these are the cosine schedule's own equal steps, carried to any schedule.
    """
    high, low = _ends(schedule, low)
    return _from_ratios(pivot * torch.linspace(math.atan(high / pivot), math.atan(low / pivot), n_calls).tan(), schedule)


def make_grid(name: str, n_calls: int, schedule: Schedule, calls_per_step: int = 1) -> Tensor:
    """A grid by name that spends ``n_calls`` network calls with a sampler that makes ``calls_per_step``.

    ``uniform``, ``karras`` (rho 7), ``rhoX`` with any number X, ``log``, ``tan``. Where calls do not divide evenly the grid
    spends fewer. Raises ``BadRequest`` for an unknown name and for too few calls.
    """
    n_times = 1 + (n_calls - 1) // calls_per_step
    if n_times < 2:
        raise BadRequest(f"this sampler needs at least {calls_per_step + 1} network calls, found {n_calls}")
    if name == "uniform":
        return uniform_grid(n_times)
    if name == "karras":
        return karras_grid(n_times, schedule)
    if name == "log":
        return log_grid(n_times, schedule)
    if name == "tan":
        return tan_grid(n_times, schedule)
    power = re.fullmatch(r"rho(\d+(?:\.\d+)?)", name)
    if power and float(power[1]) > 0:
        return karras_grid(n_times, schedule, float(power[1]))
    raise unknown("time grid", name, GRIDS)


def winding_grid(
    make: Callable[[int], Tensor], n_calls: int, calls_per_step: int, high: float, low: float, rounds: int
) -> Tensor:
    """A grid that goes down, and on its way ``rounds`` times back from about ``low`` to ``high`` and down again.

    ``make(n)`` gives the grid of n calls that only goes down. The whole way spends no more calls than ``make(n_calls)``, so its
    steps are longer; a grid with too few for ``rounds`` gets fewer rounds, and none where no step lies between the two times.
    """

    def wound(n: int, rounds: int) -> Tensor:
        grid = make(n)
        below = (grid <= low).nonzero().flatten()
        above = (grid >= high).nonzero().flatten()
        if not len(below) or not len(above) or below[0] >= len(grid) - 1:
            return grid
        first, last = int(above[-1]), int(below[0])
        return torch.cat([grid[: last + 1], grid[first : last + 1].repeat(rounds), grid[last + 1 :]])

    def steps(grid: Tensor) -> int:
        return int((grid[1:] < grid[:-1]).sum())

    most = steps(make(n_calls))
    for k in range(rounds, 0, -1):
        least, top = 2 * calls_per_step + 1, n_calls
        while least < top:  # the longest way down whose rounds can still be paid for
            middle = (least + top + 1) // 2
            least, top = (middle, top) if steps(wound(middle, k)) <= most else (least, middle - 1)
        if 2 * least >= n_calls and steps(wound(least, k)) <= most:
            return wound(least, k)
    return make(n_calls)
