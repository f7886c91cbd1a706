"""Evaluate anyone's samples: the functions behind ``moldiff evaluate`` and ``moldiff.evaluate``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moldiff.data.members import Kind
from moldiff.errors import BadRequest
from moldiff.evaluation.conditional import check_properties
from moldiff.evaluation.crystals.evaluate import evaluate_crystal_sets
from moldiff.evaluation.crystals.relax import CALCULATORS
from moldiff.evaluation.crystals.sets import CrystalSettings
from moldiff.evaluation.molecules.evaluate import evaluate_molecule_sets
from moldiff.evaluation.molecules.sets import Settings
from moldiff.evaluation.progress import stage_bars
from moldiff.evaluation.readers import Samples, check_names, is_path, names_of, read_files, read_objects
from moldiff.evaluation.reference import Reference
from moldiff.evaluation.result import Evaluation

if TYPE_CHECKING:
    from rich.console import Console

#: The reference that is taken where none is named.
DEFAULT_REFERENCES = {"molecule": "qm9", "crystal": "mp20"}
#: Seconds that one relaxation may take.
TIME_LIMITS = {"molecule": 60.0, "crystal": 120.0}


def evaluate(
    samples: Any,
    reference: str | Path | Reference | None = "auto",
    names: Sequence[str] | None = None,
    *,
    relax: bool = False,
    calculator: str = "",
    hull: str | Path | None = None,
    element_energies: str | Path = "",
    truth: str | Path | None = None,
    properties: Mapping[str, float | str] | None = None,
    xtb: bool = False,
    n_relax: int = 200,
    posebusters: bool = False,
    posebusters_energy: bool = True,
    composition: bool | None = None,
    n_processes: int | None = None,
    time_limit: float | None = None,
    seed: int = 0,
    cache: bool = True,
    progress: bool | None = None,
) -> Evaluation:
    """Evaluate samples of molecules or of crystals beside real ones.

    ``samples`` is one set (a file's path; a SampleSet; a list of RDKit molecules, ASE atoms, pymatgen structures or SMILES), or
    several: a list of paths, or a mapping of names to sets. What they are is found by looking. ``reference`` is the name of one
    that ships (``auto``: qm9 or mp20), the path of a data set or of a model's folder, or None for neither novelty nor distances.
    ``relax`` relaxes ``n_relax`` random samples, each within ``time_limit`` seconds: molecules with GFN2-xTB (as ``xtb`` does),
    crystals with ``calculator``, CHGNet unless it names another. ``properties`` maps properties to what was asked for: a value,
    or a column of the samples' files (None: their columns ``asked_PROPERTY``).

    Of molecules ``posebusters`` tests as many. Of crystals ``hull``, a file, and ``element_energies`` give energies above the
    hull; ``composition`` asks SMACT (None: where it is installed); with ``truth`` (files, or a prepared data set ``NAME:SPLIT``)
    the samples are predictions of these structures. ``seed`` chooses the subsets, ``cache`` remembers expensive results,
    ``progress`` shows bars (by default on a terminal). Raises BadRequest for what can't be read or is unknown, MoldiffError for
    a package that is missing.
    """
    if n_relax < 1:
        raise BadRequest(f"n_relax must be at least 1, not {n_relax}")
    if time_limit is not None and time_limit <= 0:
        raise BadRequest(f"time_limit must be above 0 seconds, not {time_limit:g}")
    if n_processes is not None and n_processes < 1:
        raise BadRequest(f"n_processes must be at least 1, not {n_processes}")
    sets = _sets(samples, names)
    kind = _kind(sets)
    rows = {name: one.rows for name, one in sets.items()}
    known = DEFAULT_REFERENCES[kind] if reference == "auto" else reference
    limit = TIME_LIMITS[kind] if time_limit is None else time_limit
    asked = None if properties is None else tuple(properties.items())
    check_properties(properties, kind)
    if kind == "crystal":
        if xtb or posebusters:
            raise BadRequest(f"{'GFN2-xTB' if xtb else 'PoseBusters'} is for molecules; crystals are relaxed with relax")
        crystal_settings = CrystalSettings(
            composition=composition,
            calculator=(calculator or "chgnet") if relax or calculator else "",
            n_relax=n_relax,
            hull=hull,
            element_energies=element_energies,
            properties=asked,
            n_processes=n_processes,
            time_limit=limit,
            seed=seed,
        )
        crystal_settings.check()
        with stage_bars(progress) as bars:
            return evaluate_crystal_sets(rows, known, crystal_settings, truth=truth, remember=cache, progress=bars)
    for given, what in ((hull, "the hull file"), (calculator, "the calculator"), (truth, "the truth")):
        if given:
            raise BadRequest(f"{what} {given} is for crystals, and the samples are molecules")
    settings = Settings(
        xtb=xtb or relax,
        n_relax=n_relax,
        posebusters=posebusters,
        posebusters_energy=posebusters_energy,
        properties=asked,
        n_processes=n_processes,
        time_limit=limit,
        seed=seed,
    )
    settings.check()
    with stage_bars(progress) as bars:
        return evaluate_molecule_sets(rows, known, settings, remember=cache, progress=bars)


def evaluate_files(
    paths: Sequence[str | Path],
    names: Sequence[str] | None = None,
    reference: str | Path | None = "auto",
    out: str | Path | None = None,
    *,
    relax: bool = False,
    calculator: str = "",
    console: Console | None = None,
    **options: Any,
) -> Evaluation:
    """Do what ``moldiff evaluate`` does: evaluate files side by side, print the table and write the folder ``out``.

    ``options`` are those of ``evaluate``. With ``relax`` the name of a calculator may stand among the paths, since people write
    ``--relax chgnet``. Raises BadRequest, before anything is computed, for files that can't be read, names that don't fit and a
    folder that can't be written.
    """
    from rich.console import Console

    if relax and not calculator:
        named = [str(p) for p in paths if not Path(p).exists() and (str(p) in CALCULATORS or ":" in str(p))]
        paths = [p for p in paths if str(p) not in named[:1]]
        calculator = named[0] if named else ""
        strange = next((p for p in paths if not Path(p).exists() and not Path(p).suffix and len(Path(p).parts) == 1), None)
        if strange is not None:
            raise BadRequest(
                f"{strange} is neither a file nor a calculator ({', '.join(CALCULATORS)}, or an import name module:Name)"
            )
    if not paths:
        raise BadRequest("give at least one file of samples")
    if out is not None:
        _check_writable(Path(out))
    result = evaluate(list(paths), reference, names, relax=relax, calculator=calculator, **options)
    console = console or Console()
    console.print(result.rich_table(console.width))
    if out is not None:
        result.save(out)
    return result


def _sets(samples: Any, names: Sequence[str] | None) -> dict[str, Samples]:
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


def _kind(sets: Mapping[str, Samples]) -> Kind:
    """Return what all sets hold; raises BadRequest where some hold molecules and some crystals."""
    if not sets:
        raise BadRequest("there are no samples to evaluate")
    first: dict[Kind, str] = {}
    for name, one in sets.items():
        first.setdefault(one.kind, name)
    if len(first) == 2:
        raise BadRequest(f"{first['molecule']} holds molecules and {first['crystal']} crystals; evaluate them one kind at a time")
    return next(iter(first))


def _check_writable(folder: Path) -> None:
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise BadRequest(f"can't write the evaluation to {folder}: {place} is a file")
    if not os.access(place, os.W_OK):
        raise BadRequest(f"can't write the evaluation to {folder}: no permission to write in {place}")
