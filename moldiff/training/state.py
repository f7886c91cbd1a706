"""The full state of a training run: written atomically, read without unpickling code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from moldiff.errors import BadRequest, DamagedFile
from moldiff.training.module import DiffusionModule


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write to a temporary file in the same folder, fsync, replace: a full disk or a kill leaves the old state whole."""
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def collect_state(module: DiffusionModule, optimizer: torch.optim.Optimizer, settings: str) -> dict[str, Any]:
    """Weights, EMA, optimiser, counters and the settings that made them; random draws follow from the counters."""
    return {
        "weights": module.denoiser.state_dict(),
        "ema": module.ema.state_dict(),
        "optimizer": optimizer.state_dict(),
        "done": module.done,
        "elapsed": module.elapsed,
        "seen": module.seen,
        "settings": settings,
    }


def read_state(path: Path) -> dict[str, Any]:
    """Read a state; a missing or damaged file is one sentence."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise BadRequest(f"nothing to resume: {path} does not exist") from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise DamagedFile(f"{path} is not a readable training state: {str(error).splitlines()[0]}") from None


def restore(module: DiffusionModule, state: dict[str, Any]) -> None:
    """Put weights, EMA and counters back; the optimiser's part follows when Lightning has built it."""
    module.denoiser.load_state_dict(state["weights"])
    module.ema.load_state_dict(state["ema"])
    module.done, module.elapsed, module.seen = state["done"], state["elapsed"], state["seen"]
