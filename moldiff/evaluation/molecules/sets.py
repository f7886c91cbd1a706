"""Everything that is found out about one set of molecules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from moldiff.chem.bonds import Bonds
from moldiff.chem.molecules import build_molecule
from moldiff.data.entry import Entry, Row
from moldiff.evaluation.bootstrap import Estimate, mean, median, ratio
from moldiff.evaluation.cache import ResultCache, structure_key
from moldiff.evaluation.molecules.asked import judge_properties
from moldiff.evaluation.molecules.basic import Verdict, crashed, failures, fractions, judged, mark_repeats
from moldiff.evaluation.molecules.distributions import Profile, Values, collect, distances, diversity, profile
from moldiff.evaluation.molecules.energy import XtbResult, XtbTask, require_tblite, xtb
from moldiff.evaluation.molecules.posebusters import TIME_LIMIT, bust, require_posebusters
from moldiff.evaluation.molecules.strain import mmff_strain
from moldiff.evaluation.parallel import map_items
from moldiff.evaluation.progress import StageProgress
from moldiff.evaluation.reference import Reference


@dataclass(frozen=True)
class Settings:
    """What to compute and how much of it.

    ``xtb`` relaxes ``n_relax`` random valid and connected samples with GFN2-xTB, ``posebusters`` tests as many (with its
    energy check unless ``posebusters_energy`` is false), ``n_strain`` of them get their MMFF strain. ``n_processes`` None takes
    all cores; ``time_limit`` (s) holds for each relaxation. ``seed`` chooses the subsets. ``properties`` are pairs of a property
    and what was asked of it, a value or a column (None: the columns ``asked_PROPERTY``).
    """

    xtb: bool = False
    n_relax: int = 200
    posebusters: bool = False
    posebusters_energy: bool = True
    n_strain: int = 1000
    properties: tuple[tuple[str, float | str], ...] | None = None
    n_processes: int | None = None
    time_limit: float = 60.0
    n_resamples: int = 1000
    seed: int = 0

    def check(self) -> None:
        """Raise MoldiffError, before anything is computed, for a package that is missing."""
        if self.xtb or self.properties:
            require_tblite()
        if self.posebusters:
            require_posebusters()


@dataclass(frozen=True)
class Examined:
    """One sample after the first pass: its entry, its verdict, its bonds (given or perceived) and its share of the histograms."""

    entry: Entry
    verdict: Verdict
    bonds: Bonds | None = None
    profile: Profile = field(default_factory=dict)


@dataclass(frozen=True)
class SetResult:
    """A set of molecules with its ``metrics`` by name and, by column, what was found of each sample (``extra``, None where not
    computed). ``values`` are the bins of its histograms, ``notes`` sentences that belong under the table."""

    name: str
    samples: list[Examined]
    metrics: dict[str, Estimate]
    extra: dict[str, list[Any]]
    values: Values
    notes: list[str] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Number of samples, failures included."""
        return len(self.samples)

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdicts in the order of the samples."""
        return [s.verdict for s in self.samples]

    def failures(self) -> Mapping[str, int]:
        """Invalid samples by reason."""
        return failures(self.verdicts)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a sample with every verdict."""
        return [{**v.row(), **{k: column[i] for k, column in self.extra.items()}} for i, v in enumerate(self.verdicts)]


def evaluate_set(
    name: str,
    rows: Sequence[Row],
    reference: Reference | None,
    settings: Settings,
    *,
    cache: ResultCache | None = None,
    progress: StageProgress | None = None,
) -> SetResult:
    """Evaluate one set of molecules.

    ``rows`` are read and judged in processes; every row stays in the denominators. ``reference`` adds novelty and distances.
    Raises MoldiffError when a package that the settings ask for is not installed.
    """

    def stage(title: str) -> Callable[[int, int], None] | None:
        return None if progress is None else partial(progress, title)

    samples = map_items(examine, rows, _crashed, n_processes=settings.n_processes, progress=stage(f"{name}: judged"))
    verdicts = mark_repeats([s.verdict for s in samples], reference)
    samples = [Examined(s.entry, v, s.bonds, s.profile) for s, v in zip(samples, verdicts, strict=True)]
    metrics = {
        metric: ratio(top, bottom, n_resamples=settings.n_resamples) for metric, (top, bottom) in fractions(verdicts).items()
    }
    values = collect([s.profile for s in samples])
    if reference is not None:
        metrics |= distances(values, reference.counts)
    metrics["diversity"] = diversity([v.smiles for v in verdicts if v.valid])
    extra: dict[str, list[Any]] = {}
    notes = _notes(samples)
    order = np.random.default_rng(settings.seed).permutation(len(samples)).tolist()
    good = [i for i in order if _computable(samples[i])]
    _strain(samples, good[: settings.n_strain], metrics, extra, settings, stage(f"{name}: MMFF strain"))
    if settings.posebusters:
        check = "with" if settings.posebusters_energy else "without"
        n_tested = min(len(good), settings.n_relax)
        notes.append(f"PoseBusters {require_posebusters()} {check} its energy check on {n_tested:,} valid and connected samples")
        _posebusters(samples, good[: settings.n_relax], metrics, extra, settings, cache, stage(f"{name}: PoseBusters"))
    if settings.xtb:
        notes.append(f"GFN2-xTB relaxed {min(len(good), settings.n_relax):,} random valid and connected samples")
        _xtb(samples, good[: settings.n_relax], metrics, extra, settings, cache, stage(f"{name}: GFN2-xTB"))
    judge_properties(name, samples, good, reference, metrics, extra, notes, settings, cache, stage(f"{name}: properties"))
    return SetResult(name, samples, metrics, extra, values, notes)


def examine(row: Row) -> Examined:
    """Read and judge one sample and sort it into the histograms."""
    entry = row.entry()
    found = judged(entry)
    verdict, shown = found.verdict, Profile()
    if verdict.n_atoms and entry.numbers is not None and verdict.formula:
        bonds = found.bonds if verdict.valid else None
        shown = profile(entry.numbers, entry.positions if verdict.finite else None, bonds, found.mol)
    elif found.mol is not None:
        shown = profile([a.GetAtomicNum() for a in found.mol.GetAtoms()], None, found.bonds, found.mol)
    return Examined(entry, verdict, found.bonds, shown)


def molecule_of(sample: Examined) -> Any:
    """Rebuild the sanitised RDKit molecule of a valid sample, or None."""
    entry = sample.entry
    if entry.numbers is None or sample.bonds is None:
        return None
    return build_molecule(entry.numbers, entry.positions, sample.bonds.matrix(), sample.bonds.charges).mol


def _computable(sample: Examined) -> bool:
    verdict = sample.verdict
    return verdict.valid and verdict.connected and verdict.finite and sample.entry.positions is not None


def _strain_of(sample: Examined) -> float:
    return mmff_strain(molecule_of(sample))


def _strain(
    samples: list[Examined],
    chosen: list[int],
    metrics: dict[str, Estimate],
    extra: dict[str, list[Any]],
    settings: Settings,
    step: Any,
) -> None:
    if not chosen:
        return
    found = map_items(_strain_of, [samples[i] for i in chosen], _no_number, n_processes=settings.n_processes, progress=step)
    _fill(extra, "mmff_strain", len(samples), chosen, found)
    metrics["mmff_strain"] = median(np.array(found), n_resamples=settings.n_resamples)


def _xtb(
    samples: list[Examined],
    chosen: list[int],
    metrics: dict[str, Estimate],
    extra: dict[str, list[Any]],
    settings: Settings,
    cache: ResultCache | None,
    step: Any,
) -> None:
    tasks = []
    for i in chosen:
        entry = samples[i].entry
        assert entry.numbers is not None and entry.positions is not None
        tasks.append(XtbTask(entry.numbers, entry.positions, samples[i].verdict.charge, samples[i].bonds))
    found = xtb(tasks, n_processes=settings.n_processes, time_limit=settings.time_limit, cache=cache, progress=step)
    for column in XtbResult.__dataclass_fields__:
        _fill(extra, f"xtb_{column}", len(samples), chosen, [getattr(result, column) for result in found])
    if not chosen:
        return

    def numbers(column: str) -> np.ndarray:
        return np.array([getattr(result, column) for result in found], dtype=np.float64)

    gains, n = numbers("relaxation_energy"), settings.n_resamples
    # A molecule that can't be computed is worse than all that can: in the median it counts as infinitely strained.
    metrics["xtb_relaxation_energy"] = median(np.where(np.isnan(gains), np.inf, gains), n_resamples=n)
    metrics["xtb_relaxation_energy_mean"] = mean(gains, n_resamples=n)
    metrics["xtb_rmsd"] = median(numbers("rmsd"), n_resamples=n)
    metrics["xtb_rmsd_mean"] = mean(numbers("rmsd"), n_resamples=n)
    for column in ("bond_change", "angle_change", "torsion_change"):
        metrics[f"xtb_{column}"] = mean(numbers(column), n_resamples=n)
    metrics["xtb_failed"] = ratio(np.isnan(gains).astype(np.float64), np.ones(len(gains)), n_resamples=n)


def _bust_of(energy: bool, sample: Examined) -> dict[str, bool]:
    return bust(molecule_of(sample), energy=energy)


def _posebusters(
    samples: list[Examined],
    chosen: list[int],
    metrics: dict[str, Estimate],
    extra: dict[str, list[Any]],
    settings: Settings,
    cache: ResultCache | None,
    step: Any,
) -> None:
    kind = f"posebusters-{require_posebusters()} energy={settings.posebusters_energy}"
    keys = {}
    known: dict[int, dict[str, bool]] = {}
    for i in chosen:
        entry, bonds = samples[i].entry, samples[i].bonds
        assert entry.numbers is not None and entry.positions is not None and bonds is not None
        graph = np.column_stack([bonds.index, bonds.types]).tolist()
        keys[i] = structure_key(kind, entry.numbers, entry.positions, graph, bonds.charges.tolist())
        if cache is not None and (stored := cache.get(keys[i])) is not None:
            known[i] = stored
    left = [i for i in chosen if i not in known]

    def keep(position: int, result: dict[str, bool]) -> None:
        if cache is not None and result:
            cache.put(keys[left[position]], result)

    work = partial(_bust_of, settings.posebusters_energy)
    fresh = map_items(
        work,
        [samples[i] for i in left],
        _no_tests,
        n_processes=settings.n_processes,
        time_limit=TIME_LIMIT,
        progress=step,
        done=keep,
    )
    known.update(zip(left, fresh, strict=True))
    found = [known[i] for i in chosen]
    passed = [bool(tests) and all(tests.values()) for tests in found]
    _fill(extra, "posebusters", len(samples), chosen, passed)
    failed = ["; ".join(k for k, ok in tests.items() if not ok) if tests else "could not be run" for tests in found]
    _fill(extra, "posebusters_failed", len(samples), chosen, failed)
    if chosen:
        one, n = np.ones(len(found)), settings.n_resamples
        metrics["posebusters"] = ratio(np.array(passed, dtype=np.float64), one, n_resamples=n)
        for test in sorted({name for tests in found for name in tests}):
            verdicts = np.array([float(tests.get(test, False)) for tests in found])
            metrics[f"posebusters/{test}"] = ratio(verdicts, one, n_resamples=n)


def _fill(extra: dict[str, list[Any]], column: str, n: int, chosen: list[int], values: Sequence[Any]) -> None:
    whole: list[Any] = [None] * n
    for i, value in zip(chosen, values, strict=True):
        whole[i] = value
    extra[column] = whole


def _notes(samples: list[Examined]) -> list[str]:
    verdicts = [s.verdict for s in samples]
    notes = []
    perceived = sum(v.bonds == "perceived" for v in verdicts)
    if perceived:
        notes.append(f"bonds of {perceived:,} of {len(verdicts):,} samples were perceived from their coordinates (RDKit)")
    if any(v.smiles for v in verdicts) and not any("element" in s.profile and (s.profile["element"] == 1).any() for s in samples):
        notes.append("no sample has a hydrogen atom: atoms that lack them count as radicals and as unstable")
    return notes


def _crashed(row: Row, reason: str) -> Examined:
    entry = Entry(row.row, row.name, row.row, problem=reason)
    return Examined(entry, crashed(entry, reason))


def _no_number(sample: Examined, reason: str) -> float:
    return float("nan")


def _no_tests(sample: Examined, reason: str) -> dict[str, bool]:
    return {}
