"""How many different elements a crystal has, and how many atoms each: asked for, or drawn beforehand as training crystals are.

Types are made atom by atom, and a network that has learnt little makes too many kinds of atoms a crystal. So the numbers are
settled first, like the number of atoms, and held on the way (``sampling/element_count.py``). The number of elements alone is not
enough: atoms that may bring no new element then take the commonest one, and compositions make no sense (docs/experiments.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from moldiff.composition import TYPES, Elements
from moldiff.control import Place, Spec
from moldiff.core.rng import stream_seed
from moldiff.errors import BadRequest
from moldiff.keep_crystal import KeepCrystal
from moldiff.model_store import ELEMENT_COUNTS, ModelInfo
from moldiff.request import whole_range

if TYPE_CHECKING:
    from moldiff.sampling.control import Control

#: The words that stand for a number of elements: as in training, or not held at all.
TRAINED, ANY = "trained", "any"
_SALT = 1  # of the stream that says how many elements; 0 says how many atoms (``request.Request.size_of``)


@dataclass(frozen=True)
class ElementCount(Spec):
    """Crystals of at least ``asked[0]`` and at most ``asked[1]`` different elements; None: as many as training crystals have.

    ``table`` counts the training crystals by number of atoms and by how many are of each element (ABO3: (3, 1, 1)): what a sample
    has is drawn from the row of its size, within what is asked, by seed and index alone. Where no training crystal of a size is
    like that, and in models without a table, any number within is right, on any numbers of atoms. ``known`` are the model's
    elements; ``elements`` and ``keep`` are asked for beside it.
    """

    asked: tuple[int, int] | None
    table: Mapping[int, Mapping[tuple[int, ...], int]] | None
    known: tuple[int, ...]
    elements: Elements | None = None
    keep: KeepCrystal | None = None
    name = "n_elements"
    settles = True

    def settings(self) -> Any:
        return TRAINED if self.asked is None else list(self.asked)

    def check(self, info: ModelInfo) -> None:
        if self.asked is None:
            return
        reason = _unable(info)
        if reason:
            raise BadRequest(reason)
        least, known, most = self.asked[0], len(info.config.vocabulary[TYPES]), max(info.sizes)
        if least > known:
            raise BadRequest(f"--n-elements asks for {least} elements, and {info.name} knows {known}")
        if least > most:
            raise BadRequest(f"--n-elements asks for {least} elements, and {info.name} makes {most} atoms at most")

    def check_beside(self, others: Sequence[Spec]) -> None:
        from ase.data import chemical_symbols

        if self.asked is None:
            return
        told = next((other for other in others if TYPES in other.gives), None)
        if told is not None:
            raise BadRequest(f"--n-elements contradicts {told.name}, which says what every atom is")
        if self.asked[1] < len(self.must):
            names = ", ".join(chemical_symbols[z] for z in self.must)
            raise BadRequest(f"--n-elements allows {self.asked[1]}, and {len(self.must)} are required or kept: {names}")
        left = len(self.allowed)
        if self.asked[0] > left:
            raise BadRequest(f"--n-elements asks for {self.asked[0]} elements, and --elements and --exclude leave {left}")

    def beside(self, others: Sequence[Spec]) -> Spec | None:
        """The same, knowing of elements and sites asked for; none where types are told and no number was asked for,
        and where another specification holds the number."""
        if any(other.holds_elements for other in others):
            return None
        if self.asked is None and any(TYPES in other.gives for other in others):
            return None
        elements = next((other for other in others if isinstance(other, Elements)), None)
        return replace(self, elements=elements, keep=next((o for o in others if isinstance(o, KeepCrystal)), None))

    def admits(self, size: int) -> bool:
        return self.asked is None or self.asked[0] <= self._most(size)

    def weigh(self, size: int, weight: int) -> int:
        if self.table is None:
            return weight
        return sum(self._row(size).values())

    def wants(self) -> str:
        return self.name if self.asked is None else f"{self.asked[0]} elements at least"

    def within(self, size: int, elements: int) -> bool:
        """Whether so many elements are within what is asked of a crystal of so many atoms."""
        least, most = self._range(size)
        return least <= elements <= most

    def bounds(self, seed: int, index: int, size: int) -> tuple[int, tuple[int, ...]]:
        """The least number of elements of one sample, and on how many atoms at most the commonest is, the next, and so on."""
        row = self._row(size)
        place = stream_seed(stream_seed(seed, index), _SALT) * sum(row.values()) >> 63
        for shares, weight in sorted(row.items()):
            place -= weight
            if place < 0:
                return len(shares), shares
        least, most = self._range(size)
        return least, (size,) * most

    def control(self, place: Place) -> Control:
        import torch

        from moldiff.sampling.element_count import Bounds
        from moldiff.sampling.element_count import ElementCount as Held

        classes, rows = place.vocabulary.values[TYPES], len(place.indices)
        found = [self.bounds(place.seed, i, place.size) for i in place.indices]
        least = torch.tensor([low for low, _ in found], device=place.device)
        caps = torch.tensor([[*caps, *[0] * (place.size - len(caps))] for _, caps in found], device=place.device)
        allowed, required = (
            torch.tensor([z in some for z in classes], device=place.device).expand(rows, -1)
            for some in (self.allowed, self.must)
        )
        kept = [] if self.keep is None else [classes.index(z) for z in self.keep.numbers]
        return Held(Bounds(least, caps, allowed, required, torch.tensor(kept, dtype=torch.int64, device=place.device)))

    @cached_property
    def must(self) -> tuple[int, ...]:
        """Atomic numbers that every sample has: required or kept."""
        required = () if self.elements is None else self.elements.require
        return tuple(sorted({*required, *([] if self.keep is None else self.keep.numbers)}))

    @cached_property
    def allowed(self) -> list[int]:
        """Atomic numbers that a sample may have."""
        return list(self.known) if self.elements is None else self.elements.allowed(self.known)

    def _most(self, size: int) -> int:
        """The greatest number of elements that so many atoms can have, beside what is kept of them."""
        kept = [] if self.keep is None else self.keep.numbers
        return len(set(kept)) + size - len(kept)

    def _range(self, size: int) -> tuple[int, int]:
        """The least and greatest number within what is asked, by whatever verb."""
        least, most = (1, size) if self.asked is None else self.asked
        most = min(most, self._most(size), len(self.allowed))
        return min(max(least, len(self.must)), most), most

    def _row(self, size: int) -> dict[tuple[int, ...], int]:
        """Training crystals of so many atoms, within what is asked, with room for what is kept."""
        row = {} if self.table is None else self.table.get(size, {})
        least, most = self._range(size)
        kept = sorted(Counter([] if self.keep is None else self.keep.numbers).values(), reverse=True)
        return {
            shares: weight
            for shares, weight in row.items()
            if least <= len(shares) <= most and all(a <= b for a, b in zip(kept, shares, strict=False))
        }


def element_count_from(asked: Any, info: ModelInfo) -> ElementCount | None:
    """The specification of ``n_elements``: a number, a range as ``"2-4"`` or ``(2, 4)``, "trained", "any"; None: the model's own.

    None comes back for "any", and for a model of molecules, one that is told its types or one without a table of numbers of
    elements where nothing was asked. Raises ``BadRequest`` for what can't be read.
    """
    own, known = asked is None, tuple(info.config.vocabulary.get(TYPES, ()))
    wanted = info.config.sampling.n_elements if own else asked
    if wanted == ANY:
        return None
    if wanted == TRAINED:
        if own and (info.element_counts is None or _unable(info)):
            return None
        if info.element_counts is None:
            raise BadRequest(_unable(info) or f"{info.name} has no {ELEMENT_COUNTS}: give --n-elements a number or a range")
        return ElementCount(None, info.element_counts, known)
    return ElementCount(_parsed(wanted), info.element_counts, known)


def _unable(info: ModelInfo) -> str:
    """Why the number of elements can't be held by this model, or an empty string."""
    if info.config.kind != "crystal":
        return f"{info.name} makes {info.config.kind}s, and --n-elements is for crystals: say --elements and --require"
    if TYPES in info.config.given:
        return f"{info.name} is told its composition, so that --n-elements has nothing to say: count the elements of the formula"
    options = info.config.fields[TYPES].model_dump() if TYPES in info.config.fields else {}
    if options.get("prior_kind") != "absorbing":
        return f"{info.name} does not make types from an absorbing state, which --n-elements needs"
    return ""


def _parsed(asked: Any) -> tuple[int, int]:
    wrong = BadRequest(f"n_elements must be a number, a range such as 2-4, {TRAINED} or {ANY}, found {asked!r}")
    least, most = whole_range(asked, wrong)
    if least < 1:
        raise BadRequest(f"a crystal has at least 1 element, and n_elements asks for {least}")
    return least, most
