"""From a training run to a model folder that can be shipped."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moldiff.config import Config, load_config
from moldiff.data.batches import element_histogram, size_histogram
from moldiff.data.companions import CompanionTable
from moldiff.data.store import Store
from moldiff.errors import BadRequest
from moldiff.model_card import card_text
from moldiff.model_store import (
    CARD,
    ELEMENT_COUNTS,
    MANIFEST,
    REFERENCE,
    SETTINGS,
    SIZES,
    WEIGHTS,
    ModelInfo,
    model_info,
    write_manifest,
)  # fmt: skip

if TYPE_CHECKING:
    from moldiff.evaluation.crystals.templates import Templates
    from moldiff.evaluation.reference import Reference

#: How weights may be stored; they are computed with as float32 parameters whatever the storage.
STORAGE = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
#: Molecules of the held-out split from which the data row is computed, at most.
N_DATA_ROW = 10_000
#: Crystals of a data set that must all be known to a reference for it to be that of the data set.
N_PROBE = 50


def export_model(
    weights: Mapping[str, Tensor],
    config: Config,
    store: Store | None,
    out: str | Path,
    facts: Mapping[str, str] | None = None,
    *,
    sizes: Mapping[int, int] | None = None,
    element_counts: Mapping[int, Mapping[tuple[int, ...], int]] | None = None,
    templates: Templates | None = None,
    companions: CompanionTable | None = None,
    reference: Reference | None = None,
    storage: str = "float16",
) -> ModelInfo:
    """Write a model folder and return it checked.

    ``weights`` is a denoiser's state. Sizes, and the reference unless one is given, come from ``store`` (the training split);
    without a store pass ``sizes``, for a model that makes the types of crystals ``element_counts`` too (see
    ``write_element_counts``), and novelty stays unknown unless ``reference`` is given. ``templates`` are the symmetries that a
    model has learnt for compositions, ``companions`` the training systems that ``config.companions`` are drawn from. ``facts``
    become rows of the card.
    The folder appears whole or not at all; an existing model folder is replaced. Raises ``BadRequest`` where ``out`` is a
    folder that holds something else, or can't be written.
    """
    from safetensors.torch import save_file

    out = Path(out)
    if storage not in STORAGE:
        raise BadRequest(f"weights can be stored as {', '.join(STORAGE)}, not {storage!r}")
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise BadRequest(f"{out} exists and is no model folder")
    if sizes is None:
        if store is None:
            raise BadRequest("a model folder needs a data set or a size histogram")
        values, counts = store.sizes.unique(return_counts=True)
        sizes = dict(zip(values.tolist(), counts.tolist(), strict=True))
        if element_counts is None and makes_elements(config):
            element_counts = element_histogram({"n_atoms": store.sizes, "atom_types": store.tensor("atom_types")})
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise BadRequest(f"can't write to {out.parent}: {error.strerror or error}") from None
    try:
        stored = {k: v.detach().to("cpu", STORAGE[storage]).contiguous() for k, v in weights.items()}
        save_file(stored, part / WEIGHTS)
        os.chmod(part / WEIGHTS, 0o644)  # safetensors makes it private
        (part / SETTINGS).write_text(portable(config).to_yaml(), encoding="utf-8")
        histogram = {"n_atoms": {str(k): int(v) for k, v in sorted(sizes.items())}}
        (part / SIZES).write_text(json.dumps(histogram, indent=1) + "\n", encoding="utf-8")
        if element_counts is not None:
            write_element_counts(part, element_counts)
        if templates is not None:
            templates.save(part / ModelInfo.TEMPLATES)
        if companions is not None:
            companions.save(part / ModelInfo.COMPANIONS)
            os.chmod(part / ModelInfo.COMPANIONS, 0o644)
        if reference is None and store is not None and not config.targets:
            reference = reference_of(store, config)
        if reference is not None:
            reference.save(part / REFERENCE)
        n_parameters = sum(v.numel() for v in weights.values())
        (part / CARD).write_text(card_text(config, n_parameters, sizes, reference, facts or {}), encoding="utf-8")
        write_manifest(part, config.name)
        os.chmod(part, 0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(part, out)
    except OSError as error:
        raise BadRequest(f"can't write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return model_info(out)


def export_run(
    run: str | Path,
    out: str | Path,
    data: str | Path | None = None,
    *,
    facts: Mapping[str, str] | None = None,
    reference: Reference | None = None,
    templates: Templates | None = None,
    storage: str = "float16",
) -> ModelInfo:
    """Export a training run's folder: the averaged weights of its state, the settings beside it, and its data set.

    ``data`` is where the data set lies now (default: as the settings name it). A ``reference`` and ``templates`` that are given
    are not computed anew. Raises ``BadRequest`` for a folder without a
    state, ``DamagedFile`` for a damaged one.
    """
    from moldiff.training.data import training_columns, training_store
    from moldiff.training.state import read_state

    run = Path(run)
    if not (run / "state.pt").is_file():
        raise BadRequest(f"{run} is no training run: it has no state.pt")
    config = load_config(run / "settings.yaml")
    store = training_store(config, data)
    columns, _ = training_columns(config, store)
    state = read_state(run / "state.pt")
    given = {
        **({"began as": Path(config.training.start_from).name} if config.training.start_from else {}),
        "trained": f"{state['elapsed'] / 60:.0f} minutes, {state['done']:,} steps, {state['seen']:,} systems seen",
        **(facts or {}),
    }
    if config.targets and (run / "samples.csv").is_file():
        with open(run / "samples.csv", encoding="utf-8") as file:
            last = list(csv.DictReader(file))[-1]
        errors = [f"{name} {last[f'{name}_mae']} {config.condition_stats[name].unit}".rstrip() for name in config.targets]
        given["mean absolute error, held out"] = ", ".join(errors)
    if config.training.given_symmetry > 0 and templates is None:
        from moldiff.data.symmetries import symmetries_of
        from moldiff.training.templates import learn_templates

        print("learning the symmetries of compositions", flush=True)
        templates = learn_templates(columns, symmetries_of(columns, store.folder))
    if templates is not None:
        given["symmetries"] = f"{len(templates):,} learnt for compositions (--symmetry)"
    weights, sizes = {**state["weights"], **state["ema"]}, size_histogram(columns)
    counts = element_histogram(columns) if makes_elements(config) else None
    companions = CompanionTable.of(config.conditions, columns) if config.companions else None
    if companions is not None:
        given["companions"] = f"{', '.join(config.companions)}: drawn from {len(companions.n_atoms):,} training systems"
    return export_model(
        weights, config, store, out, given, sizes=sizes, element_counts=counts, reference=reference, storage=storage,
        templates=templates, companions=companions,
    )


def makes_elements(config: Config) -> bool:
    """Whether a model decides how many elements a crystal has: one of crystals that makes the types."""
    return config.kind == "crystal" and "atom_types" in config.fields


def write_element_counts(folder: Path, counts: Mapping[int, Mapping[tuple[int, ...], int]]) -> None:
    """Write how many training crystals have each number of atoms and of atoms of their elements; the manifest is the caller's."""
    rows = {n: {"-".join(map(str, shares)): int(v) for shares, v in sorted(row.items())} for n, row in sorted(counts.items())}
    text = ",\n".join(f'  "{n}": {json.dumps(row)}' for n, row in rows.items())
    (folder / ELEMENT_COUNTS).write_text(f'{{\n "by_n_atoms": {{\n{text}\n }}\n}}\n', encoding="utf-8")


def portable(config: Config) -> Config:
    """The settings without the folders of the machine that trained."""
    data = config.data.model_copy(update={"root": None, "name": Path(config.data.name).name})
    base = config.training.start_from
    training = config.training.model_copy(update={"start_from": None if base is None else Path(base).name})
    return config.model_copy(update={"data": data, "training": training})


def reference_of(store: Store, config: Config) -> Reference | None:
    """The reference of a training split; its data row holds the metrics of random real molecules that were held out."""
    import numpy as np

    from moldiff.evaluation.molecules.data_row import make_data_row
    from moldiff.evaluation.molecules.sets import Settings
    from moldiff.evaluation.reference import build_reference, entries_of

    if store.kind == "crystal":
        return crystal_reference_of(store, config)
    reference = build_reference(store)
    if config.data.held_out not in store.meta["splits"]:
        return reference
    held_out = Store(store.folder, config.data.held_out)
    chosen = np.sort(np.random.default_rng(0).permutation(len(held_out))[:N_DATA_ROW]).tolist()
    rows = list(entries_of(held_out, chosen))
    return reference.with_data_row(make_data_row(rows, f"{reference.name}, held out", reference, Settings()))


def crystal_reference_of(store: Store, config: Config) -> Reference:
    """The same for crystals; a reference that ships is taken where it is that of this data set, as making one takes minutes."""
    import numpy as np

    from moldiff.evaluation.crystals.basic import judge_crystals
    from moldiff.evaluation.crystals.reference import build_crystal_reference, crystals_of, make_crystal_data_row
    from moldiff.evaluation.reference import load_reference, shipped_references

    name = str(store.meta["name"])
    if name in shipped_references():
        shipped = load_reference(name)
        probe = np.random.default_rng(0).permutation(len(store))[:N_PROBE].tolist()
        found = judge_crystals(list(crystals_of(store, probe)), composition=False, n_processes=1)
        if shipped.n_systems == len(store) and all(shipped.contains(one.labels).all() for one in found):
            return shipped
    reference = build_crystal_reference(store)
    if config.data.held_out not in store.meta["splits"]:
        return reference
    held_out = Store(store.folder, config.data.held_out)
    return reference.with_data_row(make_crystal_data_row(reference, store, held_out))
