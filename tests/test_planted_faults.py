"""Checks of the checks: each fault that people have really made is planted, and the oracle must find it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.categorical import Categorical, draw_classes
from moldiff.diffusion.gaussian import Gaussian, eps_from_x0
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.onehot import OneHot
from moldiff.diffusion.process import Process, per_system
from moldiff.diffusion.schedules import Cosine, Schedule, VarianceExploding
from moldiff.sampling.ddpm import DDPM
from moldiff.sampling.dpm_solver import DPMSolver
from moldiff.sampling.euler import Euler
from moldiff.sampling.heun import Heun
from moldiff.sampling.loop import Memory, Sampler
from moldiff.testing import CheckFailed, check_process, check_sampler

VE, VP = VarianceExploding(), Cosine()


class FreshWithoutRoot(Gaussian):
    """The injected noise misses its square root."""

    def step(self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor, rng: Streams, eta: float = 1.0) -> Tensor:
        value = xt.data[self.name]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self._factors(t, value), self._factors(s, value)
        drop = (alpha_t / alpha_s * sigma_s / sigma_t).square()
        prediction = self._inside(prediction, xt)
        fresh = eta * sigma_s * (1 - drop)
        stay = (sigma_s.square() - (eta * sigma_s).square() * (1 - drop)).clamp_min(0).sqrt()
        x = alpha_s * prediction + stay * eps_from_x0(prediction, value, alpha_t, sigma_t)
        return x + fresh * self.scale * self.draw(xt, rng) if eta > 0 else x


class NoiseTimesNoise(Gaussian):
    """Two normal draws multiplied: right mean and variance, wrong distribution."""

    def draw(self, like: AtomBatch, rng: Streams) -> Tensor:
        return super().draw(like, rng) * rng.normal(like, self.name)


class StepIgnoresEta(Gaussian):
    def step(self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor, rng: Streams, eta: float = 1.0) -> Tensor:
        return super().step(xt, prediction, t, s, rng, 1.0)


class StepRoundsEta(Gaussian):
    def step(self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor, rng: Streams, eta: float = 1.0) -> Tensor:
        return super().step(xt, prediction, t, s, rng, 1.0 if eta > 0 else 0.0)


class NoiseNotCentred(Gaussian):
    """The noise of positions drifts: zero mean dropped in the draw and in what follows it."""

    def draw(self, like: AtomBatch, rng: Streams) -> Tensor:
        return rng.normal(like, self.name)

    def _inside(self, value: Tensor, like: AtomBatch) -> Tensor:
        return value * like.mask[..., None]


class NoiseWithoutScale(Gaussian):
    def step(self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor, rng: Streams, eta: float = 1.0) -> Tensor:
        straight = super().step(xt, prediction, t, s, rng, 0.0)
        return straight if eta == 0 else super().step(xt, prediction, t, s, rng, eta) / self.scale


class NoiseAlongAnAxis(Gaussian):
    """Noise of unequal size along x: not rotation-invariant."""

    def draw(self, like: AtomBatch, rng: Streams) -> Tensor:
        return super().draw(like, rng) * torch.tensor([1.2, 0.9, 0.9])


class VarianceForDeviation(Gaussian):
    def noise(self, x0: AtomBatch, t: Tensor, rng: Streams) -> Tensor:
        value = self.clean(x0)
        alpha, sigma = self._factors(t, value)
        return alpha * value + sigma.square() * self.scale * self.draw(x0, rng)


class RenoiseAddsDeviations(Gaussian):
    """sigma_u - sigma_t instead of the root of the difference of squares."""

    def renoise(self, xt: AtomBatch, t: Tensor, u: Tensor, rng: Streams) -> Tensor:
        value = xt.data[self.name]
        (alpha_t, sigma_t), (alpha_u, sigma_u) = self._factors(t, value), self._factors(u, value)
        added = sigma_u - alpha_u / alpha_t * sigma_t
        return alpha_u / alpha_t * value + added * self.scale * self.draw(xt, rng)


class LossAgainstNoisy(Gaussian):
    """A slip in the target: a hundredth of the noise is left in it."""

    def loss(self, prediction: Tensor, x0: AtomBatch, xt: AtomBatch, t: Tensor) -> Tensor:
        target = self.clean(x0) + 0.1 * (xt.data[self.name] - self.clean(x0))
        return super().loss(prediction, x0.replace(**{self.name: target}), xt, t)


class AbsoluteLoss(Gaussian):
    """Least at the median, not at the mean."""

    def loss(self, prediction: Tensor, x0: AtomBatch, xt: AtomBatch, t: Tensor) -> Tensor:
        return ((prediction - self.clean(x0)).abs() * x0.mask[..., None]).flatten(1).sum(1)


class OneStreamForAll(Gaussian):
    def draw(self, like: AtomBatch, rng: Streams) -> Tensor:
        return super().draw(like, rng if rng.shared is not None else Streams(rng.each[0]))


class PriorTooNarrow(Gaussian):
    def prior(self, like: AtomBatch, rng: Streams) -> Tensor:
        return super().prior(like, rng) / self.scale


class OneHotWithoutFactor(OneHot):
    def draw(self, like: AtomBatch, rng: Streams) -> Tensor:
        return super().draw(like, rng) / self.scale


class AsymmetricPairs(OneHot):
    """Every ordered pair gets its own noise: the sign says which of the two comes first."""

    def draw(self, like: AtomBatch, rng: Streams) -> Tensor:
        order = torch.ones(like.n_max, like.n_max).triu().mul(2).sub(1)
        return super().draw(like, rng) * order[..., None]


class PosteriorWithoutEvidence(Categorical):
    """q(x_s | x_t, x_0) not normalised a clean class at a time."""

    def posterior(self, xt: Tensor, probabilities: Tensor, t: Tensor, s: Tensor) -> Tensor:
        keep_t, keep_s = (per_system(self.schedule.keep(x), probabilities) for x in (t, s))
        step, here = keep_t / keep_s, torch.nn.functional.one_hot(xt, self.n_classes).float()
        return (step * here + (1 - step) / self.n_classes) * (keep_s * probabilities + (1 - keep_s) / self.n_classes)


class PosteriorOfWrongStep(Categorical):
    """Survival from s to t mistaken for survival to t."""

    def posterior(self, xt: Tensor, probabilities: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return super().posterior(xt, probabilities, t, torch.zeros_like(s))


class ResampleToWrongTime(Categorical):
    def step(self, xt: AtomBatch, prediction: Tensor, t: Tensor, s: Tensor, rng: Streams, eta: float = 1.0) -> Tensor:
        return super().step(xt, prediction, t, t, rng, eta)


class ReplacesBySomethingElse(Categorical):
    """The uniform draw leaves the old value out, so that replacing is likelier than it should be."""

    def noise(self, x0: AtomBatch, t: Tensor, rng: Streams) -> Tensor:
        value = x0.data[self.name]
        other = (value + 1 + (rng.uniform(x0, self.name) * (self.n_classes - 1)).long()) % self.n_classes
        kept = rng.uniform(x0, self.name) < per_system(self.schedule.keep(t), value)
        return self._mask(torch.where(kept, value, other), x0)


class KeepToTheRoot(Categorical):
    """A missing square: classes survive with alpha instead of alpha^2."""

    def renoise(self, xt: AtomBatch, t: Tensor, u: Tensor, rng: Streams) -> Tensor:
        value = xt.data[self.name]
        survival = (self.schedule.keep(u) / self.schedule.keep(t)).sqrt()
        replace = rng.uniform(xt, self.name) >= per_system(survival, value)
        return self._mask(torch.where(replace, self._replacement(xt, rng), value), xt)


class ClassesWithoutWeights(Categorical):
    def loss(self, prediction: Tensor, x0: AtomBatch, xt: AtomBatch, t: Tensor) -> Tensor:
        return -prediction.gather(-1, x0.data[self.name][..., None])[..., 0].sum(1)  # logits taken for log-probabilities


PROCESS_FAULTS: list[tuple[Callable[[], Process], str]] = [
    (lambda: FreshWithoutRoot("positions", VE, scale=1.4, zero_mean=True), "step from"),
    (lambda: NoiseTimesNoise("lattice", VP), "noise at t"),
    (lambda: StepIgnoresEta("positions", VE, zero_mean=True), "eta 0"),
    (lambda: StepRoundsEta("positions", VE, zero_mean=True), "eta 1/2"),
    (lambda: NoiseNotCentred("positions", VP, zero_mean=True), "centre of mass"),
    (lambda: NoiseWithoutScale("positions", VE, scale=1.4, zero_mean=True), "step from"),
    (lambda: NoiseAlongAnAxis("positions", VE, zero_mean=True), "rotating"),
    (lambda: VarianceForDeviation("lattice", VP), "noise at t"),
    (lambda: RenoiseAddsDeviations("lattice", VE), "renoise"),
    (lambda: LossAgainstNoisy("positions", VP, zero_mean=True), "slope of the loss"),
    (lambda: AbsoluteLoss("positions", VE, zero_mean=True), "slope of the loss"),
    (lambda: OneStreamForAll("positions", VE, zero_mean=True), "alone and in a batch"),
    (lambda: PriorTooNarrow("positions", VP, scale=1.4, zero_mean=True), "prior"),
    (lambda: OneHotWithoutFactor("atom_types", VP, 4), "noise at t"),
    (lambda: AsymmetricPairs("bond_types", VP, 3), "symmetric"),
    (lambda: PosteriorWithoutEvidence("atom_types", VP, 4, rule="posterior"), "step from"),
    (lambda: PosteriorOfWrongStep("atom_types", VP, 4, rule="posterior"), "step from"),
    (lambda: ResampleToWrongTime("atom_types", VE, 4, rule="resample"), "step from"),
    (lambda: ReplacesBySomethingElse("atom_types", VE, 4), "noise at t"),
    (lambda: KeepToTheRoot("atom_types", VP, 4), "renoise"),
    (lambda: ClassesWithoutWeights("atom_types", VP, 4), "loss"),
]


@pytest.mark.parametrize(("build", "symptom"), PROCESS_FAULTS, ids=[type(b()).__name__ for b, _ in PROCESS_FAULTS])
def test_check_process_finds(build: Callable[[], Process], symptom: str) -> None:
    with pytest.raises(CheckFailed, match=symptom):
        check_process(build(), samplers=())


class CorrectorCountsTwice(Heun):
    """The corrector adds the second slope instead of taking the mean."""

    def weight(self, fall: Tensor) -> Tensor:
        return fall


class _Backwards(Diffusion):
    def blend(self, first: AtomBatch, second: AtomBatch, weight: Callable[[Schedule], Tensor]) -> AtomBatch:
        return super().blend(first, second, lambda schedule: -weight(schedule))


class ExtrapolatesTheWrongWay(DPMSolver):
    def step(self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams) -> AtomBatch:
        return super().step(model, _Backwards(diffusion.processes), xt, t, s, rng)


class ForgetsToForget(DPMSolver):
    """Takes the step before the last for equally long: right on one grid, first order on others."""

    def step(self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams) -> AtomBatch:
        moved = super().step(model, diffusion, xt, t, s, rng)
        if self.before is not None:
            self.before = self.before[0], (t + s) / 2
        return moved


class ChurnWithoutNoise(Euler):
    """The time is raised, the noise is not."""

    def step(self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams) -> AtomBatch:
        _, later = self.churn(diffusion, xt, t, self.n_steps, rng)
        return diffusion.step(xt, model(xt, later), later, s, rng, eta=0.0)


class StepsClassesTwice(DDPM):
    """Classes are moved from t to s although they stand at s already."""

    def step(self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams) -> AtomBatch:
        prediction = model(xt, t)
        moved = diffusion.step(xt, prediction, t, s, rng, self.eta)
        return diffusion.step(moved, prediction, t, s, rng, self.eta, only=diffusion.categorical)


class LeavesClassesBehind(DDPM):
    def step(self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams) -> AtomBatch:
        return diffusion.step(xt, model(xt, t), t, s, rng, self.eta, only=diffusion.continuous)


class CallsOnceMore(DDPM):
    def step(self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams) -> AtomBatch:
        model(xt, t)
        return super().step(model, diffusion, xt, t, s, rng)


class TooCold(DDPM):
    """A temperature of 0.8 left on."""

    def __init__(self) -> None:
        super().__init__(noise_scale=0.8)


class OneStreamForTheBatch(DDPM):
    def step(self, model: Memory, diffusion: Diffusion, xt: AtomBatch, t: Tensor, s: Tensor, rng: Streams) -> AtomBatch:
        return super().step(model, diffusion, xt, t, s, Streams(rng.shared or rng.each[0]))


def _posterior() -> Diffusion:
    return Diffusion(
        {
            "positions": Gaussian("positions", VE, zero_mean=True),
            "atom_types": Categorical("atom_types", VE, 3, "uniform", "posterior"),
        }
    )


SAMPLER_FAULTS: list[tuple[Callable[[], Sampler], dict[str, Any], str]] = [
    (lambda: CorrectorCountsTwice(s_churn=0), {}, "order 2"),
    (ExtrapolatesTheWrongWay, {}, "order 2"),
    (ForgetsToForget, {}, "order 2"),
    (lambda: ChurnWithoutNoise(s_churn=40), {}, "gap|energy"),
    (StepsClassesTwice, {"diffusion": _posterior()}, "total variation|energy"),
    (LeavesClassesBehind, {}, "total variation"),
    (CallsOnceMore, {}, "network calls"),
    (TooCold, {}, "gap|energy"),
    (OneStreamForTheBatch, {}, "alone and in a batch"),
]


@pytest.mark.parametrize(("build", "options", "symptom"), SAMPLER_FAULTS, ids=[type(b()).__name__ for b, _, _ in SAMPLER_FAULTS])
def test_check_sampler_finds(build: Callable[[], Sampler], options: dict[str, Any], symptom: str) -> None:
    with pytest.raises(CheckFailed, match=symptom):
        check_sampler(build(), n_calls=40, **options)


def test_check_sampler_finds_a_broken_draw_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharpened by a missing logarithm: probabilities squared before the draw."""
    monkeypatch.setattr("moldiff.diffusion.categorical.draw_classes", lambda p, u: draw_classes(p.square(), u))
    with pytest.raises(CheckFailed, match="total variation"):
        check_sampler(DDPM(), n_calls=40)


def test_a_failure_names_the_subject_the_number_and_the_limit() -> None:
    with pytest.raises(CheckFailed, match=r"CallsOnceMore on positions, .*: 4 network calls \(found 8\) = 1 \(limit 0\)"):
        check_sampler(CallsOnceMore(), n_calls=40, n_samples=300)
