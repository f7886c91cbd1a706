"""Everything that is found out about one set of crystals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from moldiff.chem.crystals import Crystal
from moldiff.data.crystal_entry import CrystalRow
from moldiff.errors import BadRequest
from moldiff.evaluation.bootstrap import Estimate, mean, median, ratio
from moldiff.evaluation.cache import ResultCache
from moldiff.evaluation.crystals.asked import judge_properties
from moldiff.evaluation.crystals.basic import CrystalVerdict, JudgedCrystal, failures, fractions, judge_crystals
from moldiff.evaluation.crystals.composition import has_smact, require_smact
from moldiff.evaluation.crystals.csp import compare_predictions
from moldiff.evaluation.crystals.energies import ElementEnergies, above_hull, load_element_energies
from moldiff.evaluation.crystals.hull import Hull, load_hull
from moldiff.evaluation.crystals.novelty import Training, mark_repeats
from moldiff.evaluation.crystals.relax import RelaxResult, RelaxTask, calculator_version, find_calculator, relax
from moldiff.evaluation.crystals.truths import Truths, assign
from moldiff.evaluation.molecules.distributions import BINS, Profile, Values, collect, distances
from moldiff.evaluation.progress import StageProgress
from moldiff.evaluation.reference import Reference

#: What counts as nearly stable (eV/atom above the hull).
METASTABLE = 0.1
#: Energies are not known to better than this; on the hull means within it (eV/atom).
ON_HULL = 1e-3
#: Numbers of predictions at which match rates are given, besides that of all.
AT = (1, 5, 10, 20)


@dataclass(frozen=True)
class CrystalSettings:
    """What to compute and how much of it.

    ``composition`` asks SMACT (None: where it is installed). ``calculator`` (a short name or an import name; empty: none) relaxes
    ``n_relax`` random structurally valid samples, each within ``time_limit`` seconds; with ``hull``, a hull file, and
    ``element_energies`` (a file, or empty for those that ship for the calculator) they get energies above the hull.
    ``properties`` are pairs of a property and what was asked of it, a value or a column (None: the columns ``asked_PROPERTY``).
    ``n_processes`` None takes all cores; ``seed`` chooses the subset.
    """

    composition: bool | None = None
    calculator: str = ""
    n_relax: int = 200
    hull: str | Path | None = None
    element_energies: str | Path = ""
    properties: tuple[tuple[str, float | str], ...] | None = None
    n_processes: int | None = None
    time_limit: float = 120.0
    n_resamples: int = 1000
    seed: int = 0

    def check(self) -> None:
        """Raise, before anything is computed, for a package that is missing and a file or a name that is none."""
        if self.composition:
            require_smact()
        if self.hull is not None and not self.calculator:
            raise BadRequest("a hull file needs energies: name a calculator that relaxes the samples, for instance chgnet")
        if self.hull is not None and not Path(self.hull).exists():
            raise BadRequest(f"{self.hull} does not exist")
        if self.calculator:
            find_calculator(self.calculator)
        if self.hull is None and "e_above_hull" in dict(self.properties or ()):
            raise BadRequest("e_above_hull was asked for: judging it needs a calculator (relax) and a hull file (hull)")
        if self.hull is not None:
            load_element_energies(self.element_energies or self.calculator)
            read_hull(self.hull)


@dataclass(frozen=True)
class CrystalSetResult:
    """A set of crystals with its ``metrics`` by name and, by column, what was found of each sample (``extra``, None where not
    computed). ``values`` are the bins of its histograms, ``notes`` sentences that belong under the table. ``per_truth`` has a row
    for each true structure that predictions were compared with, ``true`` each sample's own one (empty without such)."""

    name: str
    samples: list[JudgedCrystal]
    metrics: dict[str, Estimate]
    extra: dict[str, list[Any]]
    values: Values
    notes: list[str] = field(default_factory=list)
    per_truth: list[dict[str, Any]] = field(default_factory=list)
    true: list[Crystal | None] = field(default_factory=list)

    @property
    def n(self) -> int:
        """Number of samples, failures included."""
        return len(self.samples)

    @property
    def verdicts(self) -> list[CrystalVerdict]:
        """The verdicts in the order of the samples."""
        return [one.verdict for one in self.samples]

    def failures(self) -> Mapping[str, int]:
        """Structurally invalid samples by reason."""
        return failures(self.verdicts)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a sample with every verdict."""
        return [{**v.row(), **{k: column[i] for k, column in self.extra.items()}} for i, v in enumerate(self.verdicts)]


def evaluate_crystals(
    name: str,
    rows: Sequence[CrystalRow],
    reference: Reference | None = None,
    settings: CrystalSettings | None = None,
    *,
    training: Training | None = None,
    truths: Truths | None = None,
    cache: ResultCache | None = None,
    progress: StageProgress | None = None,
) -> CrystalSetResult:
    """Evaluate one set of crystals.

    Every row stays in the denominators. ``reference`` adds the coarse novelty and the distances, ``training`` the novelty by
    StructureMatcher. With ``truths`` the samples are predictions of them: match rates take the place of uniqueness, novelty and
    distances, which mean nothing where the composition is given. Raises MoldiffError when a package that the settings ask for
    is not installed.
    """
    settings = CrystalSettings() if settings is None else settings
    settings.check()

    def stage(title: str) -> Callable[[int, int], None] | None:
        return None if progress is None else partial(progress, f"{name}: {title}")

    n = settings.n_processes
    composition = has_smact() if settings.composition is None else settings.composition
    judged = judge_crystals(rows, composition=composition, n_processes=n, progress=stage("judged"))
    if truths is None:
        judged = mark_repeats(judged, reference, training, n_processes=n, cache=cache, progress=stage("compared"))
    verdicts = [one.verdict for one in judged]
    metrics = {
        metric: ratio(top, bottom, n_resamples=settings.n_resamples) for metric, (top, bottom) in fractions(verdicts).items()
    }
    values = collect([crystal_profile(one) for one in judged])
    extra: dict[str, list[Any]] = {}
    notes = [] if composition else ["compositional validity was not computed: it needs SMACT (pip install smact)"]
    per_truth: list[dict[str, Any]] = []
    true: list[Crystal | None] = []
    if truths is not None:
        true = [None if p is None else truths.crystals[p[0]] for p in assign(judged, truths).places]
        per_truth = _predictions(judged, truths, composition, metrics, extra, notes, settings, cache, stage("matched"))
    elif reference is not None:
        metrics |= distances(values, reference.counts)
    if settings.calculator:
        _energies(judged, metrics, extra, notes, settings, cache, stage(settings.calculator))
    judge_properties(name, judged, reference, metrics, extra, notes, settings)
    return CrystalSetResult(name, judged, metrics, extra, values, notes, per_truth, true)


def _predictions(
    judged: list[JudgedCrystal],
    truths: Truths,
    composition: bool,
    metrics: dict[str, Estimate],
    extra: dict[str, list[Any]],
    notes: list[str],
    settings: CrystalSettings,
    cache: ResultCache | None,
    step: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """Compare predictions with their true structures; returns a row for each of these."""
    found = assign(judged, truths)
    kept = truths.kept
    rows = found.predictions([one.crystal for one in judged], len(truths.crystals))
    result = compare_predictions(
        [c for c in truths.crystals if c is not None],
        [rows[i] for i in kept],
        composition=composition,
        n_processes=settings.n_processes,
        cache=cache,
        progress=step,
    )
    most = result.rms.shape[1]
    metrics |= result.metrics(sorted({k for k in AT if k < most} | {most}), n_resamples=settings.n_resamples)
    place_of = {row: k for k, row in enumerate(kept)}
    extra["truth"] = [None if place is None else truths.names[place[0]] for place in found.places]
    extra["rank"] = [None if place is None else place[1] + 1 for place in found.places]
    extra["rms_to_truth"] = [None if place is None else float(result.rms[place_of[place[0]], place[1]]) for place in found.places]
    n_empty = sum(not rows[i] for i in kept)
    notes.append(f"{len(kept):,} true structures of {truths.title}; predictions found {found.how}")
    for n, text in (
        (len(truths.crystals) - len(kept), "true structures could not be read and are left out"),
        (n_empty, "true structures have no prediction and count as not found"),
        (found.n_lost, "samples belong to none of the true structures"),
        (result.given_up, "comparisons were given up and count as no match"),
        (result.n_across, "pairs across requests of one composition are too many: METRe and cRMSE are left out"),
    ):
        if n:
            notes.append(f"{n:,} {text}")
    return [
        {
            "truth": truths.names[row],
            "formula": crystal.reduced_formula,
            "n_atoms": len(crystal),
            "n_predictions": len(rows[row]),
            **one,
        }
        for row, one in zip(kept, result.rows(), strict=True)
        if (crystal := truths.crystals[row]) is not None
    ]


def crystal_profile(one: JudgedCrystal) -> Profile:
    """Return what a crystal adds to each histogram; nothing when it is structurally invalid."""
    verdict = one.verdict
    if not verdict.structure_valid or one.crystal is None:
        return {}
    numbers = {"density": verdict.density, "volume_per_atom": verdict.volume_per_atom, "n_elements": float(verdict.n_elements)}
    filled = {f"{family}/all": BINS[family].index(np.array([value], dtype=np.float64)) for family, value in numbers.items()}
    filled["space_group"] = np.array([verdict.space_group], dtype=np.int32)
    filled["element"] = one.crystal.numbers.astype(np.int32)
    filled["size"] = np.array([min(verdict.n_atoms, BINS["size"].n - 1)], dtype=np.int32)
    return filled


def _energies(
    judged: list[JudgedCrystal],
    metrics: dict[str, Estimate],
    extra: dict[str, list[Any]],
    notes: list[str],
    settings: CrystalSettings,
    cache: ResultCache | None,
    step: Callable[[int, int], None] | None,
) -> None:
    order = np.random.default_rng(settings.seed).permutation(len(judged)).tolist()
    chosen = [i for i in order if judged[i].verdict.structure_valid][: settings.n_relax]
    crystals = [c for i in chosen if (c := judged[i].crystal) is not None]
    tasks = [RelaxTask(crystal, settings.calculator) for crystal in crystals]
    found = relax(tasks, n_processes=settings.n_processes, time_limit=settings.time_limit, cache=cache, progress=step)
    judge = f"{settings.calculator} {calculator_version(settings.calculator)}".strip()
    notes.append(f"{judge} relaxed {len(chosen):,} random structurally valid samples")
    columns: dict[str, list[Any]] = {
        "energy": [r.energy for r in found],
        "relaxed_energy": [r.relaxed_energy for r in found],
        "rmsd_to_relaxed": [r.rmsd for r in found],
        "volume_change": [r.volume_change for r in found],
        "relax_steps": [r.n_steps for r in found],
        "relax_problem": [r.reason for r in found],
    }
    n = settings.n_resamples
    done = np.array([r.converged for r in found])
    gains = np.array([r.energy - r.relaxed_energy for r in found], dtype=np.float64)
    metrics["relaxation_energy"] = median(np.where(np.isfinite(gains), gains, np.inf), n_resamples=n)
    metrics["rmsd_to_relaxed"] = median(np.array(columns["rmsd_to_relaxed"], dtype=np.float64), n_resamples=n)
    metrics["volume_change"] = mean(np.array(columns["volume_change"], dtype=np.float64), n_resamples=n)
    metrics["relaxation_failed"] = ratio((~done).astype(np.float64), np.ones(len(done)), n_resamples=n)
    if settings.hull is not None:
        elements = load_element_energies(settings.element_energies or settings.calculator)
        hull = read_hull(settings.hull)
        columns |= _above(crystals, found, elements, hull)
        notes.append(
            f"hull: {Path(settings.hull).name}, {len(hull):,} compositions; formation energies by {judge}, whose mean error is "
            f"{1000 * elements.mae:.0f} meV/atom on {elements.n:,} known crystals"
        )
        verdicts = [judged[i].verdict for i in chosen]
        _stability(verdicts, columns, metrics, len(judged), sum(one.verdict.structure_valid for one in judged), n)
        if any(v.known_label is not None or v.novel is not None for v in verdicts):
            exact = any(v.novel is not None for v in verdicts)
            notes.append(f"novelty in the rates of stable samples is {'that of StructureMatcher' if exact else 'the coarse one'}")
    for column, values in columns.items():
        whole: list[Any] = [None] * len(judged)
        for i, value in zip(chosen, values, strict=True):
            whole[i] = value
        extra[column] = whole


@lru_cache(maxsize=2)
def read_hull(path: str | Path) -> Hull:
    """Read a hull file once, however many sets are compared with it."""
    return load_hull(path)


def _above(
    crystals: Sequence[Crystal], found: Sequence[RelaxResult], elements: ElementEnergies, hull: Hull
) -> dict[str, list[Any]]:
    numbers = [crystal.numbers for crystal in crystals]
    columns: dict[str, list[Any]] = {}
    for title, energies in (("e_above_hull_raw", [r.energy for r in found]), ("e_above_hull", [r.relaxed_energy for r in found])):
        formed = [elements.formation_energy(z, e) for z, e in zip(numbers, energies, strict=True)]
        columns[title] = above_hull(numbers, formed, hull).tolist()
    return columns


def _stability(
    verdicts: Sequence[CrystalVerdict],
    columns: Mapping[str, Sequence[Any]],
    metrics: dict[str, Estimate],
    n_samples: int,
    n_valid: int,
    n_resamples: int,
) -> None:
    """Fill in the medians above the hull and the rates of stable samples."""
    relaxed, raw = (np.array(columns[k], dtype=np.float64) for k in ("e_above_hull", "e_above_hull_raw"))
    for name, values in (("e_above_hull", relaxed), ("e_above_hull_raw", raw)):
        metrics[name] = median(np.where(np.isfinite(values), values, np.inf), n_resamples=n_resamples)
    fresh = np.array([bool(v.unique) and (v.novel if v.novel is not None else v.known_label is False) for v in verdicts])
    one = np.ones(len(verdicts))
    # The subset holds structurally valid samples only; the rates are those of all samples.
    share = n_valid / n_samples if n_samples else math.nan
    with np.errstate(invalid="ignore"):
        low = {
            "stable": relaxed <= ON_HULL,
            "metastable": relaxed <= METASTABLE,
            "stable_raw": raw <= ON_HULL,
            "metastable_raw": raw <= METASTABLE,
        }
    for name in ("stable", "metastable"):
        metrics[name] = ratio(low[name].astype(np.float64), one, n_resamples=n_resamples)
    if all(v.unique is None for v in verdicts) or all(v.novel is None and v.known_label is None for v in verdicts):
        return
    for name, what in (
        ("stable_unique_novel", "stable"),
        ("metastable_unique_novel", "metastable"),
        ("stable_unique_novel_raw", "stable_raw"),
        ("metastable_unique_novel_raw", "metastable_raw"),
    ):
        found = ratio((low[what] & fresh).astype(np.float64), one, n_resamples=n_resamples)
        metrics[name] = Estimate(found.value * share, found.low * share, found.high * share, found.n, found.method)
