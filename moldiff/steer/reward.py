"""Steering by a reward as a specification: several particles a sample, resampled by what they are becoming."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moldiff.control import Place, Spec
from moldiff.core.batch import AtomBatch
from moldiff.errors import BadRequest, unknown
from moldiff.sampling.control import Control
from moldiff.sampling.steering import PICKS, POTENTIALS, Steered
from moldiff.steer.rewards import SPREAD, Term, full_name, kind_of, require

if TYPE_CHECKING:
    from moldiff.model_store import ModelInfo
    from moldiff.steer.scoring import Scorer

#: Noise over signal between which the way is made again, and how often: below the low level the prediction tells what a sample
#: becomes, up to the high one little is decided. Found on QM9 (docs/experiments.md).
LOW, HIGH, ROUNDS = 0.13, 0.36, 3
#: Where a model can't be noised on, groups are resampled once at each of these levels instead.
LEVELS = (0.36, 0.25, 0.18)
MOST_PARTICLES, MOST_ROUNDS = 1024, 1000


@dataclass(frozen=True)
class Reward(Spec):
    """Sequential Monte Carlo towards a reward (see ``sampling.steering.Steered``), the sum of ``terms``.

    ``rows_each`` particles go through the network for every sample that comes back: n samples of K particles at T steps make as
    many network calls as n K plain samples at T steps, the ``rounds`` between ``high`` and ``low`` included: the steps are longer
    for them. A sample's reward comes with it as ``reward``.
    """

    terms: tuple[Term, ...]
    rows_each: int = 8
    strength: float | None = None
    potential: str = "difference"
    threshold: float = 0.25
    pick: str = "best"
    rounds: int = ROUNDS
    high: float = HIGH
    low: float = LOW
    levels: tuple[float, ...] = (0.09,)
    n_processes: int | None = None
    name = "reward"
    _shared: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def settings(self) -> dict[str, Any]:
        return {
            "terms": [term.label for term in self.terms],
            "particles": self.rows_each,
            "strength": self.strength,
            "potential": self.potential,
            "threshold": self.threshold,
            "pick": self.pick,
            "rounds": self.rounds,
            "between": [self.low, self.high],
            "levels": list(self.levels),
        }

    @property
    def returns(self) -> tuple[float, float, int] | None:  # type: ignore[override]
        """The part of the way that is made again."""
        return (self.high, self.low, self.rounds) if self.rounds else None

    def check(self, info: ModelInfo) -> None:
        for term in self.terms:
            if isinstance(term.function, str):
                kind = kind_of(term.function)
                if kind not in (None, info.config.kind):
                    raise BadRequest(f"the reward {term.function!r} is one of a {kind}: {info.name} makes {info.config.kind}s")
                require(term.function)
        if self.rounds and not can_be_noised(info):
            raise BadRequest(f"{info.name} has a field that can't be noised on: its way can't be made again, so ask for rounds=0")

    def check_beside(self, others: Sequence[Spec]) -> None:
        if any(isinstance(other, Reward) for other in others):
            raise BadRequest("two rewards can't steer at once: give their sum as one")

    @property
    def scorer(self) -> Scorer:
        """What computes the rewards and counts failures; made when first asked for."""
        from moldiff.steer.scoring import Scorer

        found: Scorer = self._shared.setdefault("scorer", Scorer(self.terms, self.n_processes))
        return found

    def notices(self) -> list[str]:
        sentence = self.scorer.take_notice()
        return [sentence] if sentence else []

    def control(self, place: Place) -> Control:
        from moldiff.samples import from_batch

        k, scorer = self.rows_each, self.scorer
        real = list(place.indices)[::k]

        def score(clean: AtomBatch) -> Tensor:
            physical = place.vocabulary.decode(clean.to("cpu"))
            samples = from_batch(physical, range(clean.n_systems), place.info.config.bonds)
            return torch.tensor(scorer(samples), dtype=torch.float64)

        low = self.low if self.rounds else None
        return Steered(
            score, k, self.strength, self.potential, self.threshold, self.pick, self.levels, low, n_groups=len(set(real))
        )


def can_be_noised(info: ModelInfo) -> bool:
    """Whether every field of a model can be noised on from where it stands."""
    from moldiff.assemble import build_vocabulary
    from moldiff.diffusion.registry import build_diffusion

    fields = {name: options.model_dump() for name, options in info.config.fields.items()}
    return all(process.stochastic for process in build_diffusion(fields, build_vocabulary(info.config)).processes.values())


def reward_from(
    reward: Callable[[Any], float] | str | Term | Sequence[Any] | None,
    target: Mapping[str, float] | Sequence[str] | None = None,
    particles: int | None = None,
    strength: float | None = None,
    options: Mapping[str, Any] | None = None,
    info: ModelInfo | None = None,
) -> Reward | None:
    """Read a reward and targets; where the model of ``info`` can't be noised on, no part of the way is made again unless told.

    ``reward`` is a function, a name, ``WEIGHT*NAME``, a ``Term``, or several of them, to be summed; ``target`` is
    ``{"dipole": 3.0}`` or ``["dipole=3", "gap=9:0.5"]``, a value and the deviation that costs 1 (a typical spread unless told).
    ``strength`` is a number or None to choose it on the way; ``options`` are further fields of ``Reward``.
    Raises ``BadRequest`` for what can't be read, and for particles without a reward.
    """
    several = list(reward) if isinstance(reward, (list, tuple)) else [] if reward is None else [reward]
    goals = list(target.items()) if isinstance(target, Mapping) else [_goal(item) for item in target or ()]
    terms = [_term(one) for one in several] + [_target(name, value) for name, value in goals]
    if not terms:
        if particles is not None or strength is not None or options:
            raise BadRequest("particles need a reward: --reward NAME or --target NAME=VALUE")
        return None
    count = 8 if particles is None else particles
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_PARTICLES:
        raise BadRequest(f"particles must be a whole number from 1 to {MOST_PARTICLES}, found {particles!r}")
    if strength is not None and not (_is_number(strength) and strength > 0):
        raise BadRequest(f"the reward's strength must be a positive number, found {strength!r}")
    given = _options(options or {})
    if info is not None and "rounds" not in given and not can_be_noised(info):
        given = {"levels": LEVELS, **given, "rounds": 0}
    return Reward(tuple(terms), count, None if strength is None else float(strength), **given)


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    known = ("potential", "threshold", "pick", "rounds", "high", "low", "levels", "n_processes")
    for name in options:
        if name not in known:
            raise unknown("option of the reward", name, known)
    found = dict(options)
    if "levels" in found:
        levels = [_float(x) for x in found["levels"]] if isinstance(found["levels"], (list, tuple)) else [None]
        if any(x is None or x <= 0 for x in levels):
            raise BadRequest(f"levels to resample at are positive numbers, noise over signal, found {options['levels']!r}")
        found["levels"] = tuple(levels)
    if "rounds" in found and not (type(found["rounds"]) is int and 0 <= found["rounds"] <= MOST_ROUNDS):
        raise BadRequest(f"rounds must be a whole number from 0 to {MOST_ROUNDS}, found {options['rounds']!r}")
    high, low = (_float(found.get(name, value)) for name, value in (("high", HIGH), ("low", LOW)))
    if high is None or low is None or not high > low > 0:
        raise BadRequest(f"high must be above low, and both positive (noise over signal), found {high} and {low}")
    for name, choices in (("potential", POTENTIALS), ("pick", PICKS)):
        if name in found and found[name] not in choices:
            raise unknown(name, str(found[name]), choices)
    if "threshold" in found and not (_is_number(found["threshold"]) and 0 < found["threshold"] <= 1):
        raise BadRequest(f"threshold must lie above 0 and be at most 1, found {options['threshold']!r}")
    return found


def _term(reward: Any) -> Term:
    if isinstance(reward, Term):
        return replace(reward, function=full_name(reward.function)) if isinstance(reward.function, str) else reward
    if callable(reward):
        return Term(reward)
    if not isinstance(reward, str):
        raise BadRequest(f"a reward is a function or a name, found {reward!r}")
    head, star, tail = reward.partition("*")
    if star:
        weight = _float(head)
        if weight is None:
            raise BadRequest(f"a reward's weight must be a number, found {head!r} in {reward!r}")
        return Term(full_name(tail.strip()), weight)
    if reward.startswith("-"):
        return Term(full_name(reward[1:].strip()), -1.0)
    return Term(full_name(reward.strip()))


def _goal(item: str) -> tuple[str, str]:
    name, equals, text = item.partition("=")
    if not (name.strip() and equals and text.strip()):
        raise BadRequest(f"a target is NAME=VALUE or NAME=VALUE:DEVIATION, found {item!r}")
    return name.strip(), text.strip()


def _target(name: str, value: Any) -> Term:
    known = full_name(name)
    parts = value.split(":") if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [value]
    numbers = [_float(part) for part in parts]
    if len(numbers) not in (1, 2) or any(x is None for x in numbers):
        raise BadRequest(f"the target of {name!r} must be a number, or a number and a deviation, found {value!r}")
    scale = numbers[1] if len(numbers) == 2 else SPREAD.get(known, 1.0)
    if scale is None or scale <= 0:
        raise BadRequest(f"the deviation of the target of {name!r} must be positive, found {value!r}")
    return Term(known, 1.0, numbers[0], scale)


def _float(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if isinstance(value, bool) or not math.isfinite(number) else number


def _is_number(value: Any) -> bool:
    return _float(value) is not None
