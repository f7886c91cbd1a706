"""Several candidates a sample, of which the best comes back: the one that the model itself finds likeliest, or a judge's choice.

The denoising loss of a clean system, averaged over noise and its levels, is up to weights and a constant the variational bound of
its log likelihood (Ho et al. 2020; Kingma et al. 2021), and so tells which of several systems a model believes in: the
"diffusion classifier" of Li et al. (2023) with structures in the place of classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.periodic import minimum_image_pairs
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser, reorder
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.control import Control

#: Times at which finished candidates are noised and denoised once more, and how often at each. Below them candidates differ by
#: the network's own error, above them by little at all (docs/experiments.md).
LEVELS = (0.1, 0.2, 0.35, 0.55)
DRAWS = 2
#: Atoms closer than this (Å) overlap, and the candidate comes last.
OVERLAP = 0.5


#: Given the number of a group and its K finished encoded systems: the rank of each, the least the best, and what is to be said
#: of each. A rank is +inf or NaN where there is none.
Judge = Callable[[int, AtomBatch], tuple[Sequence[float], Sequence[Mapping[str, Any]]]]


class Judged(Control):
    """Groups of K finished systems, that of the least rank by ``judge`` brought to each group's first row.

    The judge sees systems as they come back, after positions have settled, and each group alone, so that what it says of one
    does not depend on the batch. Groups from ``n_groups`` on only fill up the batch and are not judged.
    """

    def __init__(self, judge: Judge, n_candidates: int, n_groups: int | None = None) -> None:
        self.judge, self.k, self.n_groups = judge, n_candidates, n_groups
        self.said: list[Mapping[str, Any]] = []

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        self.denoiser = denoiser
        return denoiser

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        if xt.n_systems % self.k:
            raise ValueError(f"{xt.n_systems} rows are no whole number of groups of {self.k} candidates")
        return xt

    def choose(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        best = torch.zeros(x0.n_systems // self.k, dtype=torch.long)
        self.said = []
        for group in range(len(best) if self.n_groups is None else self.n_groups):
            ranks, said = self.judge(group, x0[group * self.k : (group + 1) * self.k])
            best[group] = torch.tensor(ranks, dtype=torch.float64).nan_to_num(math.inf, posinf=math.inf).argmin()
            self.said.append(said[int(best[group])])
        index = with_first(best.to(x0.device), self.k)
        reorder(self.denoiser, index)
        return x0[index]

    def facts(self, row: int) -> Mapping[str, Any]:
        """What the judge said of the sample in a group's first row."""
        group, place = divmod(row, self.k)
        return {} if place or group >= len(self.said) else self.said[group]


def with_first(best: Tensor, k: int) -> Tensor:
    """The index [G k] that brings system ``best`` [G] of each group of k rows to the group's first row."""
    index = torch.arange(len(best) * k, device=best.device).reshape(-1, k)
    index[:, 0] += best
    return index.flatten()


class Chosen(Control):
    """Groups of K finished crystals, the candidate of the least ``doubt`` of each brought to its first row.

    ``doubt`` is the denoising loss that training minimises, values alone, averaged over ``draws`` of noise at each time of
    ``levels``: one network call each, with the noise of the row's own stream. Candidates that are no crystal (numbers that are
    not finite, overlapping atoms) come last. Groups from ``n_groups`` on only fill up the batch.
    """

    def __init__(
        self, n_candidates: int, levels: tuple[float, ...] = LEVELS, draws: int = DRAWS, n_groups: int | None = None
    ) -> None:
        self.k, self.levels, self.draws, self.n_groups = n_candidates, levels, draws, n_groups
        self.doubt: list[float] = []

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        self.denoiser = denoiser
        return denoiser

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        if xt.n_systems % self.k:
            raise ValueError(f"{xt.n_systems} rows are no whole number of groups of {self.k} candidates")
        self.rng = rng
        return xt

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        doubt = denoising_loss(self.denoiser, diffusion, x0, self.rng, self.levels, self.draws)
        doubt = torch.where(is_crystal(x0) & doubt.isfinite(), doubt, math.inf).reshape(-1, self.k)
        best = doubt.argmin(1)
        if self.n_groups is not None:
            best[self.n_groups :] = 0
        self.doubt = doubt.gather(1, best[:, None])[: self.n_groups, 0].tolist()
        index = with_first(best, self.k)
        reorder(self.denoiser, index)
        return x0[index]

    def facts(self, row: int) -> Mapping[str, Any]:
        """The doubt of the sample in a group's first row; None where no candidate is a crystal."""
        group, place = divmod(row, self.k)
        if place or group >= len(self.doubt):
            return {}
        value = self.doubt[group]
        return {"doubt": float(f"{value:.5g}") if math.isfinite(value) else None}


def denoising_loss(
    denoiser: Denoiser, diffusion: Diffusion, x0: AtomBatch, rng: Streams, levels: tuple[float, ...], draws: int
) -> Tensor:
    """The loss of each clean system, [S]: the weighted sum over the fields that are values, averaged over levels and draws.

    Fields that are classes are shown as they are. Each draw is one call, without a previous prediction.
    """
    values = Diffusion({name: process for name, process in diffusion.processes.items() if process.continuous})
    total = torch.zeros(x0.n_systems, device=x0.device)
    for level in levels:
        t = torch.full((x0.n_systems,), level, device=x0.device)
        for _ in range(draws):
            xt = values.noise(x0, t, rng)
            total = total + values.total(values.loss(denoiser(xt, t, None), x0, xt, t))
    return total / (len(levels) * draws)


def is_crystal(x0: AtomBatch) -> Tensor:
    """Whether all numbers of each system are finite and no two atoms overlap (the nearest images of pairs): bool [S]."""
    finite = torch.isfinite(x0.frac_coords.flatten(1).sum(1) + x0.lattice.flatten(1).sum(1))
    near = minimum_image_pairs(x0.frac_coords, x0.lattice).square().sum(-1)
    own = torch.eye(near.shape[1], dtype=torch.bool, device=near.device)
    pairs = x0.mask[:, :, None] & x0.mask[:, None] & ~own
    return finite & (torch.where(pairs, near, math.inf).flatten(1).amin(1) >= OVERLAP**2)
