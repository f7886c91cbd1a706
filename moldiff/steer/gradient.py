"""Gradient guidance as a specification."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moldiff.control import Place, Spec
from moldiff.core.batch import AtomBatch
from moldiff.diffusion.joint import Diffusion
from moldiff.errors import BadRequest, unknown
from moldiff.sampling.control import Control
from moldiff.sampling.gradient_guidance import WAYS, CleanAtoms, Gradient, GuidanceFunction
from moldiff.steer.conditions import Conditions
from moldiff.steer.rewards import imported

#: Guidance functions by name, made when first used: ``register_guidance`` adds one.
_NAMED: dict[str, Callable[[], GuidanceFunction]] = {}


def register_guidance(name: str, make: Callable[[], GuidanceFunction]) -> None:
    """Make a guidance function known by a name without a colon; ``make`` loads what it needs."""
    _NAMED[name] = make


class Toward:
    """The log likelihood of a property's ``value`` by a trained regressor, normal with standard deviation ``deviation``.

    ``regressor`` is a model's name or folder, loaded at the first call, to the device of what it is asked about. ``value`` None
    is that which the conditions ask of each sample.
    """

    def __init__(self, regressor: str, name: str, value: float | None, deviation: float | None = None) -> None:
        from moldiff.model_store import model_info

        config = model_info(regressor).config
        if name not in config.targets:
            raise unknown(f"property of {config.name}", name, config.targets)
        self.regressor, self.name, self.value = regressor, name, value
        self.deviation = config.condition_stats[name].std / 4 if deviation is None else deviation
        self._loaded: dict[torch.device, Any] = {}

    def __call__(self, atoms: CleanAtoms) -> Tensor:
        assert self.value is not None
        return self.likelihood(atoms, torch.full((len(atoms.mask),), self.value, device=atoms.mask.device))

    def likelihood(self, atoms: CleanAtoms, values: Tensor) -> Tensor:
        """That of ``values`` [S]; 0 where a value is NaN, of which nothing is asked."""
        from moldiff.regressor import PropertyRegressor

        device = atoms.mask.device
        if device not in self._loaded:
            self._loaded[device] = PropertyRegressor.from_pretrained(self.regressor, device)
        found: Tensor = self._loaded[device](atoms)[self.name]
        return -0.5 * ((found - torch.where(values.isnan(), found.detach(), values)) / self.deviation).square()


@dataclass(frozen=True)
class Guide(Spec):
    """Samples are drawn up the gradient of a function of the clean prediction (see ``sampling.gradient_guidance``)."""

    function: str | Callable[[CleanAtoms], Tensor]
    scale: float = 1.0
    way: str = "clean"
    clip: float = 2.0
    conditions: Conditions | None = None
    name = "guidance_function"
    needs_gradients = True
    _shared: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def settles(self) -> bool:  # type: ignore[override]
        """A regressor's property is one of the graph above all, which settling keeps; of other functions nothing is known."""
        return isinstance(self.function, str) and "@" in self.function

    def settings(self) -> dict[str, Any]:
        f = self.function
        text = f if isinstance(f, str) else f"{getattr(f, '__module__', '?')}:{getattr(f, '__qualname__', type(f).__name__)}"
        return {"function": text, "scale": self.scale, "way": self.way, "clip": self.clip}

    def loaded(self) -> GuidanceFunction:
        """The function itself; raises ``BadRequest`` for a name that leads nowhere."""
        if "function" not in self._shared:
            found = self.function
            if isinstance(found, str):
                found = _toward(found) if "@" in found else imported(found) if ":" in found else _NAMED[found]()
            self._shared.setdefault("function", found)
            self._shared.setdefault("lock", threading.Lock())
        function: GuidanceFunction = self._shared["function"]
        return function

    def function_at(self, place: Place) -> GuidanceFunction:
        """The function for the systems of one tile, towards what each of them is asked for where that is its goal."""
        function = self.loaded()
        if not (isinstance(function, Toward) and function.value is None and self.conditions is not None):
            return function
        rows = [self.conditions.asked(place.info, place.seed, index) for index in place.indices]
        values = torch.tensor([row.get(function.name, math.nan) for row in rows], device=place.device)
        return partial(function.likelihood, values=values)

    def notices(self) -> list[str]:
        asked, dropped = self._shared.pop("asked", 0), self._shared.pop("dropped", 0)
        if not dropped:
            return []
        return [f"guidance had no finite gradient in {dropped:,} of {asked:,} predictions, which were left as they were"]

    def control(self, place: Place) -> Control:
        return _Counted(self, place)


class _Counted(Gradient):
    """Gradient guidance that tells its specification how many gradients were none."""

    def __init__(self, spec: Guide, place: Place) -> None:
        super().__init__(place.vocabulary, spec.function_at(place), spec.scale, spec.way, spec.clip)
        self.shared = spec._shared

    def finish(self, x0: AtomBatch, diffusion: Diffusion) -> AtomBatch:
        if self.guided is not None:
            with self.shared["lock"]:
                self.shared["asked"] = self.shared.get("asked", 0) + self.guided.n_asked
                self.shared["dropped"] = self.shared.get("dropped", 0) + self.guided.n_dropped
        return x0


def guide_from(
    function: str | Callable[[CleanAtoms], Tensor] | None,
    scale: float | None = None,
    way: str | None = None,
    clip: float | None = None,
    conditions: Conditions | None = None,
) -> Guide | None:
    """Read gradient guidance: a function, ``module:function``, a registered name, or REGRESSOR@PROPERTY=VALUE[:DEVIATION].

    The value ``asked`` is that which ``conditions`` ask of each sample. Raises ``BadRequest`` for what can't be read, a name that
    leads nowhere and a property that the regressor does not know.
    """
    if function is None:
        if scale is not None or way is not None or clip is not None:
            raise BadRequest("a scale of gradient guidance needs a function: --guidance-function MODULE:FUNCTION")
        return None
    if isinstance(function, str):
        if "@" in function:
            goal = _toward(function)
            asked = () if conditions is None else tuple(name for name, _, _ in conditions.values)
            if goal.value is None and goal.name not in asked:
                raise BadRequest(f"{function} follows a condition that is not asked for: --condition {goal.name}=VALUE")
        elif ":" in function:
            imported(function)
        elif function not in _NAMED:
            raise unknown("guidance function", function, [*_NAMED, "module:function", "REGRESSOR@PROPERTY=VALUE"])
    elif not callable(function):
        raise BadRequest(f"a guidance function is a function or a name, found {function!r}")
    numbers = {"guidance scale": 1.0 if scale is None else scale, "guidance clip": 2.0 if clip is None else clip}
    for what, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or math.isnan(number) or number <= 0:
            raise BadRequest(f"{what} must be a positive number, found {number!r}")
    if not math.isfinite(numbers["guidance scale"]):
        raise BadRequest("guidance scale must be finite")
    if way is not None and way not in WAYS:
        raise unknown("way of gradient guidance", way, WAYS)
    return Guide(function, float(numbers["guidance scale"]), way or "clean", float(numbers["guidance clip"]), conditions)


def _toward(text: str) -> Toward:
    regressor, _, goal = text.rpartition("@")
    name, equals, numbers = goal.partition("=")
    try:
        first, *rest = numbers.split(":")
        value = None if first.strip() == "asked" else float(first)
        deviation = [float(part) for part in rest]
    except ValueError:
        equals = ""
    if not (regressor and name and equals) or len(deviation) > 1:
        raise BadRequest(f"guidance by a regressor is REGRESSOR@PROPERTY=VALUE[:DEVIATION], found {text!r}")
    if not all(math.isfinite(x) for x in (0.0 if value is None else value, *deviation)) or any(x <= 0 for x in deviation):
        raise BadRequest(f"value and deviation must be finite, and the deviation positive, found {text!r}")
    return Toward(regressor, name, value, *deviation)
