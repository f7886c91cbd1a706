"""Distances between the distributions of samples and of real molecules.

Sources: Wasserstein-1 by type, weighted by the type's frequency in the data: Vignac, Osman, Toni and Frossard, "MiDi: Mixed Graph
and 3D Denoising Diffusion for Molecule Generation", ECML 2023; on the circle: Delon, Salomon and Sobolevski, SIAM J. Appl.
Math. 70, 2239 (2010). Diversity: Benhenda, arXiv:1708.08227 (2017); Polykovskiy et al., Front. Pharmacol. 11, 565644 (2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moldiff.evaluation.bootstrap import Estimate, distance
from moldiff.evaluation.molecules.geometry import bond_angles, bond_lengths, internals, torsion_angles
from moldiff.evaluation.molecules.groups import NAMES

if TYPE_CHECKING:
    from moldiff.chem.bonds import Bonds

Array = NDArray[np.float64]
Counts = Mapping[str, NDArray[np.int64]]
#: One molecule's contribution: for each histogram the bins that it adds one to.
Profile = dict[str, NDArray[np.int32]]


@dataclass(frozen=True)
class Bins:
    """A histogram's bins: ``n`` of ``width`` (``unit``) from ``start``; values outside fall into the end bins."""

    start: float
    width: float
    n: int
    unit: str = ""

    def index(self, values: Array) -> NDArray[np.int32]:
        """Return the bins of finite values; others are left out."""
        values = values[np.isfinite(values)]
        return np.floor((values - self.start) / self.width + 1e-9).clip(0, self.n - 1).astype(np.int32)

    def centres(self) -> Array:
        """Return the middle of each bin."""
        return np.asarray(self.start + self.width * (np.arange(self.n) + 0.5), dtype=np.float64)


#: Families of histograms; a family that is split by type has one histogram for each label (``bond_length/C-N``).
BINS: dict[str, Bins] = {
    "bond_length": Bins(0.5, 0.001, 2500, "Å"),
    "angle": Bins(0.0, 0.1, 1800, "°"),
    "torsion": Bins(-180.0, 1.0, 360, "°"),
    "element": Bins(-0.5, 1.0, 119),
    "size": Bins(-0.5, 1.0, 513, "atoms"),
    "ring_size": Bins(-0.5, 1.0, 33, "atoms"),
    "functional_group": Bins(-0.5, 1.0, len(NAMES)),
    "density": Bins(0.0, 0.01, 4000, "g/cm³"),
    "volume_per_atom": Bins(0.0, 0.05, 4000, "Å³"),
    "n_elements": Bins(-0.5, 1.0, 33),
    "space_group": Bins(-0.5, 1.0, 231),
}
#: Metric, its family and the kind of distance.
DISTANCES: dict[str, tuple[str, str]] = {
    "bond_length_wasserstein": ("bond_length", "wasserstein"),
    "angle_wasserstein": ("angle", "wasserstein"),
    "torsion_wasserstein": ("torsion", "circular"),
    "bond_type_tv": ("bond_length", "types"),
    "element_tv": ("element", "variation"),
    "size_tv": ("size", "variation"),
    "ring_size_tv": ("ring_size", "variation"),
    "functional_group_tv": ("functional_group", "variation"),
    "density_wasserstein": ("density", "wasserstein"),
    "n_elements_wasserstein": ("n_elements", "wasserstein"),
    "volume_wasserstein": ("volume_per_atom", "wasserstein"),
    "space_group_tv": ("space_group", "variation"),
}


def profile(numbers: Any, positions: Any | None, bonds: Bonds | None, mol: Any | None) -> Profile:
    """Return what one molecule adds to each histogram.

    ``numbers`` [N] and, where known, ``positions`` [N, 3] (Å), ``bonds`` and the sanitised RDKit ``mol``: without bonds only
    elements and size are filled in, without ``mol`` no rings and groups.
    """
    from moldiff.evaluation.molecules.groups import functional_groups

    z = np.asarray(numbers, dtype=np.int64)
    filled: dict[str, NDArray[np.int32]] = {
        "element": z.clip(0, 118).astype(np.int32),
        "size": np.array([min(len(z), BINS["size"].n - 1)], dtype=np.int32),
    }
    if mol is not None:
        rings = [len(ring) for ring in mol.GetRingInfo().AtomRings()] or [0]
        filled["ring_size"] = np.array(rings, dtype=np.int32).clip(max=BINS["ring_size"].n - 1)
        filled["functional_group"] = np.array(functional_groups(mol), dtype=np.int32)
    if bonds is not None and positions is not None:
        inner = internals(z, bonds)
        for family, labels, values in (
            ("bond_length", inner.bond_labels, bond_lengths(positions, inner.bonds)),
            ("angle", inner.angle_labels, bond_angles(positions, inner.angles)),
            ("torsion", inner.torsion_labels, torsion_angles(positions, inner.torsions)),
        ):
            kinds = np.array(labels)
            for label in sorted(set(labels)):
                filled[f"{family}/{label}"] = BINS[family].index(values[kinds == label])
    return filled


@dataclass(frozen=True)
class Values:
    """The bins of many molecules, so that histograms under any weights of the molecules are one ``bincount``.

    ``slots`` [K] are bins in one long row of all histograms, ``owner`` [K] the molecule of each; ``offsets`` where each
    histogram begins.
    """

    n: int
    slots: NDArray[np.int64]
    owner: NDArray[np.int64]
    offsets: dict[str, int]

    def histograms(self, weights: NDArray[Any] | None = None) -> dict[str, Array]:
        """Return the counts of every histogram, molecules counted ``weights`` [n] times (once when None)."""
        total = sum(_bins(name).n for name in self.offsets)
        row = np.bincount(self.slots, None if weights is None else weights[self.owner], minlength=total).astype(np.float64)
        return {name: row[start : start + _bins(name).n] for name, start in self.offsets.items()}


def collect(profiles: Sequence[Profile]) -> Values:
    """Join the profiles of a set."""
    offsets: dict[str, int] = {}
    total = 0
    slots, owner = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for i, one in enumerate(profiles):
        for name, bins in one.items():
            if name not in offsets:
                offsets[name] = total
                total += _bins(name).n
            slots.append(bins.astype(np.int64) + offsets[name])
            owner.append(np.full(len(bins), i, dtype=np.int64))
    return Values(len(profiles), np.concatenate(slots), np.concatenate(owner), offsets)


def add_profile(counts: dict[str, NDArray[np.int64]], one: Profile) -> None:
    """Add one molecule to the histograms of a reference."""
    for name, bins in one.items():
        if name not in counts:
            counts[name] = np.zeros(_bins(name).n, dtype=np.int64)
        np.add.at(counts[name], bins, 1)


def distances(values: Values, reference: Counts, *, n_resamples: int = 200) -> dict[str, Estimate]:
    """Compute every metric of ``DISTANCES`` with its interval; those that need coordinates are absent where there are none."""
    histograms = values.histograms()
    found = {}
    for metric in DISTANCES:
        value = _distance(metric, histograms, reference)
        if value is not None:
            family = DISTANCES[metric][0]
            narrow = _only(values, family)
            statistic = partial(_weighted, metric, narrow, reference)
            found[metric] = distance(value, narrow.n, statistic, n_resamples=n_resamples)
    return found


def distances_at(values: Values, reference: Counts, n: int, *, n_draws: int = 20, seed: int = 0) -> dict[str, Estimate]:
    """Compute the distances of ``n_draws`` random subsets of ``n`` molecules: their means, and the range of 95 % of them.

    A distance falls with n even for real data, so a set of samples is to be compared with as many real molecules.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(n_draws):
        weights = np.zeros(values.n)
        weights[rng.permutation(values.n)[:n]] = 1.0
        histograms = values.histograms(weights)
        for metric in DISTANCES:
            value = _distance(metric, histograms, reference)
            if value is not None:
                found.setdefault(metric, []).append(value)
    low, high = ({metric: float(np.quantile(draws, q)) for metric, draws in found.items()} for q in (0.025, 0.975))
    method = f"range of {n_draws} subsets"
    return {metric: Estimate(float(np.mean(draws)), low[metric], high[metric], n, method) for metric, draws in found.items()}


def by_type(values: Values, reference: Counts, family: str) -> dict[str, tuple[float, float]]:
    """Return, for each type of a family, its share in the reference and its Wasserstein distance (NaN where no sample has it)."""
    histograms = values.histograms()
    circular = DISTANCES["torsion_wasserstein"][0] == family
    rows = {}
    total = sum(float(h.sum()) for name, h in reference.items() if name.startswith(family + "/"))
    for name, theirs in reference.items():
        if name.startswith(family + "/") and theirs.sum():
            ours = histograms.get(name)
            there = ours is not None and ours.sum() > 0
            rows[name.split("/", 1)[1]] = (
                float(theirs.sum()) / total,
                wasserstein(ours, theirs, BINS[family].width, circular=circular) if ours is not None and there else math.nan,
            )
    return dict(sorted(rows.items(), key=lambda row: -row[1][0]))


def wasserstein(p: NDArray[Any], q: NDArray[Any], width: float, *, circular: bool = False) -> float:
    """Return the Wasserstein-1 distance of two histograms over the same bins, in units of ``width``; exact to one bin width.

    ``circular`` closes the axis to a circle, where the mass takes the shorter way round.
    """
    gap = np.cumsum(p / p.sum() - q / q.sum())
    return float(np.abs(gap - np.median(gap)).sum() if circular else np.abs(gap).sum()) * width


def total_variation(p: NDArray[Any], q: NDArray[Any]) -> float:
    """Return the total variation distance of two histograms: half of the summed absolute differences, 0..1."""
    return float(np.abs(p / p.sum() - q / q.sum()).sum()) / 2


def diversity(smiles: Sequence[str], *, at_most: int = 1000, n_resamples: int = 200) -> Estimate:
    """Return the mean Tanimoto distance over all pairs of molecules (Morgan fingerprints, radius 2, 2,048 bits).

    Of more than ``at_most`` molecules that many are drawn (seed 0).
    """
    from rdkit import Chem, DataStructs, rdBase
    from rdkit.Chem import rdFingerprintGenerator

    if len(smiles) > at_most:
        smiles = [smiles[i] for i in np.sort(np.random.default_rng(0).permutation(len(smiles))[:at_most])]
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    with rdBase.BlockLogs():
        prints = [generator.GetFingerprint(mol) for mol in map(Chem.MolFromSmiles, smiles) if mol is not None]
    n = len(prints)
    if n < 2:
        return Estimate(math.nan, math.nan, math.nan, n)
    apart = 1 - np.array([DataStructs.BulkTanimotoSimilarity(p, prints) for p in prints])

    def average(weights: NDArray[Any]) -> float:
        w = weights.astype(np.float64)
        # A molecule drawn twice is not a pair with itself.
        pairs = float(w.sum() ** 2 - (w**2).sum())
        return float(w @ apart @ w) / pairs if pairs else math.nan

    return distance(average(np.ones(n)), n, average, n_resamples=n_resamples)


def _bins(name: str) -> Bins:
    return BINS[name.split("/", 1)[0]]


def _only(values: Values, family: str) -> Values:
    """Keep the histograms of one family and the molecules that are in them: a resample then counts only these."""
    kept = {name: start for name, start in values.offsets.items() if name.split("/", 1)[0] == family}
    slots, owner, offsets, total = [], [], {}, 0
    for name, start in kept.items():
        size = _bins(name).n
        inside = (values.slots >= start) & (values.slots < start + size)
        slots.append(values.slots[inside] - start + total)
        owner.append(values.owner[inside])
        offsets[name] = total
        total += size
    present, renumbered = np.unique(np.concatenate(owner), return_inverse=True)
    return Values(len(present), np.concatenate(slots), renumbered, offsets)


def _weighted(metric: str, values: Values, reference: Counts, weights: NDArray[np.int64]) -> float:
    value = _distance(metric, values.histograms(weights), reference)
    return math.nan if value is None else value


def _distance(metric: str, ours: Mapping[str, Array], reference: Counts) -> float | None:
    family, kind = DISTANCES[metric]
    names = [name for name in reference if name.split("/", 1)[0] == family and reference[name].sum()]
    if kind == "variation":
        if not names or family not in ours or not ours[family].sum():
            return None
        return total_variation(ours[family], reference[family])
    mine = {name: h for name, h in ours.items() if name.startswith(family + "/") and h.sum()}
    if not mine or not names:
        return None
    if kind == "types":
        labels = sorted(mine.keys() | set(names))
        p = np.array([mine[n].sum() if n in mine else 0.0 for n in labels])
        return total_variation(p, np.array([reference[n].sum() if n in reference else 0 for n in labels]))
    shared = [name for name in names if name in mine]
    if not shared:
        return None
    share = np.array([float(reference[name].sum()) for name in shared])
    width, circular = BINS[family].width, kind == "circular"
    each = np.array([wasserstein(mine[name], reference[name], width, circular=circular) for name in shared])
    return float((share * each).sum() / share.sum())
