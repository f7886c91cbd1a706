"""Evaluate sets of molecules side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moldiff.errors import BadRequest
from moldiff.evaluation.cache import ResultCache
from moldiff.evaluation.molecules.data_row import read_data_row
from moldiff.evaluation.molecules.sets import Settings, evaluate_set
from moldiff.evaluation.progress import StageProgress, stage
from moldiff.evaluation.reference import Reference, load_reference
from moldiff.evaluation.result import Evaluation

if TYPE_CHECKING:
    from moldiff.data.entry import Row


def evaluate_molecule_sets(
    sets: Mapping[str, Sequence[Row]],
    reference: str | Path | Reference | None,
    settings: Settings,
    *,
    remember: bool = True,
    progress: StageProgress | None = None,
) -> Evaluation:
    """Evaluate sets of molecules by name. Raises BadRequest for a reference that is none, or one of crystals."""
    if isinstance(reference, str | Path):
        reference = load_reference(reference, n_processes=settings.n_processes, progress=stage(progress, "reference"))
    if reference is not None and reference.kind != "molecule":
        raise BadRequest(f"the reference {reference.name} is of {reference.kind}s, the samples are molecules")
    store = ResultCache() if remember else None
    try:
        results = [evaluate_set(name, rows, reference, settings, cache=store, progress=progress) for name, rows in sets.items()]
    finally:
        if store is not None:
            store.close()
    row = None if reference is None else read_data_row(reference.data_row, min(result.n for result in results))
    return Evaluation(results, reference, row, settings, "" if store is None else store.problem)
