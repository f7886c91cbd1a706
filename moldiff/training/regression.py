"""Training of a regressor: the same run as a denoiser's, with another loss, on clean and on noised systems."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from moldiff.config import Config
from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams
from moldiff.core.vocabulary import Vocabulary
from moldiff.data.batches import BucketBatches
from moldiff.denoisers.regressor import Regressor
from moldiff.training.conditions import standardised
from moldiff.training.module import DiffusionModule

#: Held-out systems on which a regressor is measured, at most.
N_HELD_OUT = 2000
#: The curve's column of the mean error of the systems without noise.
CLEAN = "without_noise"


class RegressionModule(DiffusionModule):
    """Noise some of a batch, predict, descend on the absolute error in standard deviations.

    Batches carry the standardised targets where those of a denoiser carry conditions; an unknown one (NaN) counts nothing.
    ``options.clean_share`` of the systems are without noise, the others at times as a denoiser's.
    """

    denoiser: Any
    targets: tuple[str, ...] = ()

    def losses(self, x0: AtomBatch, rng: Streams, index: Tensor | None = None) -> dict[str, Tensor]:
        """Absolute errors by target, [S] each, 0 where the target is unknown."""
        t = rng.times(x0.n_systems, x0.device).pow(self.options.time_power).clamp(1e-4, 1.0)
        noised = self.denoiser.diffusion.noise(x0, t, rng)
        coins = torch.rand(x0.n_systems, generator=rng.shared)
        clean = (coins < self.options.clean_share).to(x0.device)
        t = torch.where(clean, torch.zeros_like(t), t)
        mixed = {}
        for name in self.denoiser.diffusion.processes:
            keep = clean.reshape(-1, *[1] * (x0.data[name].dim() - 1))
            mixed[name] = torch.where(keep, x0.data[name], noised.data[name])
        found = self.denoiser(x0.replace(**mixed), t)
        known = ~x0.conditions.isnan()
        error = (found - torch.where(known, x0.conditions, 0.0)).abs() * known
        losses = {name: error[:, k] for k, name in enumerate(self.targets)}
        return losses | ({CLEAN: error.mean(1)[clean]} if bool(clean.any()) else {})

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The sum over targets, averaged over the batch."""
        return torch.stack([value for name, value in losses.items() if name != CLEAN]).sum(0).mean()


def mean_errors(
    regressor: Regressor, batches: BucketBatches, config: Config, n_steps: int | None = None, t: float = 0.0
) -> dict[str, float]:
    """The mean absolute error of each target in its unit, on clean systems, or on noised ones of one time."""
    device = next(regressor.parameters()).device
    total, known = torch.zeros(len(config.targets), dtype=torch.float64), torch.zeros(len(config.targets), dtype=torch.float64)
    for step in range(batches.per_epoch if n_steps is None else min(n_steps, batches.per_epoch)):
        batch = batches.batch(step).to(device)
        times = torch.full((batch.n_systems,), t, device=device)
        seen = regressor.diffusion.noise(batch, times, Streams.single(step)) if t > 0 else batch
        with torch.no_grad():
            error = (regressor(seen, times) - batch.conditions).abs().double().cpu()
        total += error.nan_to_num().sum(0)
        known += (~error.isnan()).sum(0)
    errors = (total / known.clamp_min(1)).tolist()
    return {name: errors[k] * config.condition_stats[name].std for k, name in enumerate(config.targets)}


def monitor_regressor(config: Config, columns: Mapping[str, Tensor]) -> Callable[[Any], dict[str, float]]:
    """A function of a regressor: its errors on held-out systems without noise, in the targets' units."""
    from moldiff.data.store import select
    from moldiff.training.data import part_of

    n = len(columns["n_atoms"])
    if n > N_HELD_OUT:
        columns = select(columns, part_of(n, (0.0, N_HELD_OUT / n)))
    batches = BucketBatches(
        columns, Vocabulary(config.vocabulary), 128, conditions=standardised(config, columns), fields=tuple(config.fields)
    )

    def measure(regressor: Any) -> dict[str, float]:
        was_training = regressor.training
        regressor.eval()
        found = mean_errors(regressor, batches, config)
        regressor.train(was_training)
        return {f"{name}_mae": float(f"{value:.5g}") for name, value in found.items()}

    return measure
