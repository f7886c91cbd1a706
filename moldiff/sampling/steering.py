"""Steering by any reward: sequential Monte Carlo over the denoising path (Feynman-Kac steering, Singhal et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser, reorder
from moldiff.diffusion.joint import Diffusion
from moldiff.sampling.control import Control, Step
from moldiff.sampling.loop import Memory, Sampler

#: Rewards of clean encoded systems, float [S]: NaN where there is none as yet, -inf where there will be none.
Score = Callable[[AtomBatch], Tensor]
#: Rewards that agree to this share of their size count as the same.
ALIKE = 1e-5
POTENTIALS = ("difference", "max")
PICKS = ("best", "draw")


class Steered(Control):
    """K particles a sample, resampled by the reward of the predicted clean systems.

    Groups of K rows are resampled (systematically) whenever noise over signal falls past one of ``levels``, and past ``low``,
    from where the time grid may rise again. The target is p(x) exp(``strength`` reward(x)): a particle's weight is
    exp(strength (value - value when its group was last resampled)) where ``potential`` is ``difference``, or
    exp(strength greatest) for ``max``; the value is its present reward, ``greatest`` the best that its forebears had. In the end
    weights make up for what resampling has spent, so that the product is exp(strength reward(x_0)) in both. A group is left
    alone while its effective sample size is at least ``threshold`` K. Where ``strength`` is None, each group takes at each
    resampling the strength at which its effective sample size is ``threshold`` K: no target distribution, but no scale to choose
    either. The best that a group ever had at ``low`` then comes back in place of its worst.

    A particle whose reward is -inf has weight zero; one of which nothing is known (NaN), such as an unfinished molecule, has the
    mean weight of the others. In the end each group's first row is its sample: the particle of the greatest reward (``best``), or
    one drawn by its weight (``draw``). Groups from ``n_groups`` on only fill up the batch.

    Copies part again by the noise of later steps, or by that of a rise: noising on and coming back keeps the distribution, and so
    the target is the same for any number of rises. A deterministic sampler without rises gains little.
    """

    def __init__(
        self,
        score: Score,
        n_particles: int,
        strength: float | None = None,
        potential: str = "difference",
        threshold: float = 0.5,
        pick: str = "best",
        levels: Sequence[float] = (),
        low: float | None = None,
        n_groups: int | None = None,
    ) -> None:
        self.score, self.k, self.strength, self.potential = score, n_particles, strength, potential
        self.threshold, self.pick, self.levels, self.n_groups = threshold, pick, tuple(levels), n_groups
        self.low = low
        self.rewards: Tensor | None = None
        self.elite: tuple[Tensor, AtomBatch] | None = None
        self.n_resampled = 0

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        self.denoiser = denoiser
        return denoiser

    def start(self, xt: AtomBatch, diffusion: Diffusion, rng: Streams) -> AtomBatch:
        groups, left = divmod(xt.n_systems, self.k)
        if left:
            raise ValueError(f"{xt.n_systems} rows are no whole number of groups of {self.k} particles")
        self.rng = rng
        self.used = torch.zeros(groups, self.k, dtype=torch.float64)  # log of the potentials that resampling has spent
        self.greatest = torch.full_like(self.used, -math.inf)
        self.last_strength = torch.zeros(groups, 1, dtype=torch.float64)
        return xt

    def step(self, now: Step, after: AtomBatch) -> AtomBatch:
        model, diffusion = now.model, now.diffusion
        if model.previous is None or self.k == 1:
            return after
        high, low = diffusion.schedule.ratio(torch.stack([now.t[0], now.s[0]])).tolist()
        turns = self.low is not None and high >= self.low > low
        if not (turns or any(high >= level > low for level in self.levels)):
            return after
        rewards = self._rewards(diffusion.finish(model.previous, now.before))
        if turns and self.strength is None:
            after = self._with_elite(rewards, after)
            model.previous = None  # it does not belong to all rows any more; for all alike, whatever became of each
            now.sampler.forget()
        return self._moved(rewards, model, now.sampler, after, now.rng)

    def _moved(self, rewards: Tensor, model: Memory, sampler: Sampler, xt: AtomBatch, rng: Streams) -> AtomBatch:
        """The batch with its rows resampled by their rewards."""
        parents = self._parents(rewards, rng)
        if parents is None:
            return xt
        index = self._rows(parents).to(xt.device)
        model.reorder(index)
        sampler.reorder(index)
        return xt[index]

    def _with_elite(self, rewards: Tensor, xt: AtomBatch) -> AtomBatch:
        """The batch in which each group's best of earlier rounds takes the place of its worst, where it is better than all.

        ``rewards`` [G, K] follow. What is best now is kept for later.
        """
        groups = torch.arange(len(rewards))
        known = torch.where(rewards.isfinite(), rewards, -math.inf)
        if self.elite is not None:
            value, kept = self.elite
            back = value > known.amax(1)
            worst = known.argmin(1)
            rows = (groups * self.k + worst)[back].to(xt.device)
            rewards[groups[back], worst[back]] = value[back]
            which = groups[back].to(xt.device)
            xt = AtomBatch(xt.mask, {name: x.index_copy(0, rows, kept.data[name][which]) for name, x in xt.data.items()})
            known = torch.where(rewards.isfinite(), rewards, -math.inf)
        best = known.argmax(1)
        self.elite = known.amax(1), xt[(groups * self.k + best).to(xt.device)]
        return xt

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        rewards = self._rewards(x0)
        rewards = torch.where(rewards.isfinite(), rewards, -math.inf)
        if self.pick == "best":
            chosen = rewards.argmax(1)
        else:
            if self.strength is None:
                weight = _weights(scaled(self.last_strength, rewards))
            else:
                weight = _weights(scaled(self.strength, rewards) - self.used)
            level = self._uniform(self.rng)[:, None] * weight.sum(1, keepdim=True)
            chosen = (weight.cumsum(1) <= level).sum(1).clamp_max(self.k - 1)
        self.rewards = rewards.gather(1, chosen[:, None])[:, 0]
        parents = torch.arange(self.k).repeat(len(rewards), 1)
        parents[:, 0] = chosen
        index = self._rows(parents).to(x0.device)
        reorder(self.denoiser, index)
        return x0[index]

    def facts(self, row: int) -> Mapping[str, Any]:
        """The reward of the sample that a group's first row holds; None where it has none."""
        if self.rewards is None or row % self.k:
            return {}
        value = float(self.rewards[row // self.k])
        return {"reward": float(f"{value:.7g}") if math.isfinite(value) else None}

    def _rewards(self, clean: AtomBatch) -> Tensor:
        """Rewards by group and particle, float64 [G, K]; 0 in groups that only fill up."""
        groups = clean.n_systems // self.k
        real = groups if self.n_groups is None else self.n_groups
        out = torch.zeros(groups, self.k, dtype=torch.float64)
        out[:real] = self.score(clean[: real * self.k]).detach().to("cpu", torch.float64).reshape(real, self.k)
        return torch.where(out == math.inf, math.nan, out)

    def _parents(self, rewards: Tensor, rng: Streams) -> Tensor | None:
        """The particle whose place each one takes, int64 [G, K]; None where all stay."""
        uniform = self._uniform(rng)
        if self.strength is None:
            self.last_strength = balanced_strength(rewards, self.threshold)
            log_weight, least = neutral(scaled(self.last_strength, rewards)), 1 - 1e-6
        else:
            value = scaled(self.strength, rewards)
            self.greatest = torch.where(value.isnan(), self.greatest, torch.maximum(self.greatest, value))
            if self.potential == "max":
                log_weight = torch.where(value.isfinite(), self.greatest, value)
            else:
                log_weight = value - self.used
            log_weight, least = neutral(log_weight), self.threshold
        moves = (effective_size(log_weight) < least * self.k) & log_weight.isfinite().any(1)
        if not bool(moves.any()):
            return None
        self.n_resampled += int(moves.sum())
        parents = torch.arange(self.k).repeat(len(rewards), 1)
        parents[moves] = systematic(_weights(log_weight[moves]), uniform[moves])
        self.used = torch.where(moves[:, None], (self.used + log_weight).gather(1, parents), self.used)
        self.greatest = self.greatest.gather(1, parents)
        return parents

    def _uniform(self, rng: Streams) -> Tensor:
        """One uniform draw a group, from the stream of its first particle."""
        groups = len(self.used)
        return rng.subset(range(0, groups * self.k, self.k)).times(groups, torch.device("cpu")).double()

    def _rows(self, parents: Tensor) -> Tensor:
        return (parents + torch.arange(len(parents))[:, None] * self.k).flatten()


def scaled(strength: Tensor | float, rewards: Tensor) -> Tensor:
    """strength x reward; -inf and NaN stay what they are, at strength 0 too."""
    return torch.where(rewards.isfinite(), strength * rewards, rewards)


def neutral(log_weight: Tensor) -> Tensor:
    """Log weights [G, K] in which those that are unknown (NaN) are the mean of the known ones; 0 where none is known."""
    known = ~log_weight.isnan()
    total = torch.where(known, log_weight, -math.inf).logsumexp(1, keepdim=True)
    mean = torch.where(known.any(1, keepdim=True), total - known.sum(1, keepdim=True).clamp_min(1).log(), 0.0)
    return torch.where(known, log_weight, mean)


def _weights(log_weight: Tensor) -> Tensor:
    """Normalised weights of each group, [G, K]; all alike where no particle has any."""
    dead = ~log_weight.isfinite().any(1, keepdim=True)
    return torch.where(dead, 0.0, log_weight).softmax(1)


def effective_size(log_weight: Tensor) -> Tensor:
    """Kish's effective sample size of each group, [G]: 1 / sum of squared normalised weights, between 1 and K."""
    return 1 / _weights(log_weight).square().sum(1)


def systematic(weight: Tensor, uniform: Tensor) -> Tensor:
    """Systematic resampling: normalised weights [G, K] and one uniform number a group -> parents, int64 [G, K].

    A particle of weight w gets floor(K w) or one more children, K w in the mean, and none at weight 0.
    """
    k = weight.shape[1]
    level = (torch.arange(k) + uniform[:, None]) / k
    cumulative = weight.cumsum(1)
    total = cumulative[:, -1:]
    level = torch.minimum(level * total, torch.nextafter(total, torch.zeros_like(total)))
    return (cumulative[:, None, :] <= level[:, :, None]).sum(-1).clamp_max(k - 1)


def balanced_strength(rewards: Tensor, threshold: float) -> Tensor:
    """The strength of each group [G, 1] at which its effective sample size is ``threshold`` times its particles with a reward.

    It is aimed at no less than 1.5. 0 where all rewards are alike to ``ALIKE``, as those of copies are up to the rounding of
    their places in the batch; where more than the share have the greatest reward, a strength at which the rest is gone.
    """
    alive = rewards.isfinite()
    n = alive.sum(1, keepdim=True)
    top = torch.where(alive, rewards, -math.inf).amax(1, keepdim=True)
    low = torch.where(alive, rewards, math.inf).amin(1, keepdim=True)
    spread = torch.where(n > 0, top - low, 0.0)
    spread = torch.where(spread > ALIKE * torch.maximum(top.abs(), low.abs()), spread, 0.0)
    unit = torch.where(spread > 0, spread, 1.0)
    above = torch.where(alive, rewards - torch.where(n > 0, top, 0.0), 0.0) / unit
    least, most = torch.zeros_like(unit), torch.full_like(unit, 1e4)
    for _ in range(60):
        middle = (least + most) / 2
        weight = torch.where(alive, middle * above, -math.inf)
        large = effective_size(weight)[:, None] > (threshold * n).clamp_min(1.5)
        least, most = torch.where(large, middle, least), torch.where(large, most, middle)
    return torch.where(spread > 0, most / unit, 0.0)
