"""Evaluate anyone's samples: the functions behind ``moldiff evaluate`` and ``moldiff.evaluate``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moldiff.errors import BadRequest
from moldiff.evaluation.cache import ResultCache
from moldiff.evaluation.molecules.data_row import read_data_row
from moldiff.evaluation.molecules.energy import require_tblite
from moldiff.evaluation.molecules.posebusters import require_posebusters
from moldiff.evaluation.molecules.sets import Settings, StageProgress, evaluate_set
from moldiff.evaluation.readers import check_names, is_path, names_of, read_files, read_objects
from moldiff.evaluation.reference import Reference, load_reference
from moldiff.evaluation.result import Evaluation

if TYPE_CHECKING:
    from rich.console import Console

    from moldiff.data.entry import Row


def evaluate(
    samples: Any,
    reference: str | Path | Reference | None = "qm9",
    names: Sequence[str] | None = None,
    *,
    xtb: bool = False,
    n_relax: int = 200,
    posebusters: bool = False,
    posebusters_energy: bool = True,
    n_processes: int | None = None,
    time_limit: float = 60.0,
    seed: int = 0,
    cache: bool = True,
    progress: bool | None = None,
) -> Evaluation:
    """Evaluate samples of molecules beside real ones.

    ``samples`` is one set (a file's path; a SampleSet; a list of RDKit molecules, ASE atoms or SMILES), or several: a list of
    paths, or a mapping of names to sets. ``reference`` is the name of one that ships, the path of a prepared data set or of a
    model's folder, or None for neither novelty nor distances. ``xtb`` relaxes ``n_relax`` random samples with GFN2-xTB, each
    within ``time_limit`` seconds; ``posebusters`` tests as many. ``seed`` chooses them. ``cache`` remembers expensive results.
    ``progress`` shows bars (by default on a terminal). Raises BadRequest for what can't be read or is unknown, MoldiffError for
    a package that is missing.
    """
    settings = Settings(
        xtb=xtb,
        n_relax=n_relax,
        posebusters=posebusters,
        posebusters_energy=posebusters_energy,
        n_processes=n_processes,
        time_limit=time_limit,
        seed=seed,
    )
    _check(settings)
    sets = _sets(samples, names)
    with stage_bars(progress) as bars:
        known = reference
        if isinstance(known, str | Path):
            known = load_reference(known, n_processes=n_processes, progress=None if bars is None else _Stage(bars, "reference"))
        if known is not None and known.kind != "molecule":
            raise BadRequest(f"the reference {known.name} is of {known.kind}s, the samples are molecules")
        store = ResultCache() if cache and (xtb or posebusters) else None
        try:
            results = [evaluate_set(name, rows, known, settings, cache=store, progress=bars) for name, rows in sets.items()]
        finally:
            if store is not None:
                store.close()
    row = None if known is None else read_data_row(known.data_row, min(result.n for result in results))
    return Evaluation(results, known, row, settings, "" if store is None else store.problem)


def evaluate_files(
    paths: Sequence[str | Path],
    names: Sequence[str] | None = None,
    reference: str | Path | None = "qm9",
    out: str | Path | None = None,
    *,
    xtb: bool = False,
    relax: bool = False,
    n_relax: int = 200,
    posebusters: bool = False,
    posebusters_energy: bool = True,
    n_processes: int | None = None,
    time_limit: float = 60.0,
    seed: int = 0,
    cache: bool = True,
    progress: bool | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Do what ``moldiff evaluate`` does: evaluate files side by side, print the table and write the folder ``out``.

    For molecules ``relax`` and ``xtb`` are the same. See ``evaluate`` for the others. Raises BadRequest, before anything is
    computed, for files that can't be read, names that don't fit and a folder that can't be written.
    """
    from rich.console import Console

    if not paths:
        raise BadRequest("give at least one file of samples")
    if out is not None:
        _check_writable(Path(out))
    result = evaluate(
        list(paths),
        reference,
        names,
        xtb=xtb or relax,
        n_relax=n_relax,
        posebusters=posebusters,
        posebusters_energy=posebusters_energy,
        n_processes=n_processes,
        time_limit=time_limit,
        seed=seed,
        cache=cache,
        progress=progress,
    )
    console = console or Console()
    console.print(result.rich_table(console.width))
    if out is not None:
        result.save(out)
    return result


def _sets(samples: Any, names: Sequence[str] | None) -> dict[str, list[Row]]:
    if is_path(samples):
        samples = [samples]
    if isinstance(samples, Mapping):
        if names is not None:
            raise BadRequest("names are the keys of the mapping of samples; leave out names=")
        check_names([str(name) for name in samples])
        return {str(name): read_files(one) if is_path(one) else read_objects(one) for name, one in samples.items()}
    if not hasattr(samples, "__iter__"):
        raise BadRequest(
            f"samples are a {type(samples).__name__}; expected a path, a SampleSet, a list or a mapping of names to lists"
        )
    samples = list(samples)
    if samples and all(is_path(one) for one in samples):
        return dict(zip(names_of(samples, names), [read_files(path) for path in samples], strict=True))
    if names is not None and len(names) != 1:
        raise BadRequest(f"{len(names)} names for one set of samples")
    return {check_names(names)[0] if names else "samples": read_objects(samples)}


def _check(settings: Settings) -> None:
    if settings.n_relax < 1:
        raise BadRequest(f"n_relax must be at least 1, not {settings.n_relax}")
    if settings.time_limit <= 0:
        raise BadRequest(f"time_limit must be above 0 seconds, not {settings.time_limit:g}")
    if settings.n_processes is not None and settings.n_processes < 1:
        raise BadRequest(f"n_processes must be at least 1, not {settings.n_processes}")
    if settings.xtb:
        require_tblite()
    if settings.posebusters:
        require_posebusters()


def _check_writable(folder: Path) -> None:
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise BadRequest(f"can't write the evaluation to {folder}: {place} is a file")
    if not os.access(place, os.W_OK):
        raise BadRequest(f"can't write the evaluation to {folder}: no permission to write in {place}")


@dataclass(frozen=True)
class _Stage:
    """One bar's progress as the plain function of two numbers that cheaper stages want."""

    bars: StageProgress
    title: str

    def __call__(self, done: int, total: int) -> None:
        self.bars(self.title, done, total)


@contextmanager
def stage_bars(progress: bool | None) -> Iterator[StageProgress | None]:
    """Show one bar a stage on stderr while the block runs; None where there is no terminal and none is asked for."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal if progress is None else progress):
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as shown:
        tasks: dict[str, Any] = {}

        def update(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = shown.add_task(title, total=total)
            shown.update(tasks[title], completed=done, total=total)

        yield update
