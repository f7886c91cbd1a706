"""Evaluate sets of crystals side by side, predictions of structures beside the substitution baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moldiff.data.crystal_entry import CrystalEntry
from moldiff.data.location import find_data
from moldiff.data.sources import open_source
from moldiff.data.store import Store
from moldiff.errors import BadRequest, DamagedFile
from moldiff.evaluation.cache import ResultCache
from moldiff.evaluation.crystals.baseline import SubstitutionBaseline
from moldiff.evaluation.crystals.novelty import Training
from moldiff.evaluation.crystals.sets import CrystalSetResult, CrystalSettings, evaluate_crystals
from moldiff.evaluation.crystals.truths import REQUEST, Truths, read_truths
from moldiff.evaluation.molecules.data_row import read_data_row
from moldiff.evaluation.progress import StageProgress, stage
from moldiff.evaluation.reference import Reference, load_reference
from moldiff.evaluation.result import Evaluation

if TYPE_CHECKING:
    from moldiff.chem.crystals import Crystal
    from moldiff.data.crystal_entry import CrystalRow

#: The name of the baseline's column.
BASELINE = "substitution"


def evaluate_crystal_sets(
    sets: Mapping[str, Sequence[CrystalRow]],
    reference: str | Path | Reference | None,
    settings: CrystalSettings,
    *,
    truth: str | Path | None = None,
    remember: bool = True,
    progress: StageProgress | None = None,
) -> Evaluation:
    """Evaluate sets of crystals by name.

    A reference that is a data set gives the exact novelty. ``truth`` names true structures that the samples are predictions of;
    the baseline then stands beside them wherever the structures to substitute in are at hand. Raises BadRequest for a reference
    or truths that are none, or that are molecules.
    """
    truths = None if truth is None else read_truths(truth)
    given = reference if isinstance(reference, str | Path) else None
    if isinstance(reference, str | Path):
        reference = load_reference(reference, n_processes=settings.n_processes, progress=stage(progress, "reference"))
    if reference is not None and reference.kind != "crystal":
        raise BadRequest(f"the reference {reference.name} is of {reference.kind}s, the samples are crystals")
    training = None if given is None or truths is not None else _training(given)
    store = ResultCache() if remember else None
    remarks: list[str] = []
    try:
        results = [
            evaluate_crystals(name, rows, reference, settings, training=training, truths=truths, cache=store, progress=progress)
            for name, rows in sets.items()
        ]
        n_samples = min(result.n for result in results)
        if truths is not None:
            found = _baseline(sets, results, truths, given or (reference.name if reference else ""), settings, store, progress)
            if isinstance(found, str):
                remarks.append(found)
            else:
                results.append(found)
    finally:
        if store is not None:
            store.close()
    row = None if reference is None else read_data_row(reference.data_row, n_samples)
    problem = "" if store is None else store.problem
    return Evaluation(results, reference, row, settings, problem, tuple(remarks))


def _training(path: str | Path) -> Training | None:
    """Return the training structures of a path; None for the name or the file of a reference."""
    path = Path(path)
    if (path / "meta.json").is_file():
        return Training(Store(path, "train"))
    if not path.exists() or path.suffix == ".safetensors" or (path / "reference.safetensors").is_file():
        return None
    source = open_source(path)
    rows = source.splits["train" if "train" in source.splits else next(iter(source.splits))]()
    return Training([crystal for row in rows if (crystal := row.entry().crystal) is not None])


def _baseline(
    sets: Mapping[str, Sequence[CrystalRow]],
    results: Sequence[CrystalSetResult],
    truths: Truths,
    reference: str | Path,
    settings: CrystalSettings,
    cache: ResultCache | None,
    progress: StageProgress | None,
) -> CrystalSetResult | str:
    """Predict the same structures by substitution; a sentence where the structures to substitute in are not at hand."""
    store = _known_structures(truths, reference)
    if store is None:
        return "no substitution baseline: give --reference a prepared data set whose training structures it may use"
    name = next(n for n in (BASELINE, f"{BASELINE} baseline", f"moldiff {BASELINE}") if n not in sets)
    most = max([int(rank) for result in results for rank in result.extra.get("rank", ()) if rank is not None], default=1)
    tell = stage(progress, f"{name}: predicted")
    baseline = SubstitutionBaseline(store)
    rows: list[CrystalEntry] = []
    kept = truths.kept
    numbers = {row: number for number, row in truths.requests.items()}
    for done, row in enumerate(kept, 1):
        crystal = truths.crystals[row]
        assert crystal is not None
        made = baseline.predict(crystal.numbers, most)
        rows += _entries(made, row, numbers.get(row, row), len(rows))
        if tell is not None:
            tell(done, len(kept))
    if not rows:
        return f"no substitution baseline: {store.meta['name']} has no structure of such compositions"
    plain = replace(settings, calculator="", hull=None, properties=None)
    found = evaluate_crystals(name, rows, None, plain, truths=truths, cache=cache, progress=progress)
    found.notes.insert(0, f"elements swapped in the nearest of {len(store):,} structures of {store.meta['name']}, {store.split}")
    if truths.store is not None and truths.store.path == store.path:
        found.notes.append("its structures to substitute in are the true ones themselves: choose another split")
    return found


def _entries(made: Sequence[Crystal], row: int, request: int, first: int) -> list[CrystalEntry]:
    return [
        CrystalEntry(first + i, f"truth_{row}_{i + 1}", first + i, crystal, {REQUEST: float(request)})
        for i, crystal in enumerate(made)
    ]


def _known_structures(truths: Truths, reference: str | Path) -> Store | None:
    """Find training structures: those of the reference, of the truths' own data set, or of a prepared one of the same name."""
    places = [reference, *([truths.store.folder] if truths.store is not None else [])]
    for place in places:
        try:
            store = Store(find_data(place), "train") if str(place) else None
        except (BadRequest, DamagedFile):
            continue
        if store is not None and store.kind == "crystal":
            return store
    return None
