"""The Lightning module: one training step of any denoiser on any diffusion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from moldiff.core.batch import AtomBatch
from moldiff.core.rng import Streams, stream_seed
from moldiff.data.batches import BucketBatches
from moldiff.denoisers.base import Denoiser, NetworkDenoiser
from moldiff.sampling.inpaint import Told
from moldiff.training.ema import EMA
from moldiff.training.given import Shares, random_known
from moldiff.training.symmetry import SymmetricNoise, check_symmetric, noised
from moldiff.training.told import left_out


@dataclass
class TrainOptions:
    """How to train; ``max_steps`` and ``max_minutes`` both end the run and drive the learning rate's fall."""

    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int = 500
    decay_from: float = 0.4
    clip: float = 1.0
    ema: float = 0.999
    self_conditioning: float = 0.5
    condition_dropout: float = 0.12
    condition_dropout_each: float = 0.3
    condition_alone: float = 0.0
    companion_share: float = 0.6
    clean_share: float = 0.5
    given_graph: float = 0.0
    given_places: float = 0.0
    given_parts: float = 0.0
    given_symmetry: float = 0.0
    time_power: float = 1.0
    condition_lr: float = 1.0
    pull: float = 0.0
    max_steps: int | None = None
    max_minutes: float | None = None
    seed: int = 0


def learning_rate(step: int, progress: float, options: TrainOptions) -> float:
    """Warm-up, a plateau, then a cosine from ``decay_from`` of the run to its end; ``progress`` in [0, 1]."""
    warm = min(1.0, (step + 1) / max(1, options.warmup))
    late = max(0.0, (min(progress, 1.0) - options.decay_from) / (1 - options.decay_from))
    return options.lr * warm * (0.5 * (1 + math.cos(math.pi * late)) * 0.99 + 0.01)


#: In the names of the weights of conditions, as ``denoisers.layers.embeddings.TimeEmbedding`` calls them.
_OF_CONDITIONS = ".condition."


class StepData(Dataset[int]):
    """The steps still to do; the batch itself is made in the module, on its rank."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __getitem__(self, k: int) -> int:
        return self.start + k


class DiffusionModule(lightning.LightningModule):
    """Draw a time, noise a batch, denoise it (half of the time with self-conditioning), descend.

    ``done`` counts optimiser steps over all resumes, ``elapsed`` seconds likewise. All randomness of a step comes from
    (seed, step, rank), so nothing but the counter is needed to resume exactly. ``origin`` holds, by name, the weights that the
    parameters had in the model from which training began, those of new conditions missing (``options.pull``, ``condition_lr``).
    ``companions`` bool [K] are the conditions that are drawn beside what people ask for (``training.told``).
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        batches: BucketBatches,
        options: TrainOptions,
        origin: Mapping[str, Tensor] | None = None,
        symmetric: SymmetricNoise | None = None,
        companions: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.origin, self.symmetric, self.companions = origin, symmetric, companions
        if symmetric is not None:
            check_symmetric(denoiser.diffusion)
        self.denoiser, self.batches, self.options = denoiser, batches, options
        self.ema = EMA(denoiser, options.ema)
        self.done, self.elapsed, self.seen = 0, 0.0, 0
        self.recent: dict[str, float] = {}
        self.shares = Shares(options.given_graph, options.given_places, options.given_parts)

    @property
    def progress(self) -> float:
        """Share of the run that is over, by steps or by minutes, whichever is further."""
        o = self.options
        by_step = self.done / o.max_steps if o.max_steps else 0.0
        by_time = self.elapsed / 60 / o.max_minutes if o.max_minutes else 0.0
        return max(by_step, by_time)

    def losses(self, x0: AtomBatch, rng: Streams, index: Tensor | None = None) -> dict[str, Tensor]:
        """Per-field losses of a clean encoded batch, [S] each; ``index`` [S] are its systems' numbers in the data."""
        diffusion, p = self.denoiser.diffusion, self.options.self_conditioning
        t = rng.times(x0.n_systems, x0.device).pow(self.options.time_power).clamp(1e-4, 1.0)
        if self.symmetric is not None and index is not None:
            x0, group = self.symmetric.prepare(x0, index, rng)
            xt = noised(diffusion, x0, t, rng, group)
        else:
            xt = diffusion.noise(x0, t, rng)
        coins = torch.rand(2 + x0.n_systems, generator=rng.shared).tolist()
        if "conditions" in x0:
            drop = torch.tensor(coins[2:])[:, None] < self.options.condition_dropout
            if x0.conditions.shape[1] > 1:
                drop = drop | left_out(x0.conditions, self.options, self.companions, rng.shared)
            xt = xt.replace(conditions=torch.where(drop.to(x0.device), torch.nan, xt.conditions))
        denoiser: Denoiser = self.denoiser
        if self.shares.any():
            told = Told(self.denoiser, diffusion, random_known(x0, diffusion.processes, self.shares, rng.shared), "clean")
            denoiser, xt = told, told.see(xt)
        previous = None
        if coins[0] < p:
            with torch.no_grad():
                previous = denoiser(xt, t)
        return diffusion.loss(self.denoiser(xt, t, previous), x0, xt, t)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """What is descended on: the weighted sum over fields, averaged over the batch."""
        return self.denoiser.diffusion.total(losses).mean()

    def training_step(self, step: Tensor, batch_index: int) -> Tensor:
        index = int(step)
        x0 = self.batches.batch(index).to(self.device)
        rng = Streams.single(stream_seed(self.options.seed + 1, index * self.batches.world + self.batches.rank))
        which = None if self.symmetric is None else torch.from_numpy(self.batches.indices(index).astype("int64"))
        losses = self.losses(x0, rng, which)
        total = self.total(losses)
        self.seen += x0.n_systems * self.batches.world
        self.recent = {k: float(v.detach().mean()) for k, v in losses.items()} | {"loss": float(total.detach())}
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        rate = learning_rate(self.done, self.progress, self.options)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        norm = torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), self.options.clip)
        self.recent["grad_norm"], self.recent["lr"] = float(norm), rate
        if not math.isfinite(self.recent["grad_norm"]):
            optimizer.zero_grad()  # a non-finite gradient spoils one step, not the run

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        self.done += 1
        if self.origin is not None and self.options.pull > 0:
            self._pull_back(min(1.0, self.recent["lr"] * self.options.pull))
        self.ema.update(self.denoiser, self.done)

    @torch.no_grad()
    def _pull_back(self, share: float) -> None:
        """Move every parameter that the origin knows by a share of the way back to it."""
        assert self.origin is not None
        for name, p in self.denoiser.named_parameters():
            if name in self.origin:
                p.lerp_(self.origin[name].to(p.device), share)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        o = self.options
        fast = o.condition_lr != 1.0  # conditions that the origin knows are weakly learned as a rule
        own = {
            k: p
            for k, p in self.denoiser.named_parameters()
            if self.origin is None or (k in self.origin and not (fast and _OF_CONDITIONS in k))
        }
        new = [p for k, p in self.denoiser.named_parameters() if k not in own]
        decayed = [p for p in own.values() if p.dim() >= 2]
        plain = [p for p in own.values() if p.dim() < 2]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": o.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        if new:
            groups.append({"params": new, "weight_decay": o.weight_decay, "factor": o.condition_lr})
        return torch.optim.AdamW(groups, lr=o.lr, betas=(0.9, 0.98), fused=True)

    def train_dataloader(self) -> DataLoader[int]:
        stop = self.options.max_steps if self.options.max_steps else self.done + 10**9
        return DataLoader(StepData(self.done, stop), batch_size=None)
