"""A total charge as a specification: the formal charges of every sample add up to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moldiff.control import Place, Spec
from moldiff.errors import BadRequest

if TYPE_CHECKING:
    from moldiff.model_store import ModelInfo
    from moldiff.sampling.control import Control

CHARGES = "charges"


@dataclass(frozen=True)
class Charge(Spec):
    """Formal charges are drawn together (``sampling.total_charge``), so that their sum is ``charge`` (e) in every sample.

    Held valences go by it: a molecule of charge +1 has an even number of electrons with an odd sum of atomic numbers.
    """

    charge: int
    name = "charge"
    settles = True

    def settings(self) -> Any:
        return self.charge

    def check(self, info: ModelInfo) -> None:
        made = info.config.fields.get(CHARGES)
        if made is None or made.process != "categorical":
            raise BadRequest(f"{info.name} makes no formal charges, so that none can be asked for")
        values = info.config.vocabulary[CHARGES]
        if self.charge and not any(v * self.charge > 0 for v in values):
            raise BadRequest(f"a total charge of {self.charge:+d} can't be made of the charges of {info.name}: {values}")

    def cautions(self, info: ModelInfo) -> list[str]:
        if not self.charge:
            return []
        return [f"{info.name} is not told of a total charge: {self.charge:+d} is held by the draw alone, so look at what comes"]

    def check_beside(self, others: Sequence[Spec]) -> None:
        for other in others:
            if CHARGES in other.gives and "positions" not in other.gives:
                raise BadRequest(f"{other.name} says every charge: a total charge can't be asked for beside it")

    def admits(self, size: int) -> bool:
        return abs(self.charge) <= size

    def wants(self) -> str:
        return f"a total charge of {self.charge:+d}"

    def control(self, place: Place) -> Control:
        from moldiff.sampling.total_charge import TotalCharge

        return TotalCharge(place.vocabulary, self.charge)


def charge_from(charge: int | None) -> Charge | None:
    """The specification behind ``--charge``; None without. Raises ``BadRequest`` for what is no whole number."""
    if charge is None:
        return None
    if type(charge) is not int:
        raise BadRequest(f"charge must be a whole number, found {charge!r}")
    return Charge(charge)
