"""Structure prediction within a space group: the one that the model finds likeliest for a composition, or one that is asked."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from moldiff.apart import too_close
from moldiff.chem.crystals import Crystal
from moldiff.composition import TYPES, Composition, Compositions
from moldiff.control import Place, Spec
from moldiff.errors import BadRequest
from moldiff.evaluation.crystals.supported import MOST as COMPARED
from moldiff.evaluation.crystals.supported import supported
from moldiff.evaluation.crystals.templates import GivenSymmetry, Templates, spread

if TYPE_CHECKING:
    from moldiff.model_store import ModelInfo
    from moldiff.samples import Sample
    from moldiff.sampling.control import Control
    from moldiff.steer.conditions import Conditions

LEARNED, NONE = "learned", "none"
#: Where a sample says that it began.
GEOMETRY, NOISE = "geometry", "noise"
#: Learnt geometries are noised to this time before the network takes over (docs/experiments.md).
STRENGTH = 0.1
#: Symmetries of a composition that samples are spread over, at most; the others are too unlikely to be ever drawn.
MOST = 200
#: Verbs that fix atoms, cells or where the way begins, each of which contradicts a symmetry of the whole.
OTHERS = ("keep", "keep_cell", "like", "prototypes", "positions")


class Choice:
    """The symmetries of one composition, and which of them each of its samples has; several threads may ask.

    ``ranked`` are (chance, template, elements of slots, learnt geometry or None), the likeliest first, but for the first of all:
    that is the one with the greatest chance to match (``evaluation.crystals.supported``).
    """

    def __init__(self, templates: Templates, row: Composition, groups: Sequence[int]) -> None:
        self._lock, self.templates, self.numbers = threading.Lock(), templates, row.numbers
        found: list[tuple[float, int, tuple[int, ...], int | None]] = []
        for chance, template, slots in templates.ranking(row.numbers, groups)[:MOST]:
            shares = templates.shares(template, slots, row.numbers)
            found += [(chance * share, template, slots, g) for share, g in shares] or [(chance, template, slots, None)]
        self.ranked = sorted(found, key=lambda one: -one[0])
        self._order: list[tuple[int, int]] = []
        self._made: dict[int, GivenSymmetry] = {}
        self._first: int | None = None

    def of(self, k: int) -> tuple[GivenSymmetry, bool] | None:
        """That of the k-th sample: the likeliest first, each as often as it is likely; None where none is known.

        Beside it whether the sample begins at its learnt geometry, which every other sample of a symmetry does.
        """
        if not self.ranked:
            return None
        with self._lock:
            if k >= len(self._order):
                self._order = self._numbered(2 * k + 1)
            rank, times = self._order[k]
            return self._symmetry(rank), self.ranked[rank][3] is not None and times % 2 == 0

    def _numbered(self, n: int) -> list[tuple[int, int]]:
        """The places of n samples, and how often each came before."""
        chances = [chance for chance, *_ in self.ranked]
        if self._first is None:
            self._first = supported(chances, [self._looks(rank) for rank in range(min(COMPARED, len(chances)))])
        order = spread(chances, n)
        if self._first in order:
            order.remove(self._first)
        seen: dict[int, int] = {}
        found = []
        for rank in [self._first, *order][:n]:
            found.append((rank, seen.get(rank, 0)))
            seen[rank] = found[-1][1] + 1
        return found

    def _symmetry(self, rank: int) -> GivenSymmetry:
        if rank not in self._made:
            chance, template, slots, geometry = self.ranked[rank]
            self._made[rank] = self.templates.symmetry(template, slots, self.numbers, chance, geometry)
        return self._made[rank]

    def _looks(self, rank: int) -> Crystal | None:
        one = self._symmetry(rank)
        if one.cell is None:
            return None
        return Crystal.of(np.asarray(self.numbers), one.base.double().numpy(), one.cell.double().numpy())


@dataclass(frozen=True, eq=False)
class WithSymmetry(Spec):
    """Sample k of each composition has the k-th of its symmetries (``Choice``), all of them or those of ``groups``.

    A composition for which the model has none is drawn without; where ``groups`` are asked for it is refused. A sample whose
    atoms come closer than those of any real crystal is drawn anew, ``redraws`` times at most: in a symmetry an atom that sets
    out on the wrong side of a special place can't pass it, for its images would meet it there.

    Where the model has learnt geometries of a symmetry, every other sample begins there, noised to the time ``strength``.
    """

    compositions: Compositions
    templates: Templates
    digest: str
    groups: tuple[int, ...] = ()
    known: dict[int, Choice] = field(default_factory=dict, repr=False)
    redraws: int = 4
    strength: float = STRENGTH
    insists = False
    name = "symmetry"

    def settings(self) -> dict[str, Any]:
        return {
            "groups": list(self.groups) or LEARNED, "sha256": self.digest, "redraws": self.redraws, "strength": self.strength,
        }  # fmt: skip

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
            if other.name in OTHERS:
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

        from moldiff.core.batch import AtomBatch
        from moldiff.core.symmetry import Group
        from moldiff.sampling.prototypes import NEVER
        from moldiff.sampling.symmetric import Beginnings, Symmetric

        rows = len(self.compositions.rows)
        found = [self.choice(i).of(i // rows) for i in place.indices]
        each = [None if one is None else one[0] for one in found]
        begun = [one is not None and one[1] and self.strength < 1 for one in found]
        base, cells = torch.zeros(len(each), place.size, 3), torch.eye(3).repeat(len(each), 1, 1)
        for k, one in enumerate(each):
            if one is not None:
                base[k] = one.base
            if one is not None and one.cell is not None:
                cells[k] = one.cell
        group = Group.of([None if one is None else one.operations for one in each], place.size, place.device)
        said = [{"symmetry": NONE if one is None else one.label} for one in each]
        if self.templates.geometries is not None:
            said = [{**one, "began": GEOMETRY if late else NOISE} for one, late in zip(said, begun, strict=True)]
        known = None
        if any(begun):
            numbers = [torch.tensor(self.compositions.rows[i % rows].numbers) for i in place.indices]
            truth = AtomBatch.from_list([
                {TYPES: z, "frac_coords": x, "lattice": cell} for z, x, cell in zip(numbers, base % 1, cells, strict=True)
            ])  # fmt: skip
            begins = torch.tensor([self.strength if one else NEVER for one in begun], device=place.device)
            known = Beginnings(place.vocabulary.encode(truth).to(place.device), begins, place.fewest)
        return Symmetric(group, base.to(place.device), said, known)


def symmetry_from(
    info: ModelInfo,
    symmetry: Any,
    compositions: Compositions | None,
    fitting: bool,
    strength: float | None = None,
    conditions: Conditions | None = None,
) -> Spec | None:
    """The specification behind ``--symmetry``: ``learned``, ``none``, or space groups (numbers or symbols).

    None asked for is ``learned`` where the model has templates, a composition is given or made and the rest of the request is
    ``fitting``. A model that makes compositions draws symmetries (``symmetry_drawn``), unless one is given. ``strength`` is the
    time to which learnt geometries are noised. A space group among the ``conditions`` is the symmetry that is drawn. Raises
    ``BadRequest`` for an unknown space group, for a model without templates and for a strength outside 0 to 1.
    """
    made = TYPES in info.config.fields
    if symmetry is None:
        if made == (compositions is not None) or not fitting or not info.has_templates:
            return None
        symmetry = LEARNED
    if str(symmetry) == NONE:
        return None
    groups = () if str(symmetry) == LEARNED else space_groups(symmetry)
    if not info.has_templates:
        raise BadRequest(f"{info.name} has not learnt symmetries: --symmetry is for models that did (mp20-csp, mp20)")
    if made and compositions is None:
        from moldiff.symmetry_drawn import SPACE_GROUP, DrawnSymmetry

        if strength is not None:
            raise BadRequest(f"{info.name} begins at noise: strength is for learnt geometries of a composition, and for --like")
        known = tuple(info.config.vocabulary[TYPES])
        wanted = {} if conditions is None else {name: (low, high) for name, low, high in conditions.values}
        if SPACE_GROUP not in wanted:
            return DrawnSymmetry(info.templates(), info.files[info.TEMPLATES], known, groups)
        if groups:
            raise BadRequest(f"--symmetry and the condition {SPACE_GROUP} both say which space group: leave one of them out")
        if conditions is not None and not conditions.of_each:
            groups = tuple(range(max(1, int(wanted[SPACE_GROUP][0])), int(wanted[SPACE_GROUP][1]) + 1))
        return DrawnSymmetry(info.templates(), info.files[info.TEMPLATES], known, groups, conditions=conditions)
    if compositions is None:
        raise BadRequest("a symmetry is that of a composition: give a formula or compositions")
    t = STRENGTH if strength is None else float(strength)
    if not 0 <= t <= 1:
        raise BadRequest(f"the strength of a symmetry must lie in 0 (learnt geometries as they are) to 1 (noise), found {t:g}")
    return WithSymmetry(compositions, info.templates(), info.files[info.TEMPLATES], groups, strength=t)


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
