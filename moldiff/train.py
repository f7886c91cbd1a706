"""The run behind ``moldiff train``: settings to a training folder, and at its end a model folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moldiff.config import Config, load_config
from moldiff.errors import BadRequest
from moldiff.model_store import ModelInfo

#: Sections of the settings that a resume may change; anything else would be another model.
MAY_CHANGE = ("training", "sampling", "data")


def train(
    config: str | Path,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    resume: bool = False,
    data: str | Path | None = None,
    threads: int | None = None,
    **trainer_options: Any,
) -> ModelInfo | None:
    """Train from a settings file and export ``out/model``; returns it, or None when the run was asked to stop early.

    ``overrides`` are ``KEY.KEY=VALUE``; ``out`` is ``runs/NAME`` unless given; ``resume`` goes on exactly where the run in
    ``out`` stopped; ``data`` replaces the data set of the settings; ``trainer_options`` are Lightning's (devices, num_nodes,
    strategy, accelerator). Raises ``BadRequest`` for settings, data or folders that are wrong, before anything is computed.
    """
    settings = load_config(config, overrides)
    from moldiff.data.location import find_data
    from moldiff.data.store import Store
    from moldiff.training.conditions import with_condition_stats
    from moldiff.training.data import locate_data

    if data is not None:
        folder = find_data(data).resolve()
        chosen = settings.data.model_copy(update={"name": folder.name, "root": str(folder.parent)})
        settings = settings.model_copy(update={"data": chosen})
    settings = locate_data(settings, config)
    store = Store(Path(str(settings.data.root)) / settings.data.name, settings.data.split)
    if store.kind != settings.kind:
        raise BadRequest(f"{settings.name} learns {settings.kind}s, but {store.folder} holds {store.kind}s")
    largest = int(store.sizes.max())
    if largest > settings.max_atoms:
        raise BadRequest(f"{store.folder} holds systems of {largest} atoms, max_atoms is {settings.max_atoms}")
    folder = Path(out) if out is not None else Path("runs") / settings.name
    columns = {name: store.tensor(name) for name in store.names}
    if resume and (folder / "settings.yaml").is_file():  # the network was trained on values standardised by these
        settings = settings.model_copy(update={"condition_stats": load_config(folder / "settings.yaml").condition_stats})
    settings = with_condition_stats(settings, columns, store.meta.get("properties", {}))
    if is_first_process():  # the others start when the first has begun to write
        _check_folder(folder, settings, resume)

    import torch

    from moldiff.training.run import fit

    if threads is not None:
        if threads < 1:
            raise BadRequest(f"threads must be at least 1, found {threads}")
        torch.set_num_threads(threads)
    result = fit(settings, columns, folder, resume=resume, **_trainer(trainer_options))
    if not result.main_process:
        return None
    if not result.complete:
        print(f"stopped after {result.steps:,} steps; go on with: moldiff train {config} --resume", flush=True)
        return None
    from moldiff.model_export import export_run

    print("exporting the model", flush=True)
    info = export_run(folder, folder / "model")
    print(f"wrote {info.folder}; use it with: moldiff generate --model {info.folder} -n 100 --out candidates", flush=True)
    return info


def is_first_process() -> bool:
    """Whether this process is the one that people started, and not one that Lightning or SLURM started beside it."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_NODEID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def _check_folder(folder: Path, settings: Config, resume: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise BadRequest(f"{folder} is a file; --out takes a folder")
    state = folder / "state.pt"
    if resume:
        if not state.is_file():
            raise BadRequest(f"nothing to resume in {folder}: it has no state.pt")
        before, now = load_config(folder / "settings.yaml").model_dump(), settings.model_dump()
        other = next((key for key in now if key not in MAY_CHANGE and before[key] != now[key]), None)
        if other is not None:
            raise BadRequest(f"{folder} was trained with other settings: {_difference(other, before[other], now[other])}")
    elif folder.exists() and any(folder.iterdir()):
        raise BadRequest(f"{folder} is not empty; go on with --resume or choose another --out")


def _difference(path: str, before: Any, now: Any) -> str:
    """The first place where two settings differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            if before.get(key) != now.get(key):
                return _difference(f"{path}.{key}", before.get(key), now.get(key))
    return f"{path} was {before!r}, is {now!r}"


def _trainer(options: dict[str, Any]) -> dict[str, Any]:
    """Lightning's options, ``devices`` read as a number or a list of numbers where it is one."""
    devices = options.get("devices")
    if isinstance(devices, str) and devices != "auto":
        try:
            numbers = [int(part) for part in devices.split(",")]
        except ValueError:
            raise BadRequest(f"devices must be auto, a number or a list such as 0,1, found {devices!r}") from None
        options = {**options, "devices": numbers if len(numbers) > 1 else numbers[0]}
    if options.get("strategy", "auto") in ("auto", "ddp") and _n_processes(options) > 1:
        # Without self-conditioning in a step some parameters get no gradient, which plain DDP takes for a fault.
        options = {**options, "strategy": "ddp_find_unused_parameters_true"}
    return options


def _n_processes(options: dict[str, Any]) -> int:
    import torch

    devices = options.get("devices", "auto")
    if isinstance(devices, list):
        here = len(devices)
    elif devices in ("auto", -1):
        here = max(1, torch.cuda.device_count()) if options.get("accelerator", "auto") != "cpu" else 1
    else:
        here = int(devices)
    return here * int(options.get("num_nodes", 1))
