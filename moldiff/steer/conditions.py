"""Conditions: properties that a model was trained to be told, asked for by value or by range."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch

from moldiff.chem.counts import ATOMS, BONDS
from moldiff.control import Place, Spec
from moldiff.core.rng import stream_seed
from moldiff.errors import BadRequest, unknown
from moldiff.sampling.control import Control
from moldiff.sampling.count_shift import Count, CountShifted
from moldiff.sampling.guidance import Conditioned

if TYPE_CHECKING:
    from moldiff.config import ConditionStats
    from moldiff.denoisers.base import Denoiser
    from moldiff.diffusion.joint import Diffusion
    from moldiff.model_store import ModelInfo

#: Whether companions of what is asked are told.
COMPANIONS = ("drawn", "none")
#: A name of a property with a number, or with a least and a greatest one.
Asked = tuple[str, float, float]


@dataclass(frozen=True)
class Conditions(Spec):
    """Properties asked for: (name, least, greatest) each, the two alike for one value; ``guidance`` is the scale.

    Of a range every sample draws its value by its own stream, of a class a whole number. Conditions of the model that are not
    named are left out, but for its companions (``config.companions``): unless ``drawn`` is False, each row is told those of a
    training system near to what is asked (``data.companions``). The values asked for come with each sample as ``asked_NAME``.
    """

    values: tuple[Asked, ...]
    guidance: float = 1.0
    drawn: bool = True
    name = "conditions"
    settles = True
    #: Whether every sample has values of its own.
    of_each = False

    def settings(self) -> dict[str, Any]:
        asked = {name: low if low == high else f"{low!r}..{high!r}" for name, low, high in self.values}
        return {"values": asked, "guidance": self.guidance, **self._without()}

    def _without(self) -> dict[str, Any]:
        return {} if self.drawn else {"companions": "none"}

    def beside(self, others: Sequence[Spec]) -> Spec:
        """Without companions where other specifications say which atoms or bonds there are, which those could contradict."""
        said = any(other.gives or other.name in ("elements", "charge") for other in others)
        return replace(self, drawn=False) if said else self

    def check(self, info: ModelInfo) -> None:
        known = info.config.conditions
        if not known:
            raise BadRequest(f"{info.name} was trained without conditions: no property can be asked of it; a target steers it")
        for name, low, high in self.values:
            if name not in known:
                raise unknown("condition", name, known)
            n_classes = info.config.condition_classes.get(name, 0)
            wrong = [v for v in (low, high) if v != round(v) or not 0 <= v < n_classes]
            if n_classes and wrong:
                raise BadRequest(f"{name} is a class, a whole number from 0 to {n_classes - 1}, found {wrong[0]:g}")
            if not n_classes and name not in info.config.condition_stats:
                raise BadRequest(f"{info.name} does not say how {name!r} was standardised: its {name!r} can't be asked for")

    def cautions(self, info: ModelInfo) -> list[str]:
        found = []
        for name, low, high in self.values:
            stats = info.config.condition_stats.get(name)
            if name in info.config.condition_classes:
                continue
            if stats is not None and (low < stats.low or high > stats.high):
                asked = f"{low:g}" if low == high else f"{low:g}..{high:g}"
                found.append(f"{name} = {asked} lies outside what {info.name} was trained on: {described(stats)}")
        return found

    def asked(self, info: ModelInfo, seed: int, index: int) -> dict[str, float]:
        """The values of one sample, in the properties' units: draws by seed, sample and name alone."""
        row = {}
        for name, low, high in self.values:
            share = stream_seed(stream_seed(seed, index), crc32(name.encode())) / 2**63
            if name in info.config.condition_classes:
                row[name] = min(low + math.floor(share * (high - low + 1)), high)
            else:
                row[name] = low + share * (high - low)
        return row

    def wanted(self, index: int) -> tuple[Asked, ...]:
        """What one sample is asked for, ranges as they are."""
        return self.values

    def control(self, place: Place) -> Control:
        config = place.info.config
        rows = [self.asked(place.info, place.seed, index) for index in place.indices]
        table = torch.full((len(rows), len(config.conditions)), torch.nan, dtype=torch.float64)
        told = self._with_companions(place, rows)
        for k, row in enumerate(told):
            for name, value in row.items():
                stats = config.condition_stats.get(name)
                table[k, config.conditions.index(name)] = value if stats is None else stats.standardise(value)
        counted = {} if place.info.companions is None or not self.drawn else count_classes(config.vocabulary)
        names = [name for name in config.companions if name in counted]
        wanted = torch.tensor([[row.get(name, math.nan) for name in names] for row in told])
        return _Told(rows, table.float(), self.guidance, place.device.type != "cpu", [counted[n] for n in names], wanted)


    def _with_companions(self, place: Place, rows: Sequence[dict[str, float]]) -> Sequence[dict[str, float]]:
        """What each row is told, which of several rows of a sample each by its own draw."""
        config, table = place.info.config, place.info.companions
        if table is None or not self.drawn:
            return rows
        scales = {name: found.std for name, found in config.condition_stats.items()}
        seen: Counter[int] = Counter()
        told = []
        for index, row in zip(place.indices, rows, strict=True):
            stream = stream_seed(stream_seed(place.seed, index), crc32(b"companions") + seen[index])
            seen[index] += 1
            near = table.draw(row, scales, place.size, config.companions, stream / 2**63) if row else {}
            told.append({**near, **row})
        return told


class _Told(Conditioned):
    """Conditions that say of each row what was asked."""

    def __init__(
        self, rows: Sequence[Mapping[str, float]], table: torch.Tensor, scale: float, together: bool, counts: Sequence[Count],
        wanted: torch.Tensor,
    ) -> None:  # fmt: skip
        super().__init__(table, scale, together)
        self.rows, self.counts, self.wanted = rows, counts, wanted

    def wrap(self, denoiser: Denoiser, diffusion: Diffusion) -> Denoiser:
        guided = super().wrap(denoiser, diffusion)
        if not self.counts or not {"atom_types", "bond_types"} <= set(diffusion.categorical):
            return guided
        return CountShifted(guided, self.counts, self.wanted)

    def facts(self, row: int) -> Mapping[str, Any]:
        return {f"asked_{name}": float(f"{value:.7g}") for name, value in self.rows[row].items()}


def count_classes(vocabulary: Mapping[str, Sequence[int]]) -> dict[str, Count]:
    """The counts of ``chem.counts`` by name, in the classes of a vocabulary that has them."""
    elements, orders = list(vocabulary.get("atom_types", ())), list(vocabulary.get("bond_types", ()))
    found = {name: Count(elements.index(z)) for name, z in ATOMS.items() if z in elements}
    for name, (a, b, order) in BONDS.items():
        if a in elements and b in elements and order in orders:
            found[name] = Count(elements.index(a), elements.index(b), orders.index(order))
    return found


def described(stats: ConditionStats) -> str:
    """The range of a property that was seen in training, in words."""
    unit = f" {stats.unit}" if stats.unit else ""
    return f"98 % of it lay in {stats.low:.4g}..{stats.high:.4g}{unit}, all in {stats.least:.4g}..{stats.greatest:.4g}{unit}"


def conditions_from(asked: Any, guidance: float | None = None, companions: str | None = None) -> Conditions | None:
    """Read conditions: ``{"gap": 9.0, "dipole": (1, 2)}`` or ``["gap=9.0", "dipole=1..2"]``; NaN or None leaves one out.

    A CSV file's path, or a list of such mappings, gives every sample values of its own (``steer.condition_table``).
    ``companions`` is "drawn" (the default) or "none". Raises ``BadRequest`` for what can't be read, and for a guidance without a
    condition.
    """
    if companions not in (None, *COMPANIONS):
        raise unknown("companions", str(companions), COMPANIONS)
    if not asked:
        if guidance is not None:
            raise BadRequest("guidance needs a condition to follow: --condition NAME=VALUE")
        if companions is not None:
            raise BadRequest("companions go with a condition: --condition NAME=VALUE")
        return None
    table = _table_of(asked)
    if table is not None:
        from moldiff.steer.condition_table import table_from

        found = table_from(table, guidance)
        return replace(found, drawn=companions != "none")
    pairs = list(asked.items()) if isinstance(asked, Mapping) else [_split(item) for item in asked]
    values: list[Asked] = []
    for name, value in pairs:
        if name in [one[0] for one in values]:
            raise BadRequest(f"condition {name!r} is given twice")
        low, high = asked_range(name, value)
        if not math.isnan(low):
            values.append((name, low, high))
    return Conditions(tuple(values), checked_guidance(guidance), companions != "none")


def checked_guidance(guidance: float | None) -> float:
    """The scale of guidance, 1 where none is given; raises ``BadRequest`` for a negative or non-finite one."""
    scale = 1.0 if guidance is None else _number("guidance", guidance)
    if not (math.isfinite(scale) and scale >= 0):
        raise BadRequest(f"guidance must be a finite number of at least 0, found {guidance}")
    return scale


def _table_of(asked: Any) -> Any:
    """What names or holds a table; None where ``asked`` is conditions of all samples."""
    if isinstance(asked, (str, Path)):
        return asked
    if isinstance(asked, Mapping):
        return None
    items = list(asked)
    if all(isinstance(item, Mapping) for item in items):
        return items
    files = [item for item in items if isinstance(item, (str, Path)) and "=" not in str(item) and str(item).endswith(".csv")]
    if files and len(items) > 1:
        raise BadRequest(f"{files[0]} says what each sample is asked for: give it alone, with no other condition")
    return files[0] if files else None


def _split(item: str) -> tuple[str, str]:
    name, equals, text = item.partition("=")
    if not (name.strip() and equals and text.strip()):
        raise BadRequest(f"a condition is NAME=VALUE or NAME=LEAST..GREATEST, found {item!r}")
    return name.strip(), text.strip()


def asked_range(name: str, value: Any) -> tuple[float, float]:
    """Least and greatest of a value, a text such as 8..10 or a pair; NaN twice for what is left out. Raises ``BadRequest``."""
    if value is None or (isinstance(value, str) and value.strip().lower() in ("nan", "none")):
        return math.nan, math.nan
    parts: Any = value.split("..") if isinstance(value, str) else value
    parts = list(parts) if isinstance(parts, (list, tuple)) else [parts]
    if len(parts) not in (1, 2):
        raise BadRequest(f"condition {name!r} takes a number or a range such as 8..10, found {value!r}")
    low, high = (_number(f"condition {name!r}", part) for part in (parts[0], parts[-1]))
    if len(parts) == 1 and math.isnan(low):
        return low, high
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadRequest(f"condition {name!r} must be a finite number, found {value!r}")
    if low > high:
        raise BadRequest(f"condition {name!r}: the range {low:g}..{high:g} is empty, its least value comes first")
    return low, high


def _number(what: str, value: Any) -> float:
    if not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise BadRequest(f"{what} must be a number, found {value!r}")
