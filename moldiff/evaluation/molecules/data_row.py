"""The data row: the same metrics of held-out real molecules, which every table shows beside the samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moldiff.data.entry import Row
from moldiff.data.store import Store
from moldiff.errors import BadRequest, DamagedFile
from moldiff.evaluation.bootstrap import Estimate
from moldiff.evaluation.cache import ResultCache, cache_path
from moldiff.evaluation.conditional import known_values
from moldiff.evaluation.molecules.distributions import distances_at
from moldiff.evaluation.molecules.sets import SetResult, Settings, evaluate_set
from moldiff.evaluation.parallel import Progress
from moldiff.evaluation.progress import StageProgress
from moldiff.evaluation.reference import Reference, build_reference, entries_of, load_reference, reference_of_molecules

if TYPE_CHECKING:
    from moldiff.evaluation.crystals.sets import CrystalSetResult

#: Numbers of samples for which the distances of real molecules are kept.
SIZES = (100, 200, 500, 1000, 2000, 5000, 10000)
#: Held-out molecules that are judged when a data set of one's own is the reference.
N_HELD_OUT = 2000
#: Changes when what a reference holds does, so that remembered ones are made anew.
_FORMAT = 2


@dataclass(frozen=True)
class DataRow:
    """The metrics of ``n`` held-out real molecules; ``title`` names them, ``notes`` tells how they were computed."""

    title: str
    n: int
    metrics: dict[str, Estimate]
    notes: list[str]


def make_data_row(
    rows: Sequence[Row],
    title: str,
    reference: Reference,
    settings: Settings,
    *,
    cache: ResultCache | None = None,
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """Evaluate held-out real molecules against the reference of their training molecules, as plain values for its file."""
    return as_data_row(evaluate_set(title, rows, reference, settings, cache=cache, progress=progress), title, reference)


def as_data_row(found: SetResult | CrystalSetResult, title: str, reference: Reference) -> dict[str, Any]:
    """Return the result of a set of real systems as plain values for its reference's file."""
    at = {n: distances_at(found.values, reference.counts, n) for n in SIZES if n < found.n}
    return {
        "title": title,
        "n": found.n,
        "notes": found.notes,
        "metrics": {name: estimate.to_dict() for name, estimate in found.metrics.items()},
        "at": {str(n): {name: estimate.to_dict() for name, estimate in row.items()} for n, row in at.items()},
    }


def read_data_row(values: Mapping[str, Any], n_samples: int) -> DataRow | None:
    """Return the data row to show beside ``n_samples`` samples, or None where a reference has none.

    Its distances are those of about as many real molecules: they fall with n for real data too.
    """
    if not values:
        return None
    n = int(values["n"])
    metrics = {
        # A reference that was made without intervals holds bare numbers.
        name: Estimate.from_dict(value) if isinstance(value, dict) else Estimate(float(value), math.nan, math.nan, n)
        for name, value in values["metrics"].items()
    }
    at: Mapping[str, Mapping[str, Any]] = values.get("at", {})
    near = min((abs(int(size) - n_samples), size) for size in (*at, str(n)))[1]
    metrics |= {name: Estimate.from_dict(value) for name, value in at.get(near, {}).items()}
    notes = list(values.get("notes", ()))
    if near in at:
        notes.append(f"distances are those of {int(near):,} of them at a time, since they fall with n")
    return DataRow(str(values.get("title", "real molecules, held out")), n, metrics, notes)


def reference_of_files(path: str | Path, *, n_processes: int | None = None, progress: Progress | None = None) -> Reference:
    """Build the reference of files of molecules or crystals; where they are ``train.*`` and ``val.*``, of the former.

    It has no data row. Raises BadRequest for files that hold nothing readable.
    """
    from moldiff.data.sources import open_source

    source = open_source(path)
    rows = list(source.splits["train" if "train" in source.splits else next(iter(source.splits))]())
    name = Path(path).name
    if source.kind == "crystal":
        from moldiff.evaluation.crystals.reference import reference_of_crystals

        made = reference_of_crystals(name, rows, n_processes=n_processes, progress=progress)
    else:
        made = reference_of_molecules(name, rows, n_processes=n_processes, progress=progress)
    if not len(made.hashes):
        raise BadRequest(f"the reference {path} holds no readable {source.kind}")
    return made


def reference_of_data(folder: str | Path, *, n_processes: int | None = None, progress: Progress | None = None) -> Reference:
    """Build the reference of a prepared data set from its ``train`` split, with a data row of random molecules of its ``val``.

    It is remembered beside the results, by the SHA-256 of the splits. Raises BadRequest for a folder that is no data set.
    """
    train = Store(folder, "train")
    splits = train.meta["splits"]
    digest = "-".join(str(splits[split].get("sha256", ""))[:16] for split in ("train", "val") if split in splits)
    path = cache_path().parent / "references" / f"{digest}-{_FORMAT}.safetensors"
    if path.is_file():
        try:
            return load_reference(path)
        except DamagedFile:
            path.unlink()
    reference = build_reference(train, n_processes=n_processes, progress=progress)
    if "val" in splits and train.kind == "crystal":
        from moldiff.evaluation.crystals.reference import make_crystal_data_row

        held_out = Store(folder, "val")
        reference = reference.with_properties(known_values(held_out, "crystal"))
        reference = reference.with_data_row(make_crystal_data_row(reference, train, held_out, n_processes=n_processes))
    elif "val" in splits:
        held_out = Store(folder, "val")
        chosen = np.sort(np.random.default_rng(0).permutation(len(held_out))[:N_HELD_OUT]).tolist()
        rows = list(entries_of(held_out, chosen))
        reference = reference.with_properties(known_values(held_out, "molecule"))
        settings = Settings(n_processes=n_processes)
        reference = reference.with_data_row(make_data_row(rows, f"{reference.name}, held out", reference, settings))
    try:
        reference.save(path)
    except OSError:
        # A cache that can't be written costs the next run its time, nothing else.
        return reference
    return reference
