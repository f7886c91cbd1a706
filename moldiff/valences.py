"""Valences held: molecules with an even number of electrons all the way down, whose last graph is read under valence rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moldiff.charge import Charge
from moldiff.chem.valence import VALENCES
from moldiff.composition import Compositions
from moldiff.control import Place, Spec
from moldiff.errors import BadRequest, unknown

if TYPE_CHECKING:
    from moldiff.model_store import ModelInfo
    from moldiff.sampling.control import Control

HELD, FREE = "held", "free"


@dataclass(frozen=True)
class Valences(Spec):
    """Molecules are drawn as closed shells (``sampling.closed_shell``) and their bonds and charges read together
    (``sampling.joint_graph``). With ``elements`` False, which is so where a formula or a least number of an element is asked for,
    only the latter. ``charge`` is the total charge where one is asked for.
    """

    elements: bool = True
    asked: bool = False
    charge: int | None = None
    name = "valences"
    settles = True

    def settings(self) -> Any:
        return HELD

    def check(self, info: ModelInfo) -> None:
        if self.asked and not can_hold(info):
            raise BadRequest(f"{info.name} makes no elements and bonds of molecules whose valences could be held")

    def beside(self, others: Sequence[Spec]) -> Spec | None:
        """None where the graph is given; elements left alone where they are counted."""
        if any("bond_types" in other.gives and "positions" not in other.gives for other in others):
            return None
        counted = any(isinstance(o, Compositions) for o in others)
        charge = next((o.charge for o in others if isinstance(o, Charge)), None)
        return replace(self, elements=not counted, charge=charge)

    def control(self, place: Place) -> Control:
        from moldiff.sampling.closed_shell import ClosedShell
        from moldiff.sampling.control import Controls
        from moldiff.sampling.joint_graph import JointGraph

        parts: list[Control] = [ClosedShell(place.vocabulary, self.charge or 0)] if self.elements else []
        return Controls([*parts, JointGraph(place.vocabulary, VALENCES, total=self.charge)])


def can_hold(info: ModelInfo) -> bool:
    """Whether a model draws elements and bonds of molecules as classes."""
    fields = info.config.fields
    categorical = all(name in fields and fields[name].process == "categorical" for name in ("atom_types", "bond_types"))
    return info.config.kind == "molecule" and categorical and not info.config.needs_graph


def valences_from(wanted: str | None, info: ModelInfo) -> Valences | None:
    """``wanted`` is ``held`` or ``free``, or None for the model's own; raises ``BadRequest`` for anything else."""
    if wanted is not None and wanted not in (HELD, FREE):
        raise unknown("valences", str(wanted), (HELD, FREE))
    held = (wanted or info.config.sampling.valences) == HELD
    return Valences(asked=wanted is not None) if held else None
