"""Discrete diffusion of a categorical field, with a uniform prior or an absorbing (mask) state."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.process import Process, per_system
from moldiff.diffusion.schedules import Schedule
from moldiff.errors import unknown


def draw_classes(probabilities: Tensor, u: Tensor) -> Tensor:
    """Classes by inverse transform: probabilities [..., C] (need not sum to 1), u [...] uniform; int64 [...].

    A class of probability 0 is never drawn, not even at u = 0 or where rounding lifts u to the top.
    """
    cumulative = probabilities.cumsum(-1)
    total = cumulative[..., -1:]
    level = torch.minimum(u[..., None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return (cumulative <= level).sum(-1).clamp_max(probabilities.shape[-1] - 1)


class Categorical(Process):
    """Each value survives to t with probability keep(t), else it is replaced by a draw of the prior (Austin et al. 2021).

    ``prior_kind`` ``uniform`` replaces by any of the ``n_classes`` values alike; ``absorbing`` by the mask state, index
    ``n_classes``. The loss is cross-entropy, weighted by min(``max_weight``, 1 / (1 - keep)).

    ``rule`` is how a step is made. ``posterior`` draws from q(x_s | x_t, x_0) averaged over the prediction; it becomes exact as
    steps get small. ``resample`` draws x_0 from the prediction and noises it anew to s, so that a learned denoiser corrects its
    own errors. It draws all classes of a system independently and is therefore exact only where they are independent given
    x_t; among strongly coupled classes it favours the common (of two modes of 80 and 20 %, 86 and 11 % come out, however
    small the steps).
    """

    continuous = False

    def __init__(
        self,
        name: str,
        schedule: Schedule,
        n_classes: int,
        prior_kind: Literal["uniform", "absorbing"] = "uniform",
        rule: Literal["posterior", "resample"] = "resample",
        weight: float = 1.0,
        max_weight: float = 10.0,
    ) -> None:
        if prior_kind not in ("uniform", "absorbing"):
            raise unknown("prior", prior_kind, ("uniform", "absorbing"))
        if rule not in ("posterior", "resample"):
            raise unknown("step rule", rule, ("posterior", "resample"))
        self.name, self.schedule, self.n_classes = name, schedule, n_classes
        self.prior_kind, self.rule, self.weight, self.max_weight = prior_kind, rule, weight, max_weight

    @property
    def reversible(self) -> bool:  # type: ignore[override]
        """True for the posterior rule; ``resample`` forgets x_t once it has drawn x_0."""
        return self.rule == "posterior"

    @property
    def n_states(self) -> int:
        """Number of values that x_t can take: the classes, and the mask where there is one."""
        return self.n_classes + (self.prior_kind == "absorbing")

    def _replacement(self, like: AtomBatch, rng: Streams) -> Tensor:
        u = rng.uniform(like, self.name)
        if self.prior_kind == "absorbing":
            return torch.full_like(u, self.n_classes, dtype=torch.int64)
        return (u * self.n_classes).long().clamp_max(self.n_classes - 1)

    def _mask(self, value: Tensor, like: AtomBatch) -> Tensor:
        return torch.where(like.scope_mask(self.name), value, torch.zeros_like(value))

    def prior(self, like: AtomBatch, rng: Streams) -> Tensor:
        return self._mask(self._replacement(like, rng), like)

    def _corrupt(self, value: Tensor, t: Tensor, like: AtomBatch, rng: Streams) -> Tensor:
        replace = rng.uniform(like, self.name) >= per_system(self.schedule.keep(t), value)
        return self._mask(torch.where(replace, self._replacement(like, rng), value), like)

    def renoise(self, xt: AtomBatch, t: Tensor, u: Tensor, rng: Streams) -> Tensor:
        value = xt.data[self.name]
        survival = self.schedule.keep(u) / self.schedule.keep(t).clamp_min(1e-12)
        replace = rng.uniform(xt, self.name) >= per_system(survival, value)
        return self._mask(torch.where(replace, self._replacement(xt, rng), value), xt)

    def noise(self, x0: AtomBatch, t: Tensor, rng: Streams) -> Tensor:
        return self._corrupt(x0.data[self.name], t, x0, rng)

    def loss(self, prediction: Tensor, x0: AtomBatch, xt: AtomBatch, t: Tensor) -> Tensor:
        target = x0.data[self.name]
        entropy = torch.nn.functional.cross_entropy(
            prediction.flatten(0, -2).float(), target.flatten(), reduction="none"
        ).reshape(target.shape)
        m = x0.scope_mask(self.name)
        mean = (entropy * m).flatten(1).sum(1) / m.flatten(1).sum(1).clamp_min(1)
        return mean * (1 / (1 - self.schedule.keep(t)).clamp_min(1e-6)).clamp_max(self.max_weight)

    def posterior(self, xt: Tensor, probabilities: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t) for a prediction's class probabilities [..., C]: [..., n_states], from Bayes' rule a state at a time."""
        keep_t, keep_s = (per_system(self.schedule.keep(x), probabilities) for x in (t, s))
        step = keep_t / keep_s.clamp_min(1e-12)  # survival from s to t
        here = torch.nn.functional.one_hot(xt, self.n_states).to(probabilities.dtype)
        base = torch.zeros(self.n_states, dtype=probabilities.dtype, device=xt.device)
        if self.prior_kind == "uniform":
            base[: self.n_classes] = 1 / self.n_classes
        else:
            base[-1] = 1
            probabilities = torch.cat([probabilities, torch.zeros_like(probabilities[..., :1])], -1)
        # q(x_t | x_s): survive with `step`, or be replaced; q(x_s | x_0): survive with keep_s, or be replaced
        likelihood = step * here + (1 - step) * (base * here).sum(-1, keepdim=True)
        # q(x_t | x_0) for each x_0, which normalises the posterior of that x_0
        evidence = (keep_t * here + (1 - keep_t) * (base * here).sum(-1, keepdim=True)).clamp_min(1e-12)
        weights = probabilities / evidence
        result = likelihood * (keep_s * weights + (1 - keep_s) * base * weights.sum(-1, keepdim=True))
        return result.clamp_min(0)

    def step(self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor, rng: Streams, eta: float = 1.0) -> Tensor:
        """A draw at s. Classes have no deterministic step, so ``eta`` changes nothing here."""
        probabilities = prediction.float().softmax(-1)
        u = rng.uniform(xt, self.name)
        if self.rule == "resample":
            return self._corrupt(self._mask(draw_classes(probabilities, u), xt), s, xt, rng)
        return self._mask(draw_classes(self.posterior(xt.data[self.name], probabilities, t, s), u), xt)

    def finish(self, prediction: Tensor, batch: AtomBatch) -> Tensor:
        return self._mask(prediction.argmax(-1), batch)

    def known(self, x0: AtomBatch, xt: AtomBatch) -> Tensor:
        """Logits that leave the other classes a probability of e^-60."""
        return 60.0 * torch.nn.functional.one_hot(x0.data[self.name], self.n_classes).float()

    def blend(self, first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
        """Logits are probabilities, not a velocity: nothing to extrapolate, so ``first`` stands."""
        return first

    def self_condition(self, prediction: Tensor) -> Tensor:
        return prediction.float().softmax(-1)
