"""What training finds of its conditions: by what they are standardised, and in which range they were seen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from moldiff.config import ConditionStats, Config
from moldiff.data.store import PROPERTY
from moldiff.errors import BadRequest, unknown

#: Digits that are kept: settings stay readable, and a standardised value moves by less than a float32's own rounding of it.
_DIGITS = 7


def with_condition_stats(config: Config, columns: Mapping[str, Tensor], units: Mapping[str, str] | None = None) -> Config:
    """The settings with ``condition_stats`` filled from a store's property columns; statistics that are there are kept.

    ``units`` gives the columns' units. Raises ``BadRequest`` for a condition without a column, one without known values or with
    one value only, and for a class that is not among those declared.
    """
    for name in config.condition_classes:
        if name not in config.conditions:
            raise unknown("condition (in condition_classes)", name, config.conditions)
    names = [*config.conditions, *config.targets]
    stats = {name: found for name, found in config.condition_stats.items() if name in names}
    for name in names:
        if name in stats:
            continue
        if PROPERTY + name not in columns:
            known = sorted(key.removeprefix(PROPERTY) for key in columns if key.startswith(PROPERTY))
            raise BadRequest(f"the data has no column {name!r} (known: {', '.join(known) or 'none'})")
        unit = (units or {}).get(name, "")
        stats[name] = condition_stats(name, columns[PROPERTY + name], unit, config.condition_classes.get(name, 0))
    return config.model_copy(update={"condition_stats": stats})


def condition_stats(name: str, values: Tensor, unit: str = "", n_classes: int = 0) -> ConditionStats:
    """The statistics of one column [M], NaN where unknown; raises ``BadRequest`` where it can't be learned."""
    known = values[values.isfinite()].double()
    if not len(known):
        raise BadRequest(f"the column {name!r} has no known value: nothing can be learned from it")
    least, greatest = float(known.min()), float(known.max())
    if n_classes:
        wrong = known[(known != known.round()) | (known < 0) | (known >= n_classes)]
        if len(wrong):
            raise BadRequest(f"the column {name!r} holds {float(wrong[0]):g}, which is no class 0 to {n_classes - 1}")
        mean, std = 0.0, 1.0
    else:
        mean, std = float(known.mean()), float(known.std(correction=0))
        if not greatest > least:
            raise BadRequest(f"the column {name!r} has the value {least:g} only: nothing can be learned from it")
    low, high = torch.quantile(known, torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()
    numbers = {"mean": mean, "std": std, "low": low, "high": high, "least": least, "greatest": greatest}
    rounded = {key: float(f"{value:.{_DIGITS}g}") for key, value in numbers.items()}
    return ConditionStats(unit=unit, known=len(known), **rounded)


def standardised(config: Config, columns: Mapping[str, Tensor]) -> Tensor | None:
    """The conditions as the network sees them, float32 [M, n_conditions], NaN where unknown; None for a model without.

    A regressor's targets take their place.

    A condition with statistics and without a column (one that the model knows from earlier training) is unknown everywhere.
    """
    names = config.targets or config.conditions
    if not names:
        return None
    n = len(columns["n_atoms"])
    parts = []
    for name in names:
        values = columns.get(PROPERTY + name)
        if values is None:
            parts.append(torch.full((n,), torch.nan))
        else:
            values = torch.where(values.isfinite(), values, torch.nan).double()
            parts.append(config.condition_stats[name].standardise(values).float())
    return torch.stack(parts, -1)
