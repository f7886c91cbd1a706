"""Whether two crystals are the same structure, by pymatgen's StructureMatcher, with a time limit a pair.

Source: Ong et al., Comput. Mater. Sci. 68, 314 (2013). Lengths and volumes are scaled away, chirality is ignored, and some pairs
of different space groups match: that is how the literature counts, and is said beside the numbers.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from moldiff.chem.crystals import Crystal, niggli, to_structure
from moldiff.evaluation.cache import ResultCache, structure_key
from moldiff.evaluation.parallel import Progress, map_items

if TYPE_CHECKING:
    from pymatgen.core import Structure

R = TypeVar("R")


@dataclass(frozen=True)
class Tolerance:
    """Tolerances of StructureMatcher: sites (in (V/N)^(1/3)), lengths (relative) and angles (degrees)."""

    stol: float
    ltol: float
    angle_tol: float


#: What the literature on crystal structure prediction uses (Xie et al., CDVAE; Jiao et al., DiffCSP).
CSP: Final = Tolerance(stol=0.5, ltol=0.3, angle_tol=10)
#: pymatgen's own, for uniqueness and novelty.
STRICT: Final = Tolerance(stol=0.3, ltol=0.2, angle_tol=5)
#: Seconds that a pair may take; most take 10 to 50 ms, a few (flat cells, many atoms) would take minutes.
PAIR_LIMIT = 10.0
_VERSION = "matcher-1"


class TooLate(BaseException):
    """Raised inside work that has used up its time; no library's ``except Exception`` swallows it."""


@dataclass(frozen=True)
class Pair:
    """Two crystals to compare; ``rms`` asks for the distance, otherwise only whether they are the same."""

    first: Crystal
    second: Crystal
    tolerance: Tolerance = CSP
    rms: bool = True
    limit: float = PAIR_LIMIT

    def key(self) -> str:
        """Return the key under which the result is cached."""
        other = crystal_key("", self.second)
        return crystal_key(_VERSION, self.first, other, self.tolerance, self.rms, self.limit)


@dataclass(frozen=True)
class Match:
    """Whether two crystals match, and the RMS distance in units of (V/N)^(1/3) where it was asked for.

    ``given_up``: the matcher took too long or failed, which counts as no match.
    """

    same: bool
    rms: float | None = None
    given_up: bool = False


NO_MATCH = Match(False)
GIVEN_UP = Match(False, given_up=True)


def crystal_key(kind: str, crystal: Crystal, *more: object) -> str:
    """Hash a crystal for one kind of calculation; see ``cache.structure_key``."""
    numbers = np.concatenate([crystal.numbers, [0, 0, 0]])
    return structure_key(kind, numbers, np.vstack([crystal.positions, crystal.lattice]), *more)


def composition_key(numbers: Any) -> tuple[tuple[int, int], ...]:
    """Return the reduced composition of atomic numbers [N] as pairs (Z, count): crystals that differ in it are different."""
    z, counts = np.unique(np.asarray(numbers), return_counts=True)
    return tuple(zip(z.tolist(), (counts // np.gcd.reduce(counts)).tolist(), strict=True))


def compare(pair: Pair) -> Match:
    """Compare two crystals; a pair that takes longer than its limit does not match and is marked ``given_up``."""
    if composition_key(pair.first.numbers) != composition_key(pair.second.numbers):
        return NO_MATCH
    return _guarded(pair.limit, _compare, pair)


def compare_all(
    pairs: Sequence[Pair],
    *,
    n_processes: int | None = None,
    cache: ResultCache | None = None,
    progress: Progress | None = None,
) -> list[Match]:
    """Compare many pairs over the cores, in order; results of earlier runs come from ``cache``."""
    keys = [pair.key() if cache is not None else "" for pair in pairs]
    known: dict[int, Match] = {}
    for i, key in enumerate(keys):
        if cache is not None and (stored := cache.get(key)) is not None:
            known[i] = Match(**stored)
    left = [i for i in range(len(pairs)) if i not in known]

    def keep(position: int, match: Match) -> None:
        # A slow machine must not spoil what a fast one would find.
        if cache is not None and not match.given_up:
            cache.put(keys[left[position]], {"same": match.same, "rms": match.rms})

    fresh = map_items(compare, [pairs[i] for i in left], _lost, n_processes=n_processes, progress=progress, done=keep)
    if cache is not None:
        cache.flush()
    known.update(zip(left, fresh, strict=True))
    return [known[i] for i in range(len(pairs))]


def reduced_structure(crystal: Crystal) -> Structure:
    """Return the primitive Niggli structure that StructureMatcher would make of a crystal, in a fraction of its time."""
    structure = to_structure(niggli(crystal))
    # Where the counts of the elements have no common divisor, no smaller cell exists.
    if np.gcd.reduce(np.unique(crystal.numbers, return_counts=True)[1]) == 1:
        return structure
    return structure.get_primitive_structure()


def same_structure(
    first: Structure, second: Structure, tolerance: Tolerance = STRICT, limit: float = PAIR_LIMIT, rms: bool = False
) -> Match:
    """Tell whether two structures that ``reduced_structure`` made are the same: no atom is farther off than the tolerance, or,
    with ``rms``, they are not on the average, as ``compare`` tells."""
    return _guarded(limit, _rms if rms else _fit, first, second, tolerance)


def within(seconds: float, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """Call a function and raise ``TooLate`` when it takes longer than ``seconds``.

    The clock is the process's interval timer, which interrupts Python in the main thread of POSIX systems; elsewhere the call
    is not interrupted, and the limit of the process pool is the only one.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return function(*args, **kwargs)

    def ring(number: int, frame: Any) -> None:
        raise TooLate

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return function(*args, **kwargs)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _compare(pair: Pair) -> Match:
    first, second = reduced_structure(pair.first), reduced_structure(pair.second)
    if not pair.rms:
        return _fit(first, second, pair.tolerance)
    return _rms(first, second, pair.tolerance)


def _rms(first: Structure, second: Structure, tolerance: Tolerance) -> Match:
    found = _matcher(tolerance).get_rms_dist(first, second)
    return NO_MATCH if found is None else Match(True, float(found[0]))


def _fit(first: Structure, second: Structure, tolerance: Tolerance) -> Match:
    return Match(bool(_matcher(tolerance).fit(first, second, skip_structure_reduction=True)))


def _guarded(limit: float, function: Callable[..., Match], *args: Any) -> Match:
    try:
        return within(limit, function, *args)
    except TooLate:
        return GIVEN_UP
    except Exception:  # noqa: BLE001 - numpy, spglib and pymatgen raise many kinds for degenerate cells
        return GIVEN_UP


@lru_cache(maxsize=8)
def _matcher(tolerance: Tolerance) -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    class Prepared(StructureMatcher):  # type: ignore[misc]
        """A matcher that is handed primitive Niggli structures, and does not make them once more."""

        @classmethod
        def _get_reduced_structure(cls, struct: Any, primitive_cell: bool = True, niggli: bool = True) -> Any:
            return struct.copy()

    return Prepared(stol=tolerance.stol, ltol=tolerance.ltol, angle_tol=tolerance.angle_tol)


def _lost(pair: Pair, reason: str) -> Match:
    return GIVEN_UP
