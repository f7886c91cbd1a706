"""Several candidates a sample as a specification: structures of one composition are drawn, and the best ranked one comes back.

Molecules are chosen by their properties instead (``steer.judged``).
"""

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
    from moldiff.steer.conditions import Conditions
    from moldiff.steer.judged import JudgedCandidates

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
            raise BadRequest(f"these candidates are ranked for crystals, and {info.name} makes {info.config.kind}s")

    def check_beside(self, others: Sequence[Spec]) -> None:
        for other in others:
            if other.rows_each > 1:
                raise BadRequest(f"candidates and {other.name} both draw several systems a sample: ask for one of them")
        if all("atom_types" not in other.gives for other in others):
            raise BadRequest("candidates are compared with each other and need one composition: give a formula or compositions")

    def control(self, place: Place) -> Control:
        return Chosen(self.rows_each, n_groups=len(set(place.indices)))


def candidates_from(
    candidates: Any,
    default: int = 1,
    fitting: bool = False,
    *,
    kind: str = "crystal",
    conditions: Conditions | None = None,
    judge: Any = None,
) -> Candidates | JudgedCandidates | None:
    """Read a number of candidates; None for 1, which is plain sampling.

    Where none is asked for it is the model's ``default``, if the rest of the request is ``fitting``. Of the ``kind`` molecule
    they are chosen by what ``conditions`` ask and ``judge``, a regressor, predicts. Raises ``BadRequest`` for what is no such
    number, and for a judge without candidates or of crystals.
    """
    if candidates is None:
        candidates = default if fitting else 1
    if type(candidates) is not int or not 1 <= candidates <= MOST_CANDIDATES:
        raise BadRequest(f"candidates must be a whole number from 1 to {MOST_CANDIDATES}, found {candidates!r}")
    if judge is not None:
        if kind == "crystal":
            raise BadRequest("a judge chooses among molecules; candidates of crystals are ranked by the model itself")
        if candidates == 1:
            raise BadRequest("a judge chooses among several candidates a sample: --candidates K")
        judge = str(judge)
    if candidates == 1:
        return None
    if kind == "crystal":
        return Candidates(candidates)
    from moldiff.steer.judged import JudgedCandidates

    return JudgedCandidates(candidates, conditions, judge)
