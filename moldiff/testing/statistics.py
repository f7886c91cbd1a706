"""Distances between distributions, each with the size it has by chance alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def energy_test(x: Tensor, y: Tensor, seed: int = 0, n_permutations: int = 60) -> float:
    """How many standard deviations the energy distance of two samples lies above that of random relabellings.

    x [n, D] and y [m, D]. Independent draws of one distribution give about 0 with deviation 1 (Szekely and Rizzo 2004); the
    distance is zero only for equal distributions, so any difference shows with enough samples.
    """
    pooled = torch.cat([x, y])
    distances = torch.cdist(pooled, pooled)
    n, m = len(x), len(y)
    labels = torch.cat([torch.full((n,), 1 / n), torch.full((m,), -1 / m)])
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([labels[torch.randperm(n + m, generator=generator)] for _ in range(n_permutations)])
    columns = torch.cat([labels[None], shuffled]).T
    energy = -(columns * (distances @ columns)).sum(0)
    null = energy[1:]
    return float((energy[0] - null.mean()) / null.std().clamp_min(1e-12))


def largest_gap(x: Tensor, y: Tensor) -> float:
    """The largest two-sample Kolmogorov-Smirnov distance over the columns of x [n, D] and y [m, D]."""
    n, m = len(x), len(y)
    pooled = torch.cat([x, y])
    order = pooled.argsort(0)
    step = torch.cat([torch.full((n,), 1 / n), torch.full((m,), -1 / m)]).double()
    walk = step[order].cumsum(0)
    # equal values must be passed together, or ties would count as differences
    ordered = pooled.gather(0, order)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    return float(torch.where(last, walk.abs(), 0.0).max())


def gap_limit(n: int, m: int, columns: int, alpha: float = 1e-5) -> float:
    """What the largest Kolmogorov-Smirnov distance over ``columns`` exceeds by chance with probability below ``alpha``."""
    return math.sqrt(math.log(2 * columns / alpha) / 2 * (1 / n + 1 / m))


def total_variation(classes: Tensor, probabilities: Tensor) -> float:
    """Total variation between the frequencies of classes int64 [n] and their probabilities [C]."""
    frequency = torch.bincount(classes, minlength=len(probabilities)).double() / len(classes)
    return float((frequency - probabilities.double()).abs().sum() / 2)


def total_variation_limit(probabilities: Tensor, n: int, seed: int = 0, n_trials: int = 200) -> float:
    """Mean and five standard deviations of the total variation of n true draws, by simulation."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.multinomial(probabilities.double(), n * n_trials, replacement=True, generator=generator)
    counts = torch.zeros(n_trials, len(probabilities)).double()
    counts.scatter_add_(1, draws.reshape(n_trials, n), torch.ones(n_trials, n).double())
    trials = (counts / n - probabilities.double()).abs().sum(1) / 2
    return float(trials.mean() + 5 * trials.std())


def moment_test(x: Tensor, y: Tensor) -> float:
    """The largest difference of any first or second moment of x [n, D] and y [m, D], in standard deviations of chance."""
    upper = torch.triu_indices(x.shape[1], x.shape[1])

    def moments(z: Tensor) -> Tensor:
        return torch.cat([z, z[:, upper[0]] * z[:, upper[1]]], -1)

    a, b = moments(x), moments(y)
    deviation = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    difference = (a.mean(0) - b.mean(0)).abs()
    constant = (deviation < 1e-9) & (difference < 1e-6)
    return float(torch.where(constant, 0.0, difference / deviation.clamp_min(1e-9)).max())
