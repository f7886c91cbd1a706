"""What happens beside the descent: the clock, saving, the learning curve, and samples now and then."""

from __future__ import annotations

import csv
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from moldiff.training.module import DiffusionModule
from moldiff.training.state import collect_state, write_state


class Clock(Callback):
    """Count elapsed seconds over all resumes and stop at ``max_minutes``."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        now = time.monotonic()
        pl_module.elapsed += now - self._last
        self._last = now
        limit = pl_module.options.max_minutes
        stop = torch.tensor(float(limit is not None and pl_module.elapsed >= 60 * limit), device=pl_module.device)
        if trainer.world_size > 1:  # all ranks stop at the same step
            stop = trainer.strategy.reduce(stop, reduce_op="sum")
        if float(stop) > 0:
            trainer.should_stop = True


class SaveState(Callback):
    """Save the full state every few minutes, at the end, and on SIGTERM before leaving."""

    def __init__(self, path: Path, minutes: float, settings: str, optimizer_state: dict[str, Any] | None) -> None:
        self.path, self.minutes, self.settings, self.optimizer_state = path, minutes, settings, optimizer_state
        self._asked = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.optimizer_state is not None:
            trainer.optimizers[0].load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        self._last = time.monotonic()

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = True

        signal.signal(signal.SIGTERM, ask)

    def save(self, trainer: lightning.Trainer, module: DiffusionModule) -> None:
        """Write now (rank 0 only)."""
        if trainer.is_global_zero:
            write_state(self.path, collect_state(module, trainer.optimizers[0], self.settings))
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if self._asked:
            trainer.should_stop = True
        elif time.monotonic() - self._last > 60 * self.minutes:
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.save(trainer, pl_module)


class Curve(Callback):
    """The learning curve: averaged losses in ``curve.csv`` and ``curve.png``."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self._sum: dict[str, float] = {}
        self._n = 0

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        for key, value in pl_module.recent.items():
            self._sum[key] = self._sum.get(key, 0.0) + value
        self._n += 1
        if self._n < self.every or not trainer.is_global_zero:
            return
        row = {"step": pl_module.done, "minutes": round(pl_module.elapsed / 60, 3), "seen": pl_module.seen}
        row |= {key: round(value / self._n, 6) for key, value in self._sum.items()}
        append_row(self.folder / "curve.csv", row)
        self._sum, self._n = {}, 0
        shown = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if k not in ("seen", "lr"))
        print(f"[{time.strftime('%H:%M:%S')}] {shown}", flush=True)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            draw_curve(self.folder)


class Monitor(Callback):
    """Now and then sample with the averaged weights and log what ``measure`` says of the samples."""

    def __init__(self, folder: Path, minutes: float, measure: Callable[[Any], dict[str, float]]) -> None:
        self.folder, self.minutes, self.measure = folder, minutes, measure

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._next = pl_module.elapsed + 60 * self.minutes

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.elapsed >= self._next:
            self._next = pl_module.elapsed + 60 * self.minutes
            self.run(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.run(trainer, pl_module)

    def run(self, trainer: lightning.Trainer, module: DiffusionModule) -> None:
        """Sample and log on rank 0; a failing measurement is logged and does not end the training."""
        if not trainer.is_global_zero:
            return
        module.ema.swap(module.denoiser)
        try:
            row = {"step": module.done, "minutes": round(module.elapsed / 60, 2)} | self.measure(module.denoiser)
            append_row(self.folder / "samples.csv", row)
            print("samples " + json.dumps(row), flush=True)
        finally:
            module.ema.swap(module.denoiser)


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append to a CSV whose header is the first row's keys."""
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row), extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(row)


def draw_curve(folder: Path) -> None:
    """Draw ``curve.csv`` (losses) and ``samples.csv`` (quality) into ``curve.png``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tables = {}
    for name in ("curve", "samples"):
        path = folder / f"{name}.csv"
        if path.exists():
            with open(path, encoding="utf-8") as file:
                tables[name] = list(csv.DictReader(file))
    if not tables.get("curve"):
        return
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    minutes = [float(r["minutes"]) for r in tables["curve"]]
    for key in tables["curve"][0]:
        if key not in ("step", "minutes", "seen", "lr", "grad_norm"):
            axes[0].plot(minutes, [float(r[key]) for r in tables["curve"]], label=key, lw=1)
    axes[0].set(xlabel="minutes", ylabel="loss", yscale="log", title="training loss")
    axes[0].legend(fontsize=8)
    for key in (tables.get("samples") or [{}])[0]:
        if key not in ("step", "minutes"):
            rows = tables["samples"]
            axes[1].plot([float(r["minutes"]) for r in rows], [float(r[key]) for r in rows], "o-", label=key, ms=3)
    axes[1].set(xlabel="minutes", title="samples with averaged weights")
    if tables.get("samples"):
        axes[1].legend(fontsize=8)
    temporary = folder / "curve.part.png"
    figure.savefig(temporary, dpi=120)
    plt.close(figure)
    temporary.replace(folder / "curve.png")
