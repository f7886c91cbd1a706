"""Which of several structures of a composition to predict first: the one that most likely matches the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moldiff.chem.crystals import Crystal
from moldiff.evaluation.crystals.matching import CSP, reduced_structure, same_structure

if TYPE_CHECKING:
    from pymatgen.core import Structure

#: Structures that are compared with each other, at most.
MOST = 6
#: Part of its chance by which a structure counts that is drawn from noise, whose free coordinates are less sure than those of a
#: learnt geometry; 0.3 to 1 choose about alike (docs/experiments.md).
FROM_NOISE = 0.5


def supported(chances: Sequence[float], crystals: Sequence[Crystal | None]) -> int:
    """The place of the structure with the greatest chance to match, among the ``MOST`` likeliest (``chances`` descend).

    ``crystals`` are what each looks like, None where that is not known. Symmetries that are distortions of each other share the
    chances of a structure; so each structure is lent those of the others that StructureMatcher takes for the same: the minimum
    Bayes risk decision (Kumar and Byrne 2004).
    """
    if len(chances) < 2 or (crystals[0] is not None and chances[0] >= sum(chances[1:MOST])):
        return 0  # whatever the others lend each other
    reduced = [None if one is None else _reduced(one) for one in crystals[:MOST]]
    some = list(zip(chances[:MOST], reduced, strict=True))
    lent = [chance if one is not None else FROM_NOISE * chance for chance, one in some]
    for i, (chance, one) in enumerate(some):
        for j, (other, two) in enumerate(some[:i]):
            if one is not None and two is not None and same_structure(one, two, CSP, rms=True).same:
                lent[i] += other
                lent[j] += chance
    return max(range(len(lent)), key=lambda k: (lent[k], -k))


def _reduced(crystal: Crystal) -> Structure | None:
    try:
        return reduced_structure(crystal)
    except Exception:  # noqa: BLE001 - numpy, spglib and pymatgen raise many kinds for degenerate cells
        return None
