"""De novo crystals within a space group: symmetries drawn as often as training crystals have them, elements and all else made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from moldiff.apart import too_close
from moldiff.composition import TYPES
from moldiff.control import Place, Spec
from moldiff.core.rng import stream_seed
from moldiff.element_count import ElementCount
from moldiff.errors import BadRequest
from moldiff.evaluation.crystals.templates import Templates
from moldiff.symmetry import LEARNED, NONE, OTHERS

if TYPE_CHECKING:
    from moldiff.core.symmetry import Operations
    from moldiff.model_store import ModelInfo
    from moldiff.samples import Sample
    from moldiff.sampling.control import Control
    from moldiff.steer.conditions import Conditions

#: The condition that asks for a space group, by its number.
SPACE_GROUP = "space_group"
_SALT = 2  # of the stream that says which symmetry; 0 says how many atoms, 1 how many elements


@dataclass(frozen=True, eq=False)
class DrawnSymmetry(Spec):
    """Each sample has a symmetry of its number of atoms: one of the model's templates, as often as training crystals have it, or
    among those of ``groups`` (none: all); where ``conditions`` ask a sample for a space group, among those of that one.

    The atoms of a template's slot get one element, different slots different ones (``sampling.slot_types``); so the number of
    elements is the template's, within what ``count`` asks (``counted``: whether anything was asked). ``elements`` are those that
    the model knows. A size without a template is drawn without symmetry.
    """

    templates: Templates
    digest: str
    elements: tuple[int, ...]
    groups: tuple[int, ...] = ()
    count: ElementCount | None = None
    counted: bool = False
    conditions: Conditions | None = None
    known: dict[tuple[int, tuple[int, ...]], tuple[list[int], list[int]]] = field(default_factory=dict, repr=False)
    missed: dict[int, str] = field(default_factory=dict, repr=False)
    redraws: int = 4
    insists = False
    settles = True
    holds_elements = True
    name = "symmetry"

    def settings(self) -> dict[str, Any]:
        counted = {} if self.count is None or not self.counted else {"n_elements": self.count.settings()}
        return {"groups": list(self.groups) or LEARNED, "sha256": self.digest, "redraws": self.redraws, **counted}

    def check(self, info: ModelInfo) -> None:
        if not {TYPES, "frac_coords", "lattice"} <= set(info.config.fields):
            raise BadRequest(f"a symmetry is for models that make crystals, which {info.name} does not")

    def beside(self, others: Sequence[Spec]) -> Spec | None:
        """The same, holding the number of elements in the place of the specification that does so alone."""
        asked = next((other for other in others if isinstance(other, ElementCount)), None)
        count = ElementCount((1, len(self.elements)), None, self.elements) if asked is None else asked
        held = count.beside([other for other in others if other is not asked and not isinstance(other, DrawnSymmetry)])
        assert isinstance(held, ElementCount)
        return replace(self, count=held, counted=asked is not None, known={}, missed={})

    def check_beside(self, others: Sequence[Spec]) -> None:
        for other in others:
            if other.name in OTHERS or TYPES in other.gives:
                raise BadRequest(f"{other.name.replace('_', '-')} and a symmetry contradict each other: say --symmetry none")
        if self.count is not None:
            self.count.check_beside(others)

    def admits(self, size: int) -> bool:
        if self.groups and not self._of(size, self.groups)[0]:
            return False
        return self.count is None or self.count.admits(size)

    def weigh(self, size: int, weight: int) -> int:
        if self.groups:
            return sum(self._of(size, self.groups)[1])
        return weight if self.count is None else self.count.weigh(size, weight)

    def size_of(self, index: int) -> int | None:
        """Of a table of conditions without numbers of atoms: a size that crystals of the asked space group have."""
        sizes = () if self.conditions is None or self.groups else getattr(self.conditions, "sizes", ())
        if self.conditions is None or not sizes or any(size is not None for size in sizes):
            return None
        wanted = {name: (low, high) for name, low, high in self.conditions.wanted(index)}
        if SPACE_GROUP not in wanted:
            return None
        groups = tuple(range(int(wanted[SPACE_GROUP][0]), int(wanted[SPACE_GROUP][1]) + 1))
        weights = {n: sum(self._of(n, groups)[1]) for n in sorted(set(self.templates.columns["n_atoms"].tolist()))}
        place = stream_seed(index, _SALT) * sum(weights.values()) >> 63
        for n, weight in weights.items():
            place -= weight
            if place < 0:
                return int(n)
        return None

    def wants(self) -> str:
        if not self.groups:
            return self.name
        few = len(self.groups) <= 4
        return "the space group " + (" or ".join(map(str, self.groups)) if few else f"{self.groups[0]} to {self.groups[-1]}")

    def refuses(self, sample: Sample) -> str:
        return too_close(sample)

    def notices(self) -> list[str]:
        missed, first = len(self.missed), next(iter(self.missed.values()), "")
        self.missed.clear()
        more = f" ({missed - 1:,} more samples are like that)" if missed > 1 else ""
        return [f"no known symmetry has {first}: drawn without one{more}"] if missed else []

    def asked(self, info: ModelInfo, seed: int, index: int) -> tuple[int, ...]:
        """The space groups that one sample may have; none for all."""
        wanted = {} if self.conditions is None else self.conditions.asked(info, seed, index)
        return (int(wanted[SPACE_GROUP]),) if SPACE_GROUP in wanted else self.groups

    def template(self, seed: int, index: int, size: int, groups: tuple[int, ...] | None = None) -> int | None:
        """The template of one sample, by seed and index alone; None where there is none of its size.

        Of ``groups`` that have none of this size, one of those is taken that all samples may have.
        """
        chosen = self.groups if groups is None else groups
        templates, weights = self._of(size, chosen)
        if not templates and chosen != self.groups and self.groups:
            templates, weights = self._of(size, self.groups)
        place = stream_seed(stream_seed(seed, index), _SALT) * sum(weights) >> 63
        for template, weight in zip(templates, weights, strict=True):
            place -= weight
            if place < 0:
                return template
        if chosen:
            self.missed[index] = f"{size} atoms in the space group {', '.join(map(str, chosen))}"
        return None

    def _of(self, size: int, groups: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """The templates of so many atoms within what is asked, and how many training crystals have each."""
        key = (size, groups)
        if key not in self.known:
            found = [
                (k, weight)
                for k, weight in self.templates.of_size(size, groups)
                if self.count is None or self.count.within(size, len(self.templates.counts[k]))
            ]
            self.known[key] = [k for k, _ in found], [weight for _, weight in found]
        return self.known[key]

    def control(self, place: Place) -> Control:
        import torch

        from moldiff.core.symmetry import Group
        from moldiff.sampling.control import Controls
        from moldiff.sampling.element_count import Bounds
        from moldiff.sampling.slot_types import SlotTypes
        from moldiff.sampling.symmetric import Symmetric

        n, classes = place.size, place.vocabulary.values[TYPES]
        base, slots = torch.zeros(len(place.indices), n, 3), torch.arange(n).repeat(len(place.indices), 1)
        operations: list[Operations | None] = []
        said, least, caps = [], [], []
        for row, i in enumerate(place.indices):
            template = self.template(place.seed, i, n, self.asked(place.info, place.seed, i))
            if template is None:
                low, most = (1, (n,) * n) if self.count is None else self.count.bounds(place.seed, i, n)
                operations.append(None)
                said.append({"symmetry": NONE})
            else:
                one, slots[row] = self.templates.pattern(template)
                low = len(self.templates.counts[template])
                most = (1,) * low
                base[row] = one.base
                operations.append(one.operations)
                said.append({"symmetry": f"{one.number}:{template}"})
            least.append(low)
            caps.append([*most, *[0] * (n - len(most))])
        allowed, required = self._elements(classes)
        here, rows = place.device, len(place.indices)
        bounds = Bounds(
            torch.tensor(least, device=here), torch.tensor(caps, device=here), allowed.to(here).expand(rows, -1),
            required.to(here).expand(rows, -1), torch.zeros(0, dtype=torch.int64, device=here),
        )  # fmt: skip
        group = Group.of(operations, n, here)
        return Controls([Symmetric(group, base.to(here), said), SlotTypes(slots.to(here), bounds)])

    def _elements(self, classes: Sequence[int]) -> Any:
        """Which classes there may be, and which there must be, bool [C] each."""
        import torch

        if self.count is None:
            return torch.ones(len(classes), dtype=torch.bool), torch.zeros(len(classes), dtype=torch.bool)
        return tuple(torch.tensor([z in some for z in classes]) for some in (self.count.allowed, self.count.must))
