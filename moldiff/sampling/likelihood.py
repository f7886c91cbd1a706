"""Likelihood of clean systems under a diffusion model: the variational bound, and the flow of the continuous part.

All values are in nats and per system. A continuous field's density is in its own unit (Å for positions), over the subspace in
which it lives: 3 (N - 1) dimensions for positions at zero centre of mass. The position of the centre, and that atoms of one kind
can be exchanged, are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from moldiff.core.batch import AtomBatch
from moldiff.core.fields import field
from moldiff.core.geometry import center
from moldiff.core.rng import Streams
from moldiff.denoisers.base import Denoiser
from moldiff.diffusion.categorical import Categorical
from moldiff.diffusion.gaussian import Gaussian
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.process import Process
from moldiff.errors import BadRequest

#: The time nearest to data at which anything is asked: noise of 0.04 Å in qm9, about what a geometry is known to.
FIRST = 0.05
#: Each step of the bound is a part of its stratum, this many times shorter: nearly that of continuous time.
FINE = 64


def check_processes(diffusion: Diffusion) -> None:
    """Raise ``BadRequest`` for processes whose likelihood is not written down here."""
    for name, process in diffusion.processes.items():
        if type(process) is not Gaussian and not isinstance(process, Categorical):
            kind = type(process).__name__
            raise BadRequest(f"the likelihood is known for gaussian and categorical processes, not for {kind} ({name})")


def dimensions(process: Process, batch: AtomBatch) -> Tensor:
    """Number of free dimensions of a Gaussian field of each system, [S]."""
    width = batch.data[process.name].shape[-1]
    return (batch.n_atoms - (1 if process.free_origin else 0)).float() * width


def squared(value: Tensor) -> Tensor:
    """Sum of squares of each system: [S, ...] -> [S]."""
    return value.square().flatten(1).sum(1)


@dataclass(frozen=True)
class Bound:
    """A lower bound of log p: ``fields`` maps each field to its terms [S], ``atoms`` [S, N] shares them out among the atoms.

    What belongs to a pair is halved between its atoms; terms of a whole system (entropy, prior) are shared out evenly.
    """

    fields: dict[str, Tensor]
    atoms: Tensor

    @property
    def total(self) -> Tensor:
        """The bound of the system, [S]."""
        return torch.stack(list(self.fields.values())).sum(0)


@torch.no_grad()
def variational_bound(
    denoiser: Denoiser,
    diffusion: Diffusion,
    x0: AtomBatch,
    rng: Streams,
    n_times: int = 16,
    first: float = FIRST,
    self_conditioning: bool = True,
) -> Bound:
    """The variational bound of clean encoded systems, field by field (Ho et al. 2020; Austin et al. 2021; Kingma et al. 2021).

    It has a term of reconstruction at time ``first``, steps of diffusion, of which one is drawn in each of ``n_times`` equal
    parts of the time (so it is an unbiased estimate, and the same for the same draws), and the distance from the prior. Classes
    are judged by their posterior step, whatever rule samples are made by. Raises ``BadRequest`` for other processes than Gaussian
    and categorical ones.
    """
    check_processes(diffusion)
    total = {name: torch.zeros(x0.n_systems, device=x0.device) for name in diffusion.processes}
    atoms = torch.zeros_like(x0.mask, dtype=torch.float32)

    def add(name: str, entries: Tensor) -> None:
        nonlocal atoms
        scope = field(name).scope
        share = entries.sum(2) / 2 if scope == "pair" else entries  # both halves of the matrix hold the pair
        total[name] = total[name] + share.sum(1)
        atoms = atoms + share

    def ask(xt: AtomBatch, t: Tensor) -> AtomBatch:
        prediction = denoiser(xt, t, None)
        return denoiser(xt, t, prediction) if self_conditioning else prediction

    start = torch.full((x0.n_systems,), first, device=x0.device)
    xt = diffusion.noise(x0, start, rng)
    prediction = ask(xt, start)
    even = x0.mask / x0.n_atoms[:, None]
    for name, process in diffusion.processes.items():
        if isinstance(process, Gaussian):
            # under a flat prior x_0 given x_t is normal with the spread of the noise
            spread = process.scale * process.schedule.ratio(start)
            entropy = 0.5 * dimensions(process, x0) * (2 * math.pi * math.e * spread.square()).log()
            add(name, -entropy[:, None] * even)
        elif isinstance(process, Categorical):
            logs = prediction.data[name].float().log_softmax(-1).gather(-1, x0.data[name][..., None]).squeeze(-1)
            add(name, logs * x0.scope_mask(name))
    for low, high in pairwise(torch.linspace(first, 1.0, n_times + 1).tolist()):
        step = (high - low) / FINE
        t = low + step + (high - low - step) * rng.times(x0.n_systems, x0.device)
        xt = diffusion.noise(x0, t, rng)
        prediction = ask(xt, t)
        for name, process in diffusion.processes.items():
            add(name, -FINE * divergence(process, prediction.data[name], x0, xt, t, t - step))
    end = torch.ones_like(start)
    for name, process in diffusion.processes.items():
        if isinstance(process, Gaussian):
            far = process.clean(x0) / (process.scale * process.schedule.ratio(end))[:, None, None]
            add(name, -0.5 * far.square().sum(-1))
    return Bound(total, atoms)


def divergence(process: Process, prediction: Tensor, x0: AtomBatch, xt: AtomBatch, t: Tensor, s: Tensor) -> Tensor:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of each entry of a field: [S, N] for atoms, [S, N, N] for pairs."""
    if isinstance(process, Gaussian):
        gap = 1 / process.schedule.ratio(s).square() - 1 / process.schedule.ratio(t).square()
        error = (process.inside(prediction, x0) - process.clean(x0)) / process.scale
        return 0.5 * gap[:, None] * error.square().sum(-1)
    assert isinstance(process, Categorical)
    value, clean = xt.data[process.name], x0.data[process.name]
    sure = torch.nn.functional.one_hot(clean, process.n_classes).float()
    true = process.posterior(value, sure, t, s)
    model = process.posterior(value, prediction.float().softmax(-1), t, s)
    true, model = (p / p.sum(-1, keepdim=True).clamp_min(1e-30) for p in (true, model))
    entries = (true * (true.clamp_min(1e-30).log() - model.clamp_min(1e-30).log())).sum(-1)
    return entries * x0.scope_mask(process.name)


def flow_likelihood(
    denoiser: Denoiser,
    diffusion: Diffusion,
    x0: AtomBatch,
    rng: Streams,
    name: str = "positions",
    n_steps: int = 32,
    n_probes: int = 1,
    first: float = FIRST,
) -> Tensor:
    """log density [S] of one Gaussian field, the others given as they are, by the probability-flow ODE (Song et al. 2021).

    With y = x_t / alpha and r = sigma / alpha the ODE is dy / dr = (y - D(y)) / r, D the clean prediction. Heun's method goes
    from time ``first`` to 1 in ``n_steps`` steps of equal length in ln r (two calls and their derivatives each); the trace of D's
    derivative is estimated by ``n_probes`` vectors from a sphere of its subspace (Hutchinson 1990). It is the density of
    structures that carry the noise of time ``first``. Raises ``BadRequest`` for a field whose process is not Gaussian.
    """
    process = diffusion.processes.get(name)
    if type(process) is not Gaussian:
        raise BadRequest(f"the flow of {name!r} is not written down: its process is not gaussian")
    ones = torch.ones(x0.n_systems, device=x0.device)
    ends = process.schedule.ratio(torch.tensor([first, 1.0], dtype=torch.float64)).log()
    ratios = torch.linspace(float(ends[0]), float(ends[1]), n_steps + 1, dtype=torch.float64).exp()
    times = process.schedule.time_of_ratio(ratios).tolist()
    y = process.clean(x0)
    size = dimensions(process, x0)
    # on a sphere, where the trace of a multiple of the identity has no variance
    probes = [v * (size / squared(v)).sqrt()[:, None, None] for v in (process.draw(x0, rng) for _ in range(n_probes))]

    def ask(y: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """D(y) and the trace of its derivative."""
        t = time * ones
        alpha = process.schedule.alpha(t)[:, None, None]
        with torch.enable_grad():
            point = y.detach().requires_grad_()
            xt = x0.replace(**{name: alpha * point})
            clean = process.inside(denoiser(xt, t, None).data[name], x0)
            trace = torch.zeros_like(ones)
            for k, probe in enumerate(probes):
                (back,) = torch.autograd.grad((clean * probe).sum(), point, retain_graph=k + 1 < n_probes)
                trace = trace + (back * probe).flatten(1).sum(1) / n_probes
        return clean.detach(), trace

    lost = torch.zeros_like(ones)
    for k in range(n_steps):
        low, high = ratios[k : k + 2].tolist()
        clean, trace = ask(y, times[k])
        slope = (y - clean) / low
        clean, trace2 = ask(y + (high - low) * slope, times[k + 1])
        slope2 = (y + (high - low) * slope - clean) / high
        y = y + (high - low) * (slope + slope2) / 2
        lost = lost + math.log(high / low) * (trace + trace2) / 2
    far = process.scale * ratios[-1].float()
    prior = -0.5 * (y / far).square().flatten(1).sum(1) - 0.5 * size * (2 * math.pi * far.square()).log()
    growth = size * float(ends[1] - ends[0]) - lost  # log of the volume that the flow spreads a unit of volume over
    # y = x / alpha at the time at which the density is asked
    return prior + growth - size * process.schedule.alpha(first * ones).log()


@torch.no_grad()
def shown_clean(denoiser: Denoiser, diffusion: Diffusion, x0: AtomBatch, ratio: float) -> AtomBatch:
    """The prediction for systems that are shown as they are, as if they had a little noise (``ratio`` of noise over signal)."""
    process = diffusion.processes["positions"]
    t = process.schedule.time_of_ratio(torch.full((x0.n_systems,), ratio, device=x0.device))
    xt = x0.replace(positions=center(x0.positions, x0.mask) * process.schedule.alpha(t)[:, None, None])
    return denoiser(xt, t, denoiser(xt, t, None))


def restoring(denoiser: Denoiser, diffusion: Diffusion, x0: AtomBatch, ratio: float) -> Tensor:
    """How far the denoiser would move each atom of systems that it is shown as they are: [S, N] in Å.

    Atoms of sound structures stay where they are, up to the network's own error.
    """
    prediction = shown_clean(denoiser, diffusion, x0, ratio)
    way: Tensor = center(prediction.positions, x0.mask) - center(x0.positions, x0.mask)
    return way.square().sum(-1).sqrt() * x0.mask


def surprise(denoiser: Denoiser, diffusion: Diffusion, x0: AtomBatch, ratio: float) -> Tensor:
    """How little the denoiser believes in each atom's classes and (half) its pairs', shown as they are: [S, N] in nats."""
    prediction = shown_clean(denoiser, diffusion, x0, ratio)
    total = torch.zeros_like(x0.mask, dtype=torch.float32)
    for name in diffusion.categorical:
        logs = prediction.data[name].float().log_softmax(-1).gather(-1, x0.data[name][..., None]).squeeze(-1)
        entries = -logs * x0.scope_mask(name)
        total = total + (entries.sum(2) / 2 if field(name).scope == "pair" else entries)
    return total
