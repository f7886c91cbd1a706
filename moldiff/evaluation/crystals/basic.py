"""Verdicts on crystals that need no reference and no energy, and their rates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.crystals import MIN_DISTANCE, Crystal, check_crystal
from moldiff.chem.symmetry import fingerprint, space_group
from moldiff.data.crystal_entry import CrystalEntry, CrystalRow
from moldiff.evaluation.crystals.composition import smact_valid
from moldiff.evaluation.crystals.matching import TooLate, within
from moldiff.evaluation.parallel import Progress, map_items

#: Tolerances (Å) at which a crystal's prototype is looked up: noise hides symmetry from a tight one, a loose one invents it.
LABEL_TOLERANCES = (0.3, 0.1, 0.01)
#: Seconds that reading a crystal may take, and judging it; most take 10 ms.
LIMIT = 30.0
#: Cells of more atoms are not judged: pairs of atoms are counted, and no model makes such cells.
MAX_ATOMS = 2000


@dataclass(frozen=True)
class CrystalVerdict:
    """What was found of one crystal.

    ``structure_valid``: all numbers are finite, no two atoms (images included) are closer than 0.5 Å and the cell has a volume;
    ``reason`` says why not. ``composition_valid``: SMACT (None where it was not asked). ``formula`` is reduced, ``density`` in
    g/cm^3, ``volume_per_atom`` in Å^3, ``min_distance`` in Å, ``space_group`` its number. ``cluster`` numbers the different
    structures in the order of their first sample, ``unique`` marks that sample (None where not computed). ``novel``: the
    reference has no such structure; ``known_label``: it has one of this composition and prototype label.
    """

    name: str
    formula: str = ""
    n_atoms: int = 0
    n_elements: int = 0
    structure_valid: bool = False
    composition_valid: bool | None = None
    reason: str = ""
    space_group: int = 0
    symbol: str = ""
    density: float | None = None
    volume_per_atom: float | None = None
    min_distance: float | None = None
    cluster: int | None = None
    unique: bool | None = None
    novel: bool | None = None
    known_label: bool | None = None

    @property
    def valid(self) -> bool:
        """Structurally valid, and compositionally where that was asked."""
        return self.structure_valid and self.composition_valid is not False

    def row(self) -> dict[str, Any]:
        """Return the verdict as one row of ``per_sample.csv``."""
        return {**self.__dict__, "valid": self.valid}


@dataclass(frozen=True)
class JudgedCrystal:
    """A verdict with the crystal that it is on (None for one that could not be read), its labels for coarse look-ups, and the
    numbers that its file gives (``properties``)."""

    verdict: CrystalVerdict
    crystal: Crystal | None = None
    labels: tuple[str, ...] = ()
    properties: Mapping[str, float] = field(default_factory=dict)


def judge_crystal(row: CrystalRow) -> JudgedCrystal:
    """Read and judge one crystal by itself, within ``LIMIT`` seconds; never raises for a bad one."""
    try:
        entry = within(LIMIT, row.entry)
    except TooLate:
        return _crashed(row, f"longer than {LIMIT:g} s to read")
    try:
        judged = within(LIMIT, _judge, entry)
    except TooLate:
        judged = JudgedCrystal(CrystalVerdict(entry.name, reason=f"longer than {LIMIT:g} s to judge"))
    return replace(judged, properties=entry.properties)


def _judge(entry: CrystalEntry) -> JudgedCrystal:
    crystal = entry.crystal
    if entry.problem or crystal is None:
        return JudgedCrystal(CrystalVerdict(entry.name, reason=entry.problem or "no atoms"))
    if len(crystal) > MAX_ATOMS:
        return JudgedCrystal(CrystalVerdict(entry.name, n_atoms=len(crystal), reason=f"more than {MAX_ATOMS:,} atoms"))
    verdict = CrystalVerdict(entry.name, n_atoms=len(crystal))
    reason = check_crystal(crystal.numbers, crystal.frac_coords, crystal.lattice)
    if len(crystal) and crystal.numbers.min() >= 1 and crystal.numbers.max() <= 118:
        n_elements = len(np.unique(crystal.numbers))
        verdict = replace(verdict, formula=crystal.reduced_formula, n_elements=n_elements)
    if reason == "overlapping atoms":
        verdict = replace(verdict, min_distance=crystal.min_distance)
        reason = f"atoms closer than {MIN_DISTANCE:g} Å"
    if reason:
        return JudgedCrystal(replace(verdict, reason=reason), None if "finite" in reason or not len(crystal) else crystal)
    group = space_group(crystal)
    verdict = replace(
        verdict,
        structure_valid=True,
        space_group=group.number,
        symbol=group.symbol,
        density=crystal.density,
        volume_per_atom=crystal.volume / len(crystal),
        min_distance=crystal.min_distance,
    )
    return JudgedCrystal(verdict, crystal, tuple(dict.fromkeys(fingerprint(crystal, tol) for tol in LABEL_TOLERANCES)))


def judge_crystals(
    rows: Sequence[CrystalRow],
    *,
    composition: bool = True,
    n_processes: int | None = None,
    progress: Progress | None = None,
) -> list[JudgedCrystal]:
    """Judge many crystals over the cores; ``composition`` adds SMACT. Raises MoldiffError when SMACT is asked for and missing."""
    found = map_items(judge_crystal, rows, _crashed, n_processes=n_processes, progress=progress)
    if not composition:
        return found
    asked = [i for i, one in enumerate(found) if one.verdict.formula]
    answers = dict(zip(asked, smact_valid([found[i].verdict.formula for i in asked], n_processes=n_processes), strict=True))
    return [replace(one, verdict=replace(one.verdict, composition_valid=answers.get(i, False))) for i, one in enumerate(found)]


def entries_of(crystals: Iterable[Crystal | None], names: Sequence[str] | None = None) -> list[CrystalEntry]:
    """Make entries of crystals in memory; None stands for a sample that failed."""
    return [
        CrystalEntry(
            i, f"sample_{i}" if names is None else names[i], i, crystal, problem="" if crystal is not None else "no structure"
        )
        for i, crystal in enumerate(crystals)
    ]


def fractions(verdicts: Sequence[CrystalVerdict]) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return numerator and denominator of every rate as one value a sample, so that a rate is their ratio of sums."""

    def column(name: str) -> NDArray[np.float64]:
        return np.array([float(getattr(v, name) or 0) for v in verdicts])

    one = np.ones(len(verdicts))
    structure = column("structure_valid")
    table = {"structure_validity": (structure, one)}
    if any(v.composition_valid is not None for v in verdicts):
        table["composition_validity"] = (column("composition_valid"), one)
        table["crystal_validity"] = (column("valid"), one)
    if any(v.unique is not None for v in verdicts):
        unique = column("unique")
        table["crystal_uniqueness"] = (unique, structure)
        if any(v.novel is not None for v in verdicts):
            table["crystal_novelty"] = (unique * column("novel"), unique)
            table["unique_novel"] = (unique * column("novel"), one)
        if any(v.known_label is not None for v in verdicts):
            coarse = unique * np.array([float(v.known_label is False) for v in verdicts])
            table["crystal_novelty_coarse"] = (coarse, unique)
            table["unique_novel_coarse"] = (coarse, one)
    return table


def failures(verdicts: Sequence[CrystalVerdict]) -> Mapping[str, int]:
    """Count the structurally invalid samples by reason, the commonest first."""
    counts: dict[str, int] = {}
    for verdict in verdicts:
        if not verdict.structure_valid:
            counts[verdict.reason] = counts.get(verdict.reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _crashed(row: CrystalRow, reason: str) -> JudgedCrystal:
    return JudgedCrystal(CrystalVerdict(row.name, reason=reason))
