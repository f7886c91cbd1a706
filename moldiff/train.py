"""The run behind ``moldiff train``: settings to a training folder, and at its end a model folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moldiff.config import Config, apply_overrides, load_config, parse_config
from moldiff.errors import BadRequest
from moldiff.model_store import ModelInfo

if TYPE_CHECKING:
    from moldiff.data.store import Store

#: Sections of the settings that a resume may change; anything else would be another model.
MAY_CHANGE = ("training", "sampling", "data")


def train(
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    *,
    resume: bool = False,
    data: str | Path | None = None,
    start_from: str | Path | None = None,
    conditions: Sequence[str] = (),
    threads: int | None = None,
    **trainer_options: Any,
) -> ModelInfo | None:
    """Train from a settings file and export ``out/model``; returns it, or None when the run was asked to stop early.

    ``overrides`` are ``KEY.KEY=VALUE``; ``out`` is ``runs/NAME`` unless given; ``resume`` goes on exactly where the run in
    ``out`` stopped; ``data`` replaces the data set of the settings. ``start_from`` is a model, by name or folder, whose weights
    are the first ones; without a settings file its own settings are used, as ``training.warm.FINE_TUNING`` changes them.
    ``conditions`` are columns to learn beside those of the settings. ``trainer_options`` are Lightning's (devices, num_nodes,
    strategy, accelerator). Raises ``BadRequest`` for settings, data or folders that are wrong, before anything is computed.
    """
    settings, base = _settings(config, overrides, data, start_from, conditions)
    from moldiff.data.store import Store
    from moldiff.training.conditions import with_condition_stats
    from moldiff.training.data import locate_data, training_columns, with_others
    from moldiff.training.given import check_shares

    check_shares(settings)
    settings = locate_data(settings, config)
    store = Store(Path(str(settings.data.root)) / settings.data.name, settings.data.split)
    if store.kind != settings.kind:
        raise BadRequest(f"{settings.name} learns {settings.kind}s, but {store.folder} holds {store.kind}s")
    columns, left_out = training_columns(settings, store)
    columns = with_others(settings, columns)
    folder = Path(out) if out is not None else Path("runs") / settings.name
    if resume and (folder / "settings.yaml").is_file():  # the network was trained on values standardised by these
        settings = settings.model_copy(update={"condition_stats": load_config(folder / "settings.yaml").condition_stats})
    for name in sorted(settings.condition_stats.keys() - set(store.properties)):
        print(f"{store.folder} has no column {name!r}: that condition of {settings.name} is not trained further", flush=True)
    settings = with_condition_stats(settings, columns, store.meta.get("properties", {}))
    first: dict[str, Any] = {}
    if settings.targets:
        first["held_out"] = _held_out(settings, store)
    if base is not None and settings.targets:
        from moldiff.training.warm import warm_regressor

        first["start_from"] = warm_regressor(settings, base.config, base.regressor().state_dict())
    elif base is not None:
        from moldiff.training.warm import new_weights, warm_weights

        weights = warm_weights(settings, base.config, base.denoiser().state_dict())
        first = {"start_from": weights, "new": new_weights(settings, base.config, list(weights))}
    if is_first_process():  # the others start when the first has begun to write
        _check_folder(folder, settings, resume)
    for reason, count in left_out.items():
        print(f"left out: {count:,} systems with {reason}", flush=True)

    import torch

    from moldiff.training.run import fit

    if threads is not None:
        if threads < 1:
            raise BadRequest(f"threads must be at least 1, found {threads}")
        torch.set_num_threads(threads)
    result = fit(settings, columns, folder, resume=resume, **first, **_trainer(trainer_options))
    if not result.main_process:
        return None
    if not result.complete:
        print(f"stopped after {result.steps:,} steps; go on with the same command and --resume", flush=True)
        return None
    from moldiff.data.batches import size_histogram
    from moldiff.model_export import export_run

    print("exporting the model", flush=True)
    known: dict[str, Any] = {}
    if base is not None and base.config.data.name == settings.data.name and base.sizes == size_histogram(columns):
        known["reference"] = base.reference()  # the same data: what takes minutes to compute is there
        if settings.training.given_symmetry > 0 and base.has_templates:
            known["templates"] = base.templates()
    info = export_run(folder, folder / "model", **known)
    use = f"moldiff generate --model {info.folder} -n 100 --out candidates"
    if settings.targets:
        use = f'moldiff.regressor.PropertyRegressor.from_pretrained("{info.folder}").predict(molecules)'
    print(f"wrote {info.folder}; use it with: {use}", flush=True)
    return info


def _held_out(settings: Config, store: Store) -> dict[str, Any] | None:
    """The columns of the held-out systems that the model can represent; None where the data set has no such split."""
    from moldiff.data.store import Store
    from moldiff.training.data import training_columns

    if settings.data.held_out not in store.meta["splits"]:
        return None
    data = settings.data.model_copy(update={"part": None, "skip_unknown": True})
    return training_columns(settings.model_copy(update={"data": data}), Store(store.folder, settings.data.held_out))[0]


def _settings(
    config: str | Path | None,
    overrides: Sequence[str],
    data: str | Path | None,
    start_from: str | Path | None,
    conditions: Sequence[str],
) -> tuple[Config, ModelInfo | None]:
    """The settings of a run, and the model from which it begins where there is one."""
    from moldiff.data.location import find_data
    from moldiff.model_store import model_info
    from moldiff.training.warm import fine_tuning_config, inherit_conditions

    if config is None:
        if start_from is None:
            raise BadRequest("moldiff train needs a settings file, or a model to begin with: --from MODEL --data NAME")
        if data is None:
            raise BadRequest(f"training {start_from} further needs data: --data NAME (make it with: moldiff data prepare)")
        base = model_info(start_from)
        made = fine_tuning_config(base.config, _model_name(base, start_from), find_data(data).resolve().name, conditions)
        settings = parse_config(apply_overrides(made.model_dump(mode="json"), overrides), "the settings")
    else:
        settings = load_config(config, overrides)
        more = [c for c in dict.fromkeys(conditions) if c not in settings.conditions]
        settings = settings.model_copy(update={"conditions": [*settings.conditions, *more]})
        chosen = start_from if start_from is not None else settings.training.start_from
        if chosen is None:
            if settings.training.pull or settings.training.condition_lr != 1:
                raise BadRequest("training.pull and training.condition_lr need a model to begin with: --from MODEL")
            base = None
        else:
            base = model_info(chosen)
            training = settings.training.model_copy(update={"start_from": _model_name(base, chosen)})
            settings = settings.model_copy(update={"training": training})
    if data is not None:
        folder = find_data(data).resolve()
        place = settings.data.model_copy(update={"name": folder.name, "root": str(folder.parent)})
        settings = settings.model_copy(update={"data": place})
    return (settings if base is None else inherit_conditions(settings, base.config)), base


def _model_name(info: ModelInfo, given: str | Path) -> str:
    """What the settings say of the model that training begins with: a name of the package, or a folder."""
    return info.name if str(given) == info.name else str(Path(given).resolve())


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
