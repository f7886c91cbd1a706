"""Do samples have the properties that were asked for: errors against a calculation or a regressor, and rows to compare with.

The rows beside the error follow Hoogeboom et al., Equivariant Diffusion for Molecule Generation in 3D, ICML 2022: a random real
system instead of a sample, and a random one of the sample's size. The judge there is a regressor; a calculation is stricter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moldiff.errors import BadRequest, unknown
from moldiff.evaluation.bootstrap import Estimate, mean, ratio

Kind = Literal["molecule", "crystal"]
Array = NDArray[np.float64]

#: Prefix of the columns in which a file of samples says what was asked for.
ASKED = "asked_"
#: Properties that are calculated, and their units.
CALCULATED: dict[Kind, dict[str, str]] = {
    "molecule": {"homo": "eV", "lumo": "eV", "gap": "eV", "dipole": "D"},
    "crystal": {"density": "g/cm³", "e_above_hull": "eV/atom"},
}
UNITS = {name: unit for known in CALCULATED.values() for name, unit in known.items()}
#: Known systems that are compared with; more would only cost room in the reference.
N_KNOWN = 2000


@dataclass(frozen=True)
class Regressor:
    """A learnt judge: ``predict(samples)`` returns for each property values [n] in the units of ``UNITS``, NaN where it can't.

    ``samples`` are ``molecules.sets.Examined`` or ``crystals.basic.JudgedCrystal``; ``name`` goes into the notes.
    """

    name: str
    kind: Kind
    properties: tuple[str, ...]
    predict: Callable[[Sequence[Any]], Mapping[str, Array]]


_REGRESSORS: list[Regressor] = []


def register_regressor(regressor: Regressor) -> None:
    """Let a regressor judge every later evaluation of its kind; one of the same name is replaced."""
    _REGRESSORS[:] = [r for r in _REGRESSORS if r.name != regressor.name] + [regressor]


def regressors(kind: Kind) -> list[Regressor]:
    """Return the regressors for a kind of system."""
    return [r for r in _REGRESSORS if r.kind == kind]


def parse_properties(items: Sequence[str]) -> dict[str, float | str]:
    """Read ``NAME=NUMBER`` and ``NAME=COLUMN`` items of a command line; raises BadRequest for anything else."""
    found: dict[str, float | str] = {}
    for item in items:
        name, equals, text = (part.strip() for part in item.partition("="))
        if not name or not equals or not text:
            raise BadRequest(f"--property takes NAME=VALUE or NAME=COLUMN, found {item!r}")
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = text
    return found


def check_properties(given: Mapping[str, float | str] | None, kind: Kind) -> None:
    """Raise BadRequest for a property that no judge of this kind knows, or a value that is not finite."""
    known = {*CALCULATED[kind], *(name for r in regressors(kind) for name in r.properties)}
    for name, value in (given or {}).items():
        if name not in known:
            raise unknown(f"property of {kind}s", name, known)
        if not isinstance(value, str) and not np.isfinite(value):
            raise BadRequest(f"the value asked of {name} must be finite, not {value:g}")


def asked_values(
    rows: Sequence[Mapping[str, float]], given: Mapping[str, float | str] | None, name_of_set: str = "samples"
) -> dict[str, Array]:
    """Return what was asked of each sample [n] by property, NaN where nothing was.

    ``rows`` are the numbers that each sample's file gives. ``given`` maps properties to a value for all samples or to a column;
    None takes every column ``asked_PROPERTY``. Raises BadRequest for a column that no sample has.
    """
    if given is None:
        columns = dict.fromkeys(key for row in rows for key in row if key.startswith(ASKED) and len(key) > len(ASKED))
        given = {column.removeprefix(ASKED): column for column in columns}
    found: dict[str, Array] = {}
    for name, value in given.items():
        if isinstance(value, str):
            if not any(value in row for row in rows):
                raise BadRequest(f"{name_of_set} have no column {value!r} for the property {name}")
            found[name] = np.array([row.get(value, np.nan) for row in rows], dtype=np.float64)
        else:
            found[name] = np.full(len(rows), float(value))
    return found


def property_metrics(
    name: str,
    asked: Array,
    values: Array,
    sizes: NDArray[np.int64],
    known: NDArray[np.float32] | None,
    *,
    learnt: Mapping[str, Array] | None = None,
    n_resamples: int = 1000,
) -> dict[str, Estimate]:
    """Compute the error of one property and the rows beside it.

    ``asked`` and ``values`` [n] are what was asked and what the calculation gives (NaN where there is none), ``sizes`` [n] the
    numbers of atoms, ``known`` [P, 2] sizes and values of real systems, ``learnt`` values [n] by regressors.
    """
    wanted = np.isfinite(asked)
    found: dict[str, Estimate] = {}
    if not wanted.any():
        return found
    if np.isfinite(values).any():
        found[f"property_mae/{name}"] = mean(np.abs(values - asked), n_resamples=n_resamples)
        lost = (wanted & ~np.isfinite(values)).astype(np.float64)
        found[f"property_failed/{name}"] = ratio(lost, wanted.astype(np.float64), n_resamples=n_resamples)
    for values_by in (learnt or {}).values():
        found[f"property_mae_regressor/{name}"] = mean(np.abs(values_by - asked), n_resamples=n_resamples)
    if known is not None and len(known):
        real = known[:, 1].astype(np.float64)
        anyone = np.array([np.abs(real - a).mean() if np.isfinite(a) else np.nan for a in asked.tolist()])
        found[f"property_mae_random/{name}"] = mean(anyone, n_resamples=n_resamples)
        by_size = {int(n): real[known[:, 0] == n] for n in np.unique(known[:, 0])}
        alike = [
            float(np.abs(by_size[n] - a).mean()) if np.isfinite(a) and n in by_size else np.nan
            for n, a in zip(sizes.tolist(), asked.tolist(), strict=True)
        ]
        found[f"property_mae_size/{name}"] = mean(np.array(alike), n_resamples=n_resamples)
    return found


def known_values(store: Any, kind: Kind, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Take sizes and values [P, 2] of up to ``N_KNOWN`` random systems of a store, for each property that is calculated."""
    sizes = np.diff(store.atom_offsets.numpy())
    order = np.random.default_rng(seed).permutation(len(store))
    found: dict[str, NDArray[np.float32]] = {}
    for name in CALCULATED[kind]:
        if name in store.properties:
            values = store.column(name).numpy().astype(np.float64)
            chosen = [i for i in order.tolist() if np.isfinite(values[i])][:N_KNOWN]
            found[name] = np.column_stack([sizes[chosen], values[chosen]]).astype(np.float32)
    return found


def unjudged(asked: Mapping[str, Array], kind: Kind) -> list[str]:
    """Name the properties that were asked for and that nothing here computes."""
    known = {*CALCULATED[kind], *(name for r in regressors(kind) for name in r.properties)}
    return sorted(set(asked) - known)
