"""Several candidates a molecule as a specification: that one comes back whose properties a regressor finds nearest to what is
asked."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.edm import THRESHOLDS, edm_bond_orders
from moldiff.chem.shape import has_shape
from moldiff.chem.valence import stable_atoms
from moldiff.control import Place, Spec
from moldiff.core.batch import AtomBatch
from moldiff.errors import BadRequest, unknown
from moldiff.sampling.candidates import Judged
from moldiff.sampling.control import Control
from moldiff.steer.conditions import Conditions

if TYPE_CHECKING:
    from moldiff.model_store import ModelInfo
    from moldiff.regressor import PropertyRegressor
    from moldiff.samples import Sample

#: What a rank is worse by, in standard deviations: a molecule whose shape is not one of its bonds comes after all others, and an
#: unsound one after these.
MISFIT, UNSOUND = 1e6, 1e9


@dataclass(frozen=True)
class JudgedCandidates(Spec):
    """``rows_each`` molecules are drawn for every sample, told the same conditions; the one nearest to them by ``judge`` is it.

    ``judge`` is a regressor's name or folder, None for that of the model's settings (``sampling.judge``). Distances are in
    standard deviations of the judge's training data, summed over the conditions asked of the sample, and 0 within a range. What
    is not connected, or has atoms of no known valence, comes last, and before that what has a shape that its bonds forbid, of
    which regressors know little (docs/experiments.md). What is predicted comes with a sample as ``NAME_predicted``.
    """

    rows_each: int = 8
    conditions: Conditions | None = None
    judge: str | None = None
    name = "candidates"
    settles = True
    _shared: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def settings(self) -> dict[str, Any]:
        info = self._shared.get("info")
        said = {} if info is None else {"judge": info.name, "judge_sha256": info.weights_sha256}
        return {"each": self.rows_each, **said}

    def check(self, info: ModelInfo) -> None:
        from moldiff.model_store import model_info

        if self.conditions is None:
            raise BadRequest("candidates of molecules are chosen by what is asked of them: name a condition")
        self.conditions.check(info)  # else the judge would be blamed for what the model does not know
        name = info.config.sampling.judge if self.judge is None else self.judge
        if name is None:
            raise BadRequest(f"candidates need a judge, and {info.name} names none: --judge REGRESSOR")
        judge = model_info(name)
        if not judge.config.targets:
            raise BadRequest(f"{judge.name} makes samples and can't judge them: a judge is a regressor of properties")
        for asked, _, _ in self.conditions.values:
            if asked not in judge.config.targets:
                raise unknown(f"property of the judge {judge.name}", asked, judge.config.targets)
        self._shared["info"] = judge

    def cautions(self, info: ModelInfo) -> list[str]:
        from moldiff.chem.formula import named_elements

        judge = self._shared["info"]
        foreign = sorted(set(info.config.vocabulary["atom_types"]) - set(judge.config.vocabulary["atom_types"]))
        return [f"{judge.name} does not know {named_elements(foreign)}: what holds it comes last"] if foreign else []

    def check_beside(self, others: Sequence[Spec]) -> None:
        for other in others:
            if other.rows_each > 1:
                raise BadRequest(f"candidates and {other.name} both draw several systems a sample: ask for one of them")

    def control(self, place: Place) -> Control:
        from moldiff.samples import from_batch

        k = self.rows_each
        members = list(place.indices)[::k]
        judge = self._loaded(place)

        def ranked(group: int, clean: AtomBatch) -> tuple[list[float], list[Mapping[str, Any]]]:
            physical = place.vocabulary.decode(clean.to("cpu"))
            samples = from_batch(physical, range(k), place.info.config.bonds)
            found = judge.predict(samples)
            return self.ranks(members[group], samples, found), self.said(found, k)

        return Judged(ranked, k, n_groups=len(set(members)))

    def ranks(self, index: int, samples: Sequence[Sample], found: Mapping[str, NDArray[np.float64]]) -> list[float]:
        """The rank of each candidate of one sample, given predictions by property: NaN where there is none."""
        assert self.conditions is not None
        stats = self._shared["info"].config.condition_stats
        far = np.zeros(len(samples))
        for name, low, high in self.conditions.wanted(index):
            far = far + outside(found[name], low, high) / stats[name].std
        return [float(far[i]) + (UNSOUND if not sound(s) else 0 if fits(s) else MISFIT) for i, s in enumerate(samples)]

    def said(self, found: Mapping[str, NDArray[np.float64]], k: int) -> list[Mapping[str, Any]]:
        """What each candidate carries: what is predicted of it, of every property that any sample is asked for."""
        assert self.conditions is not None
        names = [name for name, _, _ in self.conditions.values]
        return [{f"{n}_predicted": _rounded(found[n][i]) for n in names} for i in range(k)]

    def _loaded(self, place: Place) -> PropertyRegressor:
        """The judge with its weights on the device of ``place``, loaded once."""
        from moldiff.regressor import PropertyRegressor

        with self._lock:
            if "info" not in self._shared:
                self.check(place.info)
            judge: PropertyRegressor | None = self._shared.get(str(place.device))
            if judge is None:
                judge = self._shared[str(place.device)] = PropertyRegressor(self._shared["info"], place.device)
            return judge


def outside(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """How far values [K] lie outside low to high; 0 within."""
    return np.maximum(np.maximum(low - values, values - high), 0.0)


def sound(sample: Sample) -> bool:
    """Whether a molecule is finite and connected, and each atom has a valence of its element and charge."""
    bonds = sample.bond_types
    if sample.problem or bonds is None or not len(sample):
        return False
    reached = np.zeros(len(sample), dtype=np.bool_)
    reached[0], before = True, 0
    while int(reached.sum()) > before:
        before = int(reached.sum())
        reached |= (bonds[reached] > 0).any(0)
    return bool(reached.all()) and bool(stable_atoms(sample.numbers, bonds, sample.charges).all())


def fits(sample: Sample) -> bool:
    """Whether the shape is one of the bonds: distances by EDM's table, where it knows the elements, and by ``chem.shape``."""
    bonds, positions = sample.bond_types, sample.positions
    if bonds is None or positions is None or not np.isfinite(positions).all():
        return False
    known = THRESHOLDS[0][np.ix_(sample.numbers, sample.numbers)] > 0
    return bool((edm_bond_orders(sample.numbers, positions) == bonds)[known].all()) and has_shape(bonds, positions)


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None
