"""The shipped regressors as judges of ``evaluate``: what was asked of samples against what a trained network finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.evaluation.conditional import Kind, Regressor, register_regressor
from moldiff.model_store import list_models
from moldiff.regressor import PropertyRegressor

_KINDS: dict[str, Kind] = {"molecule": "molecule"}
_NOTHING = (np.zeros(0, dtype=np.int64), np.zeros((0, 3)))


@lru_cache(maxsize=1)
def register_shipped() -> None:
    """Let every regressor of the package judge later evaluations; their weights are loaded when one is first asked."""
    for info in list_models():
        kind = _KINDS.get(info.config.kind)
        if info.config.targets and kind is not None:
            register_regressor(Regressor(info.name, kind, tuple(info.config.targets), partial(_predict, info.name)))


def _predict(name: str, samples: Sequence[Any]) -> Mapping[str, NDArray[np.float64]]:
    """Predictions [n] of examined molecules as they came; NaN for those that are not valid and connected."""
    pairs = []
    for one in samples:
        entry, verdict = one.entry, one.verdict
        sound = verdict.valid and verdict.connected and entry.numbers is not None and entry.positions is not None
        pairs.append((entry.numbers, entry.positions) if sound else _NOTHING)
    return PropertyRegressor.from_pretrained(name).predict(pairs)
