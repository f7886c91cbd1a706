"""check_sampler: with an exact denoiser a sampler must reproduce the data's distribution."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.categorical import Categorical
from moldiff.diffusion.gaussian import Gaussian
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.schedules import VarianceExploding
from moldiff.sampling.grids import make_grid
from moldiff.sampling.loop import Memory, Sampler, sample
from moldiff.testing.defaults import default_oracle
from moldiff.testing.oracles import ClassField, MixtureOracle
from moldiff.testing.report import Report
from moldiff.testing.statistics import (
    energy_test,
    gap_limit,
    largest_gap,
    total_variation,
    total_variation_limit,
)


def default_diffusion() -> Diffusion:
    """Positions, types and bonds as the flagship diffuses them."""
    schedule = VarianceExploding()
    return Diffusion(
        {
            "positions": Gaussian("positions", schedule, zero_mean=True, scale=1.4),
            "atom_types": Categorical("atom_types", schedule, 3),
            "bond_types": Categorical("bond_types", schedule, 3),
        }
    )


def check_sampler(
    sampler: Sampler,
    diffusion: Diffusion | None = None,
    oracle: MixtureOracle | None = None,
    *,
    n_samples: int = 1200,
    n_calls: int = 120,
    grid: str = "karras",
    bias: float = 0.0,
    seed: int = 0,
) -> Report:
    """Check a sampler with the exact denoiser of known data; raises ``CheckFailed`` naming what is out of bounds.

    Compares ``n_samples`` samples of ``n_calls`` network calls with fresh data by energy distance, by the largest
    Kolmogorov-Smirnov gap of any number and by the total variation of every class; limits come from the sampling noise,
    ``bias`` is added to the two last for a sampler of known discretisation error. Also checks that samples do not depend on
    their batch, that calls are counted, that padding stays empty, and that a deterministic sampler has its ``order``.
    """
    diffusion = diffusion or default_diffusion()
    oracle = oracle or default_oracle(diffusion)
    report = Report(f"{type(sampler).__name__} on {', '.join(diffusion.processes)}")
    denoiser = oracle.denoiser(diffusion)
    times = make_grid(grid, n_calls, diffusion.schedule, sampler.calls_per_step)
    _distribution(report, sampler, diffusion, oracle, denoiser, times, n_samples, bias, seed)
    _streams(report, sampler, diffusion, oracle, denoiser, times[:: max(1, len(times) // 8)])
    _calls(report, sampler, diffusion, oracle, denoiser, times[:5])
    if diffusion.continuous:
        _order(report, sampler, diffusion, oracle, seed)
    return report.raise_if_failed()


def _distribution(
    report: Report,
    sampler: Sampler,
    diffusion: Diffusion,
    oracle: MixtureOracle,
    denoiser: Denoiser,
    times: Tensor,
    n: int,
    bias: float,
    seed: int,
) -> None:
    drawn = sample(denoiser, diffusion, oracle.like(n), Streams.single(seed), sampler, times)
    real = oracle.draw(n, seed + 1)
    x, y = oracle.features(drawn), oracle.features(real)
    report.require("all numbers finite", bool(x.isfinite().all()))
    report.require("padding empty", all(bool((v == w).all()) for v, w in _padding(drawn)))
    scale = y.std(0).clamp_min(0.1)
    report.add("energy distance, in deviations of chance", energy_test(x / scale, y / scale, seed), 8.0)
    columns = [f.features(drawn.data[k]) for k, f in oracle.fields.items() if not isinstance(f, ClassField)]
    others = [f.features(real.data[k]) for k, f in oracle.fields.items() if not isinstance(f, ClassField)]
    if columns:
        a, b = torch.cat(columns, -1), torch.cat(others, -1)
        report.add("largest gap of distribution functions", largest_gap(a, b), gap_limit(n, n, a.shape[1]) + bias)
    for name, model in oracle.fields.items():
        if isinstance(model, ClassField):
            expected = model.marginal(oracle.weights)
            found = model.entries(drawn.data[name])
            distance = [total_variation(found[:, e], expected[e]) for e in range(model.n_entries)]
            limit = max(total_variation_limit(p, n) for p in expected)
            report.add(f"total variation of {name}", max(distance), limit + bias)


def _padding(batch: AtomBatch) -> list[tuple[Tensor, Tensor]]:
    """Each field as it is and as it is with padding emptied."""
    clean = batch.masked()
    return [(batch.data[k], clean.data[k]) for k in batch]


def _streams(
    report: Report, sampler: Sampler, diffusion: Diffusion, oracle: MixtureOracle, denoiser: Denoiser, times: Tensor
) -> None:
    together = sample(denoiser, diffusion, oracle.like(3), Streams.of(5, [7, 8, 9]), sampler, times)
    alone = sample(denoiser, diffusion, oracle.like(1), Streams.of(5, [8]), sampler, times)
    worst = (oracle.features(together)[1] - oracle.features(alone)[0]).abs().max()
    report.add("difference of a sample made alone and in a batch", float(worst), 1e-3)


def _calls(
    report: Report, sampler: Sampler, diffusion: Diffusion, oracle: MixtureOracle, denoiser: Denoiser, times: Tensor
) -> None:
    model, rng = Memory(denoiser), Streams.single(0)
    sampler.start(len(times) - 1)
    xt = diffusion.prior(oracle.like(2), rng)
    for t, s in pairwise(times):
        xt = sampler.step(model, diffusion, xt, t.expand(2), s.expand(2), rng)
    expected = sampler.calls_per_step * (len(times) - 1)
    report.require(f"{expected} network calls (found {model.calls})", model.calls == expected)


def _order(report: Report, sampler: Sampler, diffusion: Diffusion, oracle: MixtureOracle, seed: int) -> None:
    """Halve the steps of a deterministic sampler: the error of the first continuous field must fall by 2^order."""
    name = diffusion.continuous[0]
    alone = Diffusion({name: diffusion.processes[name]})
    model = MixtureOracle(oracle.weights, oracle.n_atoms, {name: oracle.fields[name]}, oracle.padding)
    exact, x0 = model.denoiser(alone), model.draw(32, seed)
    high, low = (math.log(x) for x in model.fields[name].span)  # where structure is decided, and is not yet
    first = alone.schedule.time_of_ratio(torch.full((32,), high).exp())
    start = alone.noise(x0, first, Streams.single(seed))

    def run(n_steps: int, seed: int) -> Tensor:
        times = alone.schedule.time_of_ratio(torch.linspace(high, low, n_steps + 1).exp())
        memory, rng, xt = Memory(exact), Streams.single(seed), start
        sampler.start(n_steps)
        for t, s in pairwise(times):
            xt = sampler.step(memory, alone, xt, t.expand(32), s.expand(32), rng)
        return model.fields[name].features(xt.data[name])

    if not torch.equal(run(4, 1), run(4, 2)):
        return  # noise is injected: there is no path whose error could be measured
    fine = run(160, 1)
    coarse, half = (float((run(k, 1) - fine).square().mean().sqrt()) for k in (16, 32))
    falls = math.log2(max(coarse, 1e-12) / max(half, 1e-12))
    report.add(f"shortfall from order {sampler.order}", sampler.order - falls, 0.5)
