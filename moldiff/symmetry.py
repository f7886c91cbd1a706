"""Structure prediction within a space group: the one that the model finds likeliest for a composition, or one that is asked."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moldiff.apart import too_close
from moldiff.composition import TYPES, Composition, Compositions
from moldiff.control import Place, Spec
from moldiff.errors import BadRequest
from moldiff.evaluation.crystals.templates import GivenSymmetry, Templates, spread

if TYPE_CHECKING:
    from moldiff.model_store import ModelInfo
    from moldiff.samples import Sample
    from moldiff.sampling.control import Control

LEARNED, NONE = "learned", "none"
#: Symmetries of a composition that samples are spread over, at most; the others are too unlikely to be ever drawn.
MOST = 200
#: Verbs that fix atoms, cells or where the way begins, each of which contradicts a symmetry of the whole.
_OTHERS = ("keep", "keep_cell", "like", "prototypes", "positions")


class Choice:
    """The symmetries of one composition, and which of them each of its samples has; several threads may ask."""

    def __init__(self, templates: Templates, row: Composition, groups: Sequence[int]) -> None:
        self._lock, self.templates, self.numbers = threading.Lock(), templates, row.numbers
        self.ranked = templates.ranking(row.numbers, groups)[:MOST]
        self._order: list[int] = []
        self._made: dict[int, GivenSymmetry] = {}

    def of(self, k: int) -> GivenSymmetry | None:
        """That of the k-th sample: the likeliest first, each as often as it is likely; None where none is known."""
        if not self.ranked:
            return None
        with self._lock:
            if k >= len(self._order):
                self._order = spread([chance for chance, *_ in self.ranked], 2 * k + 1)
            rank = self._order[k]
            if rank not in self._made:
                chance, template, slots = self.ranked[rank]
                self._made[rank] = self.templates.symmetry(template, slots, self.numbers, chance)
            return self._made[rank]


@dataclass(frozen=True, eq=False)
class WithSymmetry(Spec):
    """Sample k of each composition has the k-th of its symmetries (``Choice``), all of them or those of ``groups``.

    A composition for which the model has none is drawn without; where ``groups`` are asked for it is refused. A sample whose
    atoms come closer than those of any real crystal is drawn anew, ``redraws`` times at most: in a symmetry an atom that sets
    out on the wrong side of a special place can't pass it, for its images would meet it there.
    """

    compositions: Compositions
    templates: Templates
    digest: str
    groups: tuple[int, ...] = ()
    known: dict[int, Choice] = field(default_factory=dict, repr=False)
    redraws: int = 4
    insists = False
    name = "symmetry"

    def settings(self) -> dict[str, Any]:
        return {"groups": list(self.groups) or LEARNED, "sha256": self.digest, "redraws": self.redraws}

    def check(self, info: ModelInfo) -> None:
        if TYPES not in info.config.given or not {"frac_coords", "lattice"} <= set(info.config.fields):
            raise BadRequest(
                f"a symmetry is for models that predict the structure of a composition (mp20-csp), which {info.name} does not"
            )
        for row in self.compositions.rows if self.groups else ():
            if not self.templates.ranking(row.numbers, self.groups):
                known = sorted({int(self.templates.columns["number"][t]) for _, t, _ in self.templates.ranking(row.numbers)})
                asked = ", ".join(map(str, self.groups))
                has = f"it knows {', '.join(map(str, known))}" if known else "it knows none with these numbers of atoms"
                raise BadRequest(f"{info.name} knows no structure of {row} in the space group {asked} ({has})")

    def cautions(self, info: ModelInfo) -> list[str]:
        said = []
        larger = [(row, self.templates.smaller(row.numbers)) for row in self.compositions.rows]
        larger = [(row, cells) for row, cells in larger if cells > 1]
        if larger:
            row, cells = larger[0]
            more = f" ({len(larger) - 1:,} more compositions are like that)" if len(larger) > 1 else ""
            said.append(
                f"{row} is likelier with z = {row.z / cells:g}: z counts the formula units of the primitive cell, and such "
                f"structures are not found in a multiple of it{more}"
            )
        without = [row for i, row in enumerate(self.compositions.rows) if not self.choice(i).ranked]
        if not without:
            return said
        what = f"{without[0]}" if len(without) == 1 else f"{len(without):,} compositions ({without[0]} the first)"
        return [*said, f"{info.name} knows no symmetry for {what}: drawn without one"]

    def check_beside(self, others: Sequence[Spec]) -> None:
        for other in others:
            if other.name in _OTHERS:
                raise BadRequest(f"{other.name.replace('_', '-')} and a symmetry contradict each other: say --symmetry none")

    def choice(self, index: int) -> Choice:
        """The symmetries of the composition of sample ``index``."""
        row = index % len(self.compositions.rows)
        if row not in self.known:
            self.known[row] = Choice(self.templates, self.compositions.rows[row], self.groups)
        return self.known[row]

    def refuses(self, sample: Sample) -> str:
        return too_close(sample)

    def control(self, place: Place) -> Control:
        import torch

        from moldiff.core.symmetry import Group
        from moldiff.sampling.symmetric import Symmetric

        rows = len(self.compositions.rows)
        each = [self.choice(i).of(i // rows) for i in place.indices]
        base = torch.zeros(len(each), place.size, 3)
        for k, one in enumerate(each):
            if one is not None:
                base[k] = one.base
        group = Group.of([None if one is None else one.operations for one in each], place.size, place.device)
        return Symmetric(group, base.to(place.device), [NONE if one is None else one.label for one in each])


def symmetry_from(info: ModelInfo, symmetry: Any, compositions: Compositions | None, fitting: bool) -> WithSymmetry | None:
    """The specification behind ``--symmetry``: ``learned``, ``none``, or space groups (numbers or symbols).

    None asked for is ``learned`` where the model has templates, a composition is given and the rest of the request is
    ``fitting``. Raises ``BadRequest`` for an unknown space group and for a model without templates.
    """
    if symmetry is None:
        if compositions is None or not fitting or not info.has_templates:
            return None
        symmetry = LEARNED
    if str(symmetry) == NONE:
        return None
    groups = () if str(symmetry) == LEARNED else space_groups(symmetry)
    if not info.has_templates:
        raise BadRequest(f"{info.name} has not learnt symmetries: --symmetry is for models that did (mp20-csp)")
    if compositions is None:
        raise BadRequest("a symmetry is that of a composition: give a formula or compositions")
    return WithSymmetry(compositions, info.templates(), info.files[info.TEMPLATES], groups)


def space_groups(asked: Any) -> tuple[int, ...]:
    """Numbers from 1 to 230 of space groups by number or symbol, one or several (a list, or with commas); ``BadRequest`` else."""
    from moldiff.chem.symmetry import space_group_number

    parts = asked if isinstance(asked, (list, tuple)) else str(asked).split(",")
    found = []
    for part in parts:
        number = space_group_number(str(part).strip())
        if number is None:
            raise BadRequest(f"--symmetry takes {LEARNED}, {NONE} or space groups (225, Fm-3m), found {str(part).strip()!r}")
        found.append(number)
    return tuple(sorted(set(found)))
