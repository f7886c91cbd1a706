"""Whether crystals have the properties that were asked for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from moldiff.evaluation.bootstrap import Estimate
from moldiff.evaluation.conditional import asked_values, property_metrics, regressors, unjudged
from moldiff.evaluation.crystals.basic import JudgedCrystal
from moldiff.evaluation.reference import Reference

if TYPE_CHECKING:
    from moldiff.evaluation.crystals.sets import CrystalSettings


def judge_properties(
    name: str,
    judged: list[JudgedCrystal],
    reference: Reference | None,
    metrics: dict[str, Estimate],
    extra: dict[str, list[Any]],
    notes: list[str],
    settings: CrystalSettings,
) -> None:
    """Compare what was asked for with the density, the relaxed energy above the hull, and regressors."""
    given = None if settings.properties is None else dict(settings.properties)
    asked = asked_values([one.properties for one in judged], given, name)
    if not asked:
        return
    notes += [f"asked {column}: nothing here computes it" for column in unjudged(asked, "crystal")]
    if "e_above_hull" in asked and "e_above_hull" not in extra:
        notes.append("asked e_above_hull was not computed: that needs a calculator (relax) and a hull file (hull)")
    values = {"density": [one.verdict.density for one in judged], "e_above_hull": extra.get("e_above_hull", [None] * len(judged))}
    learnt = {r.name: r.predict(judged) for r in regressors("crystal") if set(r.properties) & set(asked)}
    notes += [f"regressor: {one}" for one in learnt]
    sizes = np.array([one.verdict.n_atoms for one in judged])
    for column, goal in asked.items():
        extra[f"asked_{column}"] = [value if math.isfinite(value) else None for value in goal.tolist()]
        found = np.array(values.get(column, [None] * len(judged)), dtype=np.float64)
        if column == "e_above_hull":
            # Only the random subset was relaxed; a sample outside it has not failed.
            goal = np.where([r is not None for r in extra.get("relax_problem", [None] * len(judged))], goal, np.nan)
        metrics |= property_metrics(
            column,
            goal,
            found,
            sizes,
            None if reference is None else reference.properties.get(column),
            learnt={one: by[column] for one, by in learnt.items() if column in by},
            n_resamples=settings.n_resamples,
        )
