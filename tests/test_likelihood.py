"""Likelihood where the exact density is known: normal positions, independent classes."""

from __future__ import annotations

import math

import pytest
import torch

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.diffusion.categorical import Categorical
from moldiff.diffusion.gaussian import Gaussian
from moldiff.diffusion.joint import Diffusion
from moldiff.diffusion.onehot import OneHot
from moldiff.diffusion.schedules import Cosine, VarianceExploding
from moldiff.errors import BadRequest
from moldiff.sampling.likelihood import FIRST, flow_likelihood, variational_bound

N, SYSTEMS, STD = 5, 4, 0.8


class NormalOracle:
    """The exact denoiser of positions that are normal with deviation STD around zero, at zero centre of mass."""

    def __init__(self, process):
        self.process = process

    def __call__(self, xt, t, previous=None):
        a = self.process.schedule.alpha(t)[:, None, None]
        s = self.process.scale * self.process.schedule.sigma(t)[:, None, None]
        return AtomBatch(xt.mask, {"positions": a * STD**2 / (a**2 * STD**2 + s**2) * xt.positions})


def systems() -> AtomBatch:
    x = STD * torch.randn(SYSTEMS, N, 3, generator=torch.Generator().manual_seed(3))
    return AtomBatch(torch.ones(SYSTEMS, N, dtype=torch.bool), {"positions": x - x.mean(1, keepdim=True)})


def exact(batch: AtomBatch, variance: float) -> torch.Tensor:
    d = 3 * (N - 1)
    return -0.5 * batch.positions.square().flatten(1).sum(1) / variance - 0.5 * d * math.log(2 * math.pi * variance)


@pytest.mark.parametrize(("schedule", "scale"), [(VarianceExploding(), 1.4), (Cosine(), 1.0)])
def test_the_flow_gives_the_density_of_a_normal(schedule, scale):
    process = Gaussian("positions", schedule, scale=scale, zero_mean=True)
    batch = systems()
    found = flow_likelihood(NormalOracle(process), Diffusion({"positions": process}), batch, Streams.single(0), n_steps=48)
    blur = float(schedule.ratio(torch.tensor(FIRST))) * scale
    assert torch.allclose(found, exact(batch, STD**2 + blur**2), atol=0.25), (found, exact(batch, STD**2 + blur**2))


def test_the_bound_is_tight_for_an_exact_denoiser():
    process = Gaussian("positions", VarianceExploding(), scale=1.4, zero_mean=True)
    batch, diffusion = systems(), Diffusion({"positions": process})
    oracle = NormalOracle(process)
    drawn = torch.stack([
        variational_bound(oracle, diffusion, batch, Streams.single(k), 32, self_conditioning=False).total for k in range(50)
    ])  # fmt: skip
    error = drawn.mean(0) - exact(batch, STD**2)
    assert (error.abs() < 4 * drawn.std(0) / math.sqrt(50) + 0.1).all(), error


def test_the_shares_of_the_atoms_add_up():
    process = Gaussian("positions", VarianceExploding(), scale=1.4, zero_mean=True)
    bound = variational_bound(NormalOracle(process), Diffusion({"positions": process}), systems(), Streams.single(0), 4)
    assert torch.allclose(bound.atoms.sum(1), bound.total, atol=1e-3)


@pytest.mark.parametrize("prior", ["uniform", "absorbing"])
def test_the_bound_of_independent_classes_is_their_probability(prior):
    """With the exact posterior of independent classes the reverse steps are exact, and so is the bound."""
    probabilities = torch.tensor([0.7, 0.2, 0.1])
    schedule = VarianceExploding()
    process = Categorical("atom_types", schedule, 3, prior_kind=prior)

    class Oracle:
        def __call__(self, xt, t, previous=None):
            keep = schedule.keep(t)[:, None, None]
            base = torch.full((3,), 1 / 3) if prior == "uniform" else torch.zeros(3)
            seen = torch.nn.functional.one_hot(xt.atom_types, 4)[..., :3].float()
            masked = (xt.atom_types == 3)[..., None]
            likelihood = keep * seen + (1 - keep) * (base * seen).sum(-1, keepdim=True)
            likelihood = torch.where(masked, torch.ones_like(likelihood), likelihood)
            return AtomBatch(xt.mask, {"atom_types": (probabilities * likelihood).clamp_min(1e-30).log()})

    types = torch.tensor([[0, 0, 1, 0, 2], [1, 2, 0, 0, 0]])
    batch = AtomBatch(torch.ones(2, 5, dtype=torch.bool), {"atom_types": types})
    diffusion = Diffusion({"atom_types": process})
    drawn = torch.stack([
        variational_bound(Oracle(), diffusion, batch, Streams.single(k), 24, self_conditioning=False).total for k in range(50)
    ])  # fmt: skip
    wanted = probabilities.log()[types].sum(1)
    slack = 4 * drawn.std(0) / math.sqrt(50) + 0.25  # what is lost to steps of finite length and to the prior's nearness
    assert (drawn.mean(0) < wanted + slack).all() and (drawn.mean(0) > wanted - slack).all(), (drawn.mean(0), wanted)


def test_a_process_without_a_known_likelihood_is_refused():
    diffusion = Diffusion({"atom_types": OneHot("atom_types", Cosine(), 3)})
    with pytest.raises(BadRequest, match="OneHot"):
        variational_bound(None, diffusion, systems(), Streams.single(0))
