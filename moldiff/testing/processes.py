"""check_process: a process's verbs against their definitions, with an exact posterior."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.fields import field
from moldiff.core.geometry import random_rotations
from moldiff.core.rng import Streams
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.process import Process
from moldiff.sampling.ddpm import DDPM
from moldiff.sampling.dpm_solver import DPMSolver
from moldiff.sampling.loop import Sampler
from moldiff.testing.defaults import default_model
from moldiff.testing.oracles import FieldModel, MixtureOracle
from moldiff.testing.report import Report
from moldiff.testing.samplers import check_sampler
from moldiff.testing.statistics import energy_test, gap_limit, largest_gap, moment_test

_N_ATOMS = 3


def check_process(
    process: Process,
    model: FieldModel | None = None,
    *,
    times: Sequence[float] = (0.2, 0.5, 0.85),
    n_draws: int = 8000,
    seed: int = 0,
    samplers: Sequence[Sampler] | None = None,
) -> Report:
    """Check a process; raises ``CheckFailed`` naming what is out of bounds.

    ``model`` gives the clean data of its field with an exact posterior (default: normals or uneven classes); it may have any
    number of components and must describe 3 atoms. Checked: noise and renoise against the definition; the prior against noise
    at t = 1; that a step with the clean value known leaves exactly the marginal at s, for any eta, and at eta 1 the joint
    distribution of noising; that eta scales the noise; that the loss is least at the exact posterior mean; rotation, zero mean,
    padding, symmetric pairs; that draws do not depend on the batch; and, with ``samplers``, ``check_sampler`` for each.
    """
    report = Report(f"{type(process).__name__} of {process.name} with {type(process.schedule).__name__}")
    model = model or default_model(process, _N_ATOMS, seed=seed, free=1)
    weights = torch.arange(model.n_components, 0, -1).float()
    oracle = MixtureOracle(weights / weights.sum(), _N_ATOMS, {process.name: model})
    fixed = oracle.draw(1, seed)[torch.zeros(n_draws, dtype=torch.int64)]  # one system, n times
    _marginals(report, process, model, fixed, times, seed)
    _prior(report, process, model, oracle.draw(n_draws, seed), seed)
    _steps(report, process, model, fixed, times, seed)
    if not process.continuous:
        _averages(report, process, model, oracle, times, n_draws, seed)
    _eta(report, process, model, fixed, times, seed)
    _loss(report, process, oracle, model, times, seed)
    _form(report, process, model, oracle.draw(4, seed), times, seed)
    _batch(report, process, model, oracle.draw(3, seed), seed)
    if field(process.name).transform == "vector":
        _rotation(report, process, model, oracle.draw(4, seed), seed)
    report.raise_if_failed()
    for sampler in (DDPM(), DPMSolver()) if samplers is None else samplers:
        inner = check_sampler(sampler, Diffusion({process.name: process}), oracle, seed=seed)
        report.measurements += inner.measurements
    return report


def _compare(report: Report, name: str, x: Tensor, y: Tensor) -> None:
    """Three tests of equal distribution: each number, all second moments, and everything together."""
    scale = y.std(0).clamp_min(1e-6) + 1e-3 * y.abs().mean(0)
    x, y = (x - y.mean(0)) / scale, (y - y.mean(0)) / scale
    report.add(f"{name}: gap of distribution functions", largest_gap(x, y), gap_limit(len(x), len(y), x.shape[1]))
    report.add(f"{name}: moments, in deviations of chance", moment_test(x, y), 6.0)
    report.add(f"{name}: energy distance, in deviations of chance", energy_test(x[:600], y[:600]), 9.0)


def _at(value: float, batch: AtomBatch) -> Tensor:
    return torch.full((batch.n_systems,), value)


def _marginals(report: Report, process: Process, model: FieldModel, x0: AtomBatch, times: Sequence[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed + 1)
    name, clean = process.name, x0.data[process.name]
    for t in times:
        noisy = process.noise(x0, _at(t, x0), Streams.single(seed))
        reference = model.features(model.noisy(process, clean, _at(t, x0), generator))
        _compare(report, f"noise at t = {t}", model.features(noisy), reference)
    for s, t in pairwise(times) if process.stochastic else ():
        early = process.noise(x0, _at(s, x0), Streams.single(seed))
        late = process.renoise(x0.replace(**{name: early}), _at(s, x0), _at(t, x0), Streams.single(seed + 2))
        reference = model.features(model.noisy(process, clean, _at(t, x0), generator))
        _compare(report, f"renoise from {s} to {t}", model.features(late), reference)


def _prior(report: Report, process: Process, model: FieldModel, x0: AtomBatch, seed: int) -> None:
    """A schedule need not end in pure noise: up to two classes in a hundred may have survived to t = 1."""
    drawn = model.features(process.prior(x0, Streams.single(seed)))
    noisy = model.features(process.noise(x0, _at(1.0, x0), Streams.single(seed + 1)))
    scale = noisy.std(0).clamp_min(1e-6) + 1e-3 * noisy.abs().mean(0)
    report.add("prior: gap to noise at t = 1", largest_gap(drawn, noisy), gap_limit(len(drawn), len(noisy), 1) + 0.02)
    if process.continuous:
        energy = energy_test(drawn[:600] / scale, noisy[:600] / scale)
        report.add("prior: energy distance, in deviations of chance", energy, 9.0)


def _steps(report: Report, process: Process, model: FieldModel, x0: AtomBatch, times: Sequence[float], seed: int) -> None:
    """With the clean value known a step is exact however long it is."""
    generator = torch.Generator().manual_seed(seed + 3)
    name, clean = process.name, x0.data[process.name]
    near = 0.9 * times[1]  # a short step tells a deviation from a variance, which a long one does not
    for s, t, eta in ((near, times[1], 1.0), (times[0], times[-1], 0.5), (times[1], times[-1], 0.0)):
        late = x0.replace(**{name: process.noise(x0, _at(t, x0), Streams.single(seed + 4))})
        known = model.certain(process, clean, late.data[name], _at(t, x0), generator)
        early = process.step(late, known, _at(t, x0), _at(s, x0), Streams.single(seed + 5), eta)
        reference = model.features(model.noisy(process, clean, _at(s, x0), generator))
        _compare(report, f"step from {t} to {s} at eta {eta}", model.features(early), reference)
    if not process.reversible:
        return
    s, t = near, times[1]
    late = x0.replace(**{name: process.noise(x0, _at(t, x0), Streams.single(seed + 6))})
    known = model.certain(process, clean, late.data[name], _at(t, x0), generator)
    early = process.step(late, known, _at(t, x0), _at(s, x0), Streams.single(seed + 7), 1.0)
    start = x0.replace(**{name: process.noise(x0, _at(s, x0), Streams.single(seed + 8))})
    forth = process.renoise(start, _at(s, x0), _at(t, x0), Streams.single(seed + 9))
    backward = torch.cat([model.features(early), model.features(late.data[name])], -1)
    forward = torch.cat([model.features(start.data[name]), model.features(forth)], -1)
    _compare(report, f"ancestral step from {t} to {s} as the reverse of noising", backward, forward)


def _averages(
    report: Report,
    process: Process,
    model: FieldModel,
    oracle: MixtureOracle,
    times: Sequence[float],
    n_draws: int,
    seed: int,
) -> None:
    """With the exact, uncertain prediction each class alone is distributed as noise at s, however long the step."""
    x0, name = oracle.draw(n_draws, seed + 5), process.name
    denoiser = oracle.denoiser(Diffusion({name: process}))
    for s, t in ((times[0], times[1]), (times[1], times[-1])):
        late = x0.replace(**{name: process.noise(x0, _at(t, x0), Streams.single(seed))})
        exact = denoiser(late, _at(t, x0)).data[name]
        early = model.features(process.step(late, exact, _at(t, x0), _at(s, x0), Streams.single(seed + 1), 1.0))
        noisy = model.features(process.noise(x0, _at(s, x0), Streams.single(seed + 2)))
        limit = gap_limit(len(early), len(noisy), early.shape[1])
        report.add(f"step from {t} to {s} with the exact posterior: gap", largest_gap(early, noisy), limit)


def _eta(report: Report, process: Process, model: FieldModel, x0: AtomBatch, times: Sequence[float], seed: int) -> None:
    if not process.continuous or not process.stochastic:
        return
    name, n = process.name, x0.n_systems
    s, t = _at(times[0] / 4, x0), _at(times[-1], x0)  # late, where features that are not linear are so over the noise
    late = x0.replace(**{name: process.noise(x0[:1], t[:1], Streams.single(seed))[torch.zeros(n, dtype=torch.int64)]})
    known = model.certain(process, x0.data[name], late.data[name], t)
    spread = []
    for eta in (0.0, 0.5, 1.0):
        moved = model.features(process.step(late, known, t, s, Streams.single(seed + 1), eta))
        spread.append(float(moved.std(0).square().mean().sqrt()))
    report.add("noise injected at eta 0, over that at eta 1", spread[0] / spread[2], 1e-4)
    report.add("error of noise injected at eta 1/2, over that at eta 1", abs(spread[1] / spread[2] - 0.5), 0.02)


def _loss(report: Report, process: Process, oracle: MixtureOracle, model: FieldModel, times: Sequence[float], seed: int) -> None:
    """Along any direction the mean loss is flat and convex at the exact prediction."""
    x0 = oracle.draw(3000, seed + 2)
    denoiser = oracle.denoiser(Diffusion({process.name: process}))
    generator = torch.Generator().manual_seed(seed + 4)
    worst, bend = 0.0, float("inf")
    for time in times:
        t = _at(time, x0)
        xt = x0.replace(**{process.name: process.noise(x0, t, Streams.single(seed + 3))})
        exact = denoiser(xt, t).data[process.name]
        for direction, size in _directions(process, exact, xt, generator):
            up, here, down = (process.loss(exact + k * size * direction, x0, xt, t) for k in (1, 0, -1))
            slope, curve = up - down, up + down - 2 * here
            deviation = float(slope.std()) / len(slope) ** 0.5
            if deviation > 1e-9:
                worst = max(worst, float(slope.mean().abs()) / deviation)
            bend = min(bend, float(curve.mean()))
    report.add("slope of the loss at the exact prediction, in deviations of chance", worst, 5.5)
    report.add("negative curvature of the loss", -bend, 1e-6)


def _directions(process: Process, exact: Tensor, xt: AtomBatch, generator: torch.Generator) -> list[tuple[Tensor, float]]:
    """Ways to change a prediction, functions of x_t, each with a size that is small for it."""
    shift = torch.randn(exact[:1].shape, generator=generator).expand_as(exact)
    if not process.continuous:
        likely = (exact - exact.amax(-1, keepdim=True)).clamp_min(-4)
        return [(shift, 0.1), (likely, 0.1)]
    directions = [shift, exact]
    if xt.data[process.name].shape == exact.shape:
        directions.append(xt.data[process.name] - exact)
    rms = [float(x.square().mean().sqrt()) for x in directions]
    return [(x, 0.1 * rms[1] / r) for x, r in zip(directions, rms, strict=True)]


def _form(report: Report, process: Process, model: FieldModel, x0: AtomBatch, times: Sequence[float], seed: int) -> None:
    """Padding, zero mean, symmetry, and the clean value read from a certain prediction."""
    name, t, s = process.name, _at(times[-1], x0), _at(times[0], x0)
    junk = torch.Generator().manual_seed(seed)
    noisy = x0.replace(**{name: process.noise(x0, t, Streams.single(seed))})
    known = model.certain(process, x0.data[name], noisy.data[name], t)
    # a prediction may say anything on padding and, for positions, about the centre of mass
    rough = known + 3 * torch.randn(known[:, :1].shape, generator=junk) if process.continuous else known
    if field(name).scope == "pair":
        rough = known
    results = {
        "prior": process.prior(x0, Streams.single(seed)),
        "noise": noisy.data[name],
        "step": process.step(noisy, rough, t, s, Streams.single(seed), 1.0),
    }
    if process.stochastic:
        early = x0.replace(**{name: process.noise(x0, s, Streams.single(0))})
        results["renoise"] = process.renoise(early, s, t, Streams.single(1))
    for verb, value in results.items():
        real = x0.scope_mask(name)
        real = real.reshape(*real.shape, *[1] * (value.dim() - real.dim()))
        report.require(f"{verb} leaves padding empty", bool((torch.where(real, 0.0, value.float()) == 0).all()))
        report.require(f"{verb} is finite", bool(value.isfinite().all()))
        if getattr(process, "zero_mean", False):
            report.add(f"{verb}: centre of mass", float(value.mean(1).abs().max() / value.abs().max()), 1e-5)
        if field(name).scope == "pair":
            report.require(f"{verb} is symmetric", bool((value == value.transpose(1, 2)).all()))
    gap = model.features(process.finish(known, noisy)) - model.features(x0.data[name])
    report.add("finish of a certain prediction", float(gap.abs().max()), 1e-4)


def _batch(report: Report, process: Process, model: FieldModel, x0: AtomBatch, seed: int) -> None:
    """System 1 of a batch, and the same system alone and without padding, must get the same draws."""
    name = process.name
    one = x0[1:2].to_list()[0]

    def run(batch: AtomBatch, index: Sequence[int]) -> list[Tensor]:
        rng = Streams.of(seed, index)
        s, t = _at(0.3, batch), _at(0.7, batch)
        first = batch.replace(**{name: process.prior(batch, rng)})
        noisy = batch.replace(**{name: process.noise(batch, s, rng)})
        later = batch.replace(**{name: process.renoise(noisy, s, t, rng) if process.stochastic else process.noise(batch, t, rng)})
        known = model.certain(process, batch.data[name], later.data[name], t)
        back = process.step(later, known, t, s, rng, 1.0)
        return [model.features(x) for x in (first.data[name], later.data[name], back)]

    together, alone = run(x0, [4, 5, 6]), run(one, [5])
    worst = max(float((a[1] - b[0]).abs().max() / b.abs().max()) for a, b in zip(together, alone, strict=True))
    report.add("difference of draws alone and in a batch", worst, 1e-5)


class _Rotated(Streams):
    """Streams whose normal vectors are rotated: how a rotated world would draw."""

    def __init__(self, rng: Streams, rotation: Tensor) -> None:
        super().__init__(rng.each if rng.shared is None else rng.shared)
        self.rotation = rotation

    def normal(self, batch: AtomBatch, name: str, tail: tuple[int, ...] | None = None) -> Tensor:
        return super().normal(batch, name, tail) @ self.rotation.T


def _rotation(report: Report, process: Process, model: FieldModel, x0: AtomBatch, seed: int) -> None:
    name, s, t = process.name, _at(0.3, x0), _at(0.7, x0)
    rotation = random_rotations(1, torch.Generator().manual_seed(seed))[0]

    def turn(batch: AtomBatch) -> AtomBatch:
        return batch.replace(**{name: batch.data[name] @ rotation.T})

    def run(batch: AtomBatch, rng: Streams) -> Tensor:
        noisy = batch.replace(**{name: process.noise(batch, t, rng)})
        known = model.certain(process, batch.data[name], noisy.data[name], t)
        return process.step(noisy, known, t, s, rng, 1.0)

    turned = run(turn(x0), _Rotated(Streams.single(seed), rotation))
    expected = run(x0, Streams.single(seed)) @ rotation.T
    error = (turned - expected).abs().max() / expected.abs().max()
    report.add("error of rotating before against after", float(error), 1e-5)
