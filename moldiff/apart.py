"""Crystals whose atoms meet drawn anew: those with distances that no real crystal has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moldiff.chem.crystals import closeness
from moldiff.control import Place, Spec
from moldiff.errors import BadRequest

if TYPE_CHECKING:
    from moldiff.model_store import ModelInfo
    from moldiff.samples import Sample
    from moldiff.sampling.control import Control

#: Least distance over the sum of the covalent radii; of 3,000 crystals of MP-20 none has less than 0.653.
CLOSE = 0.65
#: A sample is not drawn more often than this.
MOST = 20


@dataclass(frozen=True)
class Apart(Spec):
    """A crystal with atoms closer than those of any real one is drawn anew, ``redraws`` times at most; the last one stands.

    Atoms that are kept or given can't be helped by this, and are not looked at apart from the others.
    """

    redraws: int = 0
    asked: bool = False
    insists = False
    settles = True
    name = "redraws"

    def settings(self) -> Any:
        return self.redraws

    def check(self, info: ModelInfo) -> None:
        if info.config.kind != "crystal":
            raise BadRequest(f"redraws are for crystals whose atoms meet, and {info.name} makes {info.config.kind}s")

    def beside(self, others: Sequence[Spec]) -> Spec | None:
        """None beside a specification that redraws for the same reason, unless a number was asked for."""
        return self if self.asked or not any(other.redraws for other in others) else None

    def refuses(self, sample: Sample) -> str:
        return too_close(sample)

    def control(self, place: Place) -> Control:
        from moldiff.sampling.control import Control

        return Control()


def too_close(sample: Sample) -> str:
    """Why a finished crystal is none, or an empty string."""
    made = sample.to_crystal()
    return "atoms are too close" if made is not None and closeness(made) < CLOSE else ""


def apart_from(redraws: Any, info: ModelInfo) -> Apart | None:
    """The specification behind ``--redraws``: as asked, or the model's own; raises ``BadRequest`` for no number of draws."""
    from moldiff.request import whole_number

    asked = redraws is not None
    times = whole_number("redraws", redraws) if asked else info.config.sampling.redraws
    if not 0 <= times <= MOST:
        raise BadRequest(f"redraws must lie in 0 to {MOST}, found {times}")
    return Apart(times, asked) if times or asked else None
