"""Several candidates a sample as a specification: structures of one composition are drawn, and the best ranked one comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moldiff.control import Place, Spec
from moldiff.errors import BadRequest
from moldiff.sampling.candidates import DRAWS, LEVELS, Chosen
from moldiff.sampling.control import Control

if TYPE_CHECKING:
    from moldiff.model_store import ModelInfo

MOST_CANDIDATES = 64


@dataclass(frozen=True)
class Candidates(Spec):
    """``rows_each`` crystals of one composition are drawn for every sample (see ``sampling.candidates.Chosen``).

    Nothing is compared with a known structure. A sample carries the model's ``doubt`` of it; only among candidates of one
    composition does that say which is likelier.
    """

    rows_each: int = 8
    name = "candidates"
    calls_beside = len(LEVELS) * DRAWS

    def settings(self) -> dict[str, Any]:
        return {"each": self.rows_each, "levels": list(LEVELS), "draws": DRAWS}

    def check(self, info: ModelInfo) -> None:
        if info.config.kind != "crystal":
            made = f"{info.name} makes {info.config.kind}s"
            raise BadRequest(f"candidates are ranked for crystals, and {made}: a reward with particles chooses among those")

    def check_beside(self, others: Sequence[Spec]) -> None:
        for other in others:
            if other.rows_each > 1:
                raise BadRequest(f"candidates and {other.name} both draw several systems a sample: ask for one of them")
        if all("atom_types" not in other.gives for other in others):
            raise BadRequest("candidates are compared with each other and need one composition: give a formula or compositions")

    def control(self, place: Place) -> Control:
        return Chosen(self.rows_each, n_groups=len(set(place.indices)))


def candidates_from(candidates: Any, default: int = 1, fitting: bool = False) -> Candidates | None:
    """Read a number of candidates; None for 1, which is plain sampling.

    Where none is asked for it is the model's ``default``, if the rest of the request is ``fitting``. Raises ``BadRequest`` for
    what is no such number.
    """
    if candidates is None:
        candidates = default if fitting else 1
    if type(candidates) is not int or not 1 <= candidates <= MOST_CANDIDATES:
        raise BadRequest(f"candidates must be a whole number from 1 to {MOST_CANDIDATES}, found {candidates!r}")
    return None if candidates == 1 else Candidates(candidates)
