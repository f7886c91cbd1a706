"""Crystal structure prediction: how many true structures are found, and how closely.

Sources: match rate and RMSE: Xie et al., CDVAE, ICLR 2022; Jiao et al., DiffCSP, NeurIPS 2023 (StructureMatcher with stol 0.5,
ltol 0.3, angle_tol 10). METRe and cRMSE: Martirossyan et al., "All that structure matches does not glitter", arXiv:2509.12178.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.crystals import Crystal, check_crystal
from moldiff.evaluation.bootstrap import Estimate, mean, ratio
from moldiff.evaluation.cache import ResultCache
from moldiff.evaluation.crystals.composition import smact_valid
from moldiff.evaluation.crystals.matching import CSP, PAIR_LIMIT, Pair, compare_all, composition_key
from moldiff.evaluation.parallel import Progress

#: Pairs across requests that METRe may need: of 2,000 structures of one element (carbon_24) it would take four million.
MOST_ACROSS = 200_000


@dataclass(frozen=True)
class CspResult:
    """The comparisons of n true structures with k predictions each.

    ``rms`` [n, k] holds the RMS distance of each prediction to its own truth in units of (V/N)^(1/3), NaN where they do not
    match; ``counted`` [n, k] tells whether prediction and truth are both valid (structure and, where ``composition`` is set,
    SMACT). ``metre_rms`` [n]: the least distance of any first prediction of the same composition, NaN where none matches.
    ``given_up``: pairs that took too long or could not be compared, counted as no match. ``n_across``: pairs across requests of
    one composition that were too many to be compared; METRe and cRMSE are then left out (0 otherwise).
    """

    rms: NDArray[np.float64]
    counted: NDArray[np.bool_]
    metre_rms: NDArray[np.float64]
    composition: bool
    given_up: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    n_across: int = 0

    @property
    def n(self) -> int:
        """Number of true structures."""
        return len(self.rms)

    def best(self, k: int, *, valid: bool = False) -> NDArray[np.float64]:
        """Return the least RMS distance among the first k predictions of each truth [n], NaN where none matches."""
        rms = np.where(self.counted, self.rms, np.nan) if valid else self.rms
        part = np.where(np.isnan(rms[:, :k]), np.inf, rms[:, :k]).min(axis=1, initial=np.inf)
        return np.where(np.isinf(part), np.nan, part)

    def metrics(self, ks: Sequence[int] = (1, 20), *, n_resamples: int = 1000) -> dict[str, Estimate]:
        """Return match rates and RMSEs at 1 and at every k of ``ks`` that there are predictions for, METRe and cRMSE."""
        table: dict[str, Estimate] = {}
        sizes = sorted({k for k in ks if 1 <= k <= self.rms.shape[1]} | {1})
        for k in sizes:
            suffix = "" if k == 1 else f"/at_{k}"
            for name, valid in (("", False), ("_valid", True)):
                best = self.best(k, valid=valid)
                table[f"match_rate{name}{suffix}"] = _rate(~np.isnan(best), n_resamples)
                table[f"match_rmse{name}{suffix}"] = mean(best, n_resamples=n_resamples)
        if self.n_across:
            return table
        table["metre"] = _rate(~np.isnan(self.metre_rms), n_resamples)
        table["crmse"] = mean(np.where(np.isnan(self.metre_rms), CSP.stol, self.metre_rms), n_resamples=n_resamples)
        return table

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a true structure: the RMS of its first prediction and the best of all, NaN where none matches."""
        every = self.best(self.rms.shape[1])
        return [
            {
                "rms": float(self.rms[i, 0]),
                "best_rms": float(every[i]),
                "metre_rms": math.nan if self.n_across else float(self.metre_rms[i]),
            }
            for i in range(self.n)
        ]


def compare_predictions(
    truths: Sequence[Crystal],
    predictions: Sequence[Sequence[Crystal | None]],
    *,
    composition: bool = True,
    limit: float = PAIR_LIMIT,
    n_processes: int | None = None,
    cache: ResultCache | None = None,
    progress: Progress | None = None,
) -> CspResult:
    """Compare the predictions of every true structure with it.

    ``predictions`` [n][<= k], None for one that failed; all stay in the denominators. ``composition`` counts SMACT's verdict in
    the rates over valid structures, as the literature does (raises MoldiffError when SMACT is missing). ``limit`` (s) holds for
    each pair. Raises ValueError when the two lengths differ.
    """
    if len(truths) != len(predictions):
        raise ValueError(f"{len(truths)} true structures, {len(predictions)} sets of predictions")
    n, k = len(truths), max((len(p) for p in predictions), default=0)
    sound = {(i, j): _sound(c) for i, row in enumerate(predictions) for j, c in enumerate(row)}
    # Overlapping atoms make a prediction invalid, but may still lie near those of the truth: over all, that is a match.
    places = [place for place, reason in sound.items() if reason in ("", "overlapping atoms")]
    # METRe looks at the first prediction of every request that has the truth's composition.
    same: defaultdict[object, list[int]] = defaultdict(list)
    for i, truth in enumerate(truths):
        same[composition_key(truth.numbers)].append(i)
    n_across = sum(len(others) * (len(others) - 1) for others in same.values())
    across = [
        (i, other)
        for others in (same.values() if n_across <= MOST_ACROSS else ())
        for i in others
        for other in others
        if other != i and predictions[other] and sound[other, 0] in ("", "overlapping atoms")
    ]
    pairs = [Pair(_crystal(predictions[i][j]), truths[i], limit=limit) for i, j in places]
    pairs += [Pair(_crystal(predictions[other][0]), truths[i], limit=limit) for i, other in across]
    found = compare_all(pairs, n_processes=n_processes, cache=cache, progress=progress)
    rms = np.full((n, max(k, 1)), np.nan)
    for (i, j), match in zip(places, found[: len(places)], strict=True):
        rms[i, j] = np.nan if match.rms is None else match.rms
    metre = rms[:, 0].copy()
    for (i, _), match in zip(across, found[len(places) :], strict=True):
        if match.rms is not None:
            metre[i] = np.fmin(metre[i], match.rms)
    counted = np.zeros_like(rms, dtype=np.bool_)
    for place in places:
        counted[place] = not sound[place]
    if composition:
        formulas = [truth.reduced_formula for truth in truths]
        balanced = np.array(smact_valid(formulas, n_processes=n_processes), dtype=np.bool_).reshape(n, 1)
        # A prediction that matches has the composition of its truth, so that one verdict serves both.
        counted &= balanced
    counted &= np.array([not _sound(truth) for truth in truths], dtype=np.bool_).reshape(n, 1)
    reasons: dict[str, int] = {}
    for reason in filter(None, sound.values()):
        reasons[reason] = reasons.get(reason, 0) + 1
    given_up = sum(match.given_up for match in found)
    return CspResult(rms, counted, metre, composition, given_up, reasons, n_across if n_across > MOST_ACROSS else 0)


def _sound(crystal: Crystal | None) -> str:
    """Say why a crystal is structurally invalid, or return an empty string."""
    if crystal is None:
        return "no structure"
    return check_crystal(crystal.numbers, crystal.frac_coords, crystal.lattice)


def _crystal(crystal: Crystal | None) -> Crystal:
    assert crystal is not None
    return crystal


def _rate(hits: NDArray[np.bool_], n_resamples: int) -> Estimate:
    return ratio(hits.astype(np.float64), np.ones(len(hits)), n_resamples=n_resamples)
