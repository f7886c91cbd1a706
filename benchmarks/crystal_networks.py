"""Networks for crystals side by side: processor time of a call and of training, and the loss after equal processor time.

    python benchmarks/crystal_networks.py --config configs/quickstart-crystal.yaml --root data --seconds 90 \
        --out benchmarks/results/crystal_networks.json

The settings are those of the configuration, but for ``network``: its own, and ``periodic_tensor_product`` as it is by default.
A call is timed at 32 crystals of 10 atoms with a previous prediction. Times are those of the process, on one thread, so that
other work on the machine matters little. Losses are on the validation part, weights not averaged, self-conditioned, at fixed
noise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from moldiff.assemble import build_denoiser, build_vocabulary
from moldiff.bench import random_batch
from moldiff.config import Config, load_config
from moldiff.core.rng import Streams
from moldiff.data.batches import BucketBatches
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.denoisers.base import NetworkDenoiser, n_parameters

FIELDS = ("frac_coords", "lattice", "atom_types")


def call_ms(denoiser: NetworkDenoiser, config: Config, repeats: int = 15) -> float:
    """Median processor ms of a call at 32 crystals of 10 atoms."""
    t = torch.full((32,), 0.5)
    batch = denoiser.diffusion.noise(random_batch(config, 32, 10, torch.device("cpu")), t, Streams.single(1))
    times = []
    with torch.no_grad():
        previous = denoiser(batch, t)
        for _ in range(repeats):
            began = time.process_time()
            denoiser(batch, t, previous)
            times.append(time.process_time() - began)
    return round(1e3 * statistics.median(times), 1)


def batches(config: Config, root: Path, split: str, size: int) -> BucketBatches:
    """Batches of a prepared data set."""
    store = Store(find_data(config.data.name, root), split)
    stored = {k: store.tensor(k) for k in (*FIELDS, "n_atoms")}
    return BucketBatches(stored, build_vocabulary(config), size, fields=FIELDS)


def losses(denoiser: NetworkDenoiser, data: BucketBatches) -> dict[str, float]:
    """Mean losses over a validation epoch."""
    sums: dict[str, float] = {}
    total = 0
    with torch.no_grad():
        for k in range(data.per_epoch):
            x0 = data.batch(k)
            t = (torch.arange(x0.n_systems) + 0.5) / x0.n_systems
            xt = denoiser.diffusion.noise(x0, t, Streams.single(k))
            found = denoiser.diffusion.loss(denoiser(xt, t, denoiser(xt, t)), x0, xt, t)
            found["all"] = denoiser.diffusion.total(found)
            total += x0.n_systems
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value.sum())
    return {name: round(value / total, 4) for name, value in sums.items()}


def train(config: Config, root: Path, seconds: float, at: list[int]) -> dict[str, Any]:
    """Plain training for so much processor time; losses at the end, and after the numbers of steps in ``at``."""
    torch.manual_seed(0)
    denoiser = build_denoiser(config)
    row: dict[str, Any] = {"network": config.network.name, "parameters": n_parameters(denoiser)}
    row["ms_per_call_32x10"] = call_ms(denoiser, config)
    data, held = (batches(config, root, split, config.training.batch_size) for split in ("train", "val"))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=config.training.lr, weight_decay=config.training.weight_decay)
    spent, step = 0.0, 0
    while spent < seconds:
        began = time.process_time()
        x0, rng = data.batch(step), Streams.single(step)
        t = torch.rand(x0.n_systems, generator=torch.Generator().manual_seed(step))
        xt = denoiser.diffusion.noise(x0, t, rng)
        previous = None
        if step % 2:
            with torch.no_grad():
                previous = denoiser(xt, t)
        # the rate rises over the first steps, and falls to nothing over the last half of the time
        rate = min(1.0, (step + 1) / config.training.warmup, 2 * (1 - spent / seconds))
        for group in optimizer.param_groups:
            group["lr"] = config.training.lr * rate
        loss = denoiser.diffusion.total(denoiser.diffusion.loss(denoiser(xt, t, previous), x0, xt, t)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), config.training.clip)
        optimizer.step()
        step += 1
        spent += time.process_time() - began
        if step in at:
            row[f"losses_after_{step}_steps"] = losses(denoiser, held)
    return row | {"steps": step, "ms_per_step": round(1e3 * spent / step, 1), "losses": losses(denoiser, held)}


def main() -> None:
    """Time, train, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart-crystal.yaml"))
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--at", default="100,200", help="steps after which losses are taken too")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for changes in ([], ["network={name: periodic_tensor_product}"]):
        config = load_config(args.config, changes)
        rows.append(train(config, args.root, args.seconds, [int(k) for k in args.at.split(",")]))
        print(rows[-1], flush=True)
        values = {"config": args.config.name, "seconds": args.seconds, "rows": rows}
        args.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
