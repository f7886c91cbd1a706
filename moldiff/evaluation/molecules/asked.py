"""Whether molecules have the properties that were asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from moldiff.evaluation.bootstrap import Estimate
from moldiff.evaluation.cache import ResultCache
from moldiff.evaluation.conditional import CALCULATED, asked_values, property_metrics, regressors, unjudged
from moldiff.evaluation.molecules.energy import XtbTask, has_tblite, xtb
from moldiff.evaluation.reference import Reference

if TYPE_CHECKING:
    from moldiff.evaluation.molecules.sets import Examined, Settings


def judge_properties(
    name: str,
    samples: list[Examined],
    good: list[int],
    reference: Reference | None,
    metrics: dict[str, Estimate],
    extra: dict[str, list[Any]],
    notes: list[str],
    settings: Settings,
    cache: ResultCache | None,
    step: Any,
) -> None:
    """Compare what was asked for with GFN2-xTB on the geometry as it came, and with regressors."""
    given = None if settings.properties is None else dict(settings.properties)
    asked = asked_values([s.entry.properties for s in samples], given, name)
    if not asked:
        return
    notes += [f"asked {column}: nothing here computes it" for column in unjudged(asked, "molecule")]
    wanted = [column for column in CALCULATED["molecule"] if column in asked]
    values = {column: np.full(len(samples), np.nan) for column in wanted}
    if wanted and not has_tblite():
        notes.append("asked properties were not computed: that needs tblite (pip install tblite)")
    elif wanted:
        chosen = sorted(i for i in good if any(np.isfinite(asked[column][i]) for column in wanted))
        tasks = []
        for i in chosen:
            entry = samples[i].entry
            assert entry.numbers is not None and entry.positions is not None
            tasks.append(XtbTask(entry.numbers, entry.positions, samples[i].verdict.charge, None, relax=False))
        found = xtb(tasks, n_processes=settings.n_processes, time_limit=settings.time_limit, cache=cache, progress=step)
        for column in wanted:
            values[column][chosen] = [getattr(result, column) for result in found]
        notes.append(f"asked properties by GFN2-xTB on the geometry as it came, {len(chosen):,} valid and connected samples")
    learnt = {r.name: r.predict(samples) for r in regressors("molecule") if set(r.properties) & set(asked)}
    notes += [f"regressor: {one}" for one in learnt]
    sizes = np.array([s.verdict.n_atoms for s in samples])
    for column, goal in asked.items():
        extra[f"asked_{column}"] = _plain(goal)
        if column in values:
            extra[f"calculated_{column}"] = _plain(values[column])
        metrics |= property_metrics(
            column,
            goal,
            values.get(column, np.full(len(samples), np.nan)),
            sizes,
            None if reference is None else reference.properties.get(column),
            learnt={one: found[column] for one, found in learnt.items() if column in found},
            n_resamples=settings.n_resamples,
        )


def _plain(values: np.ndarray) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]
