"""The verbs of control: keyword arguments of ``Generator.sample`` and options of ``moldiff generate``, made into specifications.

A new verb is a key of ``Verbs``, a line in ``specs_from`` and an option of the command; the specification itself, a
``moldiff.control.Spec``, lives in a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from moldiff.chem.fragments import Fragment
from moldiff.control import Spec
from moldiff.errors import BadRequest, unknown
from moldiff.model_store import ModelInfo

if TYPE_CHECKING:
    from moldiff.composition import Compositions
    from moldiff.steer.conditions import Conditions


class Verbs(TypedDict, total=False):
    """What may be asked for beside numbers; a verb that is None or absent asks for nothing."""

    formula: str | None  # LiFePO4: every sample has this composition
    z: int | None  # formula units in a cell
    compositions: str | Path | Sequence[str | tuple[str, int]] | None  # a CSV of formula and z, or a list: n samples of each
    elements: str | Sequence[str] | None  # only these
    exclude: str | Sequence[str] | None  # none of these
    require: str | Sequence[str] | None  # at least one atom of each
    n_elements: int | str | tuple[int, int] | None  # crystals: so many different ones, or 2-4; "trained", "any"
    charge: int | None  # molecules: the formal charges of every sample add up to this
    valences: str | None  # molecules: "held" (closed shells, the last graph read under valence rules), or "free"
    keep: str | Path | Fragment | Any  # this structure, or a part of it, comes back exactly in every sample
    keep_atoms: str | Sequence[int] | None  # these of its atoms, counted from 0
    keep_elements: str | Sequence[str] | None  # crystals: the sites of these elements
    keep_cell: Any  # crystals: the lattice of this file or structure, or a matrix [3, 3] in Å
    keep_smarts: str | None  # the atoms that match
    grow: str | int | tuple[int, int] | None  # so many atoms more than it has
    resamplings: int | None  # make every step so many times
    like: Any  # vary these molecules: a file, molecules, atoms, samples
    between: Any  # the way from one molecule to another of its size: a file of two, or two files, molecules, atoms, samples
    strength: float | None  # the time to noise them, prototypes or the learnt geometries of symmetries to
    prototypes: Any  # crystals: begin at known ones, of a prepared data set or of "aflow", elements swapped; "none" at noise
    redraws: int | None  # crystals: those whose atoms meet are drawn anew, so many times at most
    symmetry: Any  # crystals: "learned" (likely ones of a composition, else as often as in training), "none", or space groups
    smiles: str | None  # conformers of this molecule
    positions: Any  # types, charges and bonds for these positions
    conditions: Any  # {"gap": 9.0, "dipole": (1, 2)}, ["gap=9", "dipole=1..2"], or a row a sample: a CSV file, mappings
    companions: str | None  # "drawn": conditions that go with what is asked, of training systems near to it; or "none"
    guidance: float | None  # how closely conditions are followed: 1 as trained, above 1 more closely, at twice the calls
    guidance_function: str | Callable[[Any], Any] | None  # of moldiff.sampling.gradient_guidance.CleanAtoms
    guidance_scale: float | None  # multiplies it
    guidance_way: str | None  # by the gradient at the clean prediction ("clean") or through the "denoiser"
    guidance_clip: float | None  # no move is larger, in posterior standard deviations
    reward: Any  # a function of an RDKit molecule or pymatgen Structure, a name, or several, summed
    target: Mapping[str, Any] | Sequence[str] | None  # {"dipole": 3.0} or ["dipole=3", "gap=9:0.5"]
    candidates: int | None  # drawn for every sample: crystals of one composition, the best ranked comes back; molecules with
    # conditions, the one whose predicted properties are nearest
    judge: str | Path | None  # molecules: the regressor that predicts them, a name or folder; None: the model's own
    particles: int | None  # systems that go through the network for every sample that comes back
    reward_strength: float | None  # of p(x) exp(strength reward); None: chosen on the way
    reward_options: Mapping[str, Any] | None  # further fields of moldiff.steer.reward.Reward


def specs_from(info: ModelInfo, **verbs: Unpack[Verbs]) -> tuple[Spec, ...]:
    """The specifications that these verbs ask of a model, not yet checked against it (``make_request`` does that).

    Raises ``BadRequest`` for an unknown verb and a value that can't be read.
    """
    for name in verbs:
        if name not in Verbs.__annotations__:
            raise unknown("option", name, Verbs.__annotations__)
    from moldiff.apart import apart_from
    from moldiff.charge import charge_from
    from moldiff.composition import compositions_from, elements_from
    from moldiff.element_count import element_count_from
    from moldiff.given import between_from, graph_from, like_from, positions_from
    from moldiff.steer.candidates import candidates_from
    from moldiff.steer.conditions import conditions_from
    from moldiff.steer.gradient import guide_from
    from moldiff.steer.reward import reward_from
    from moldiff.valences import valences_from

    conditions = conditions_from(verbs.get("conditions"), verbs.get("guidance"), verbs.get("companions"))
    compositions = compositions_from(verbs.get("formula"), verbs.get("z"), verbs.get("compositions"))
    candidates = candidates_from(
        verbs.get("candidates"),
        info.config.sampling.candidates,
        compositions is not None and not _steered(verbs),
        kind=info.config.kind, conditions=conditions, judge=verbs.get("judge"),
    )  # fmt: skip
    begun = _begun(info, verbs, compositions)
    symmetric = _symmetric(info, verbs, compositions, begun, conditions)
    way = between_from(verbs.get("between"), verbs.get("strength"))
    late = way is None and ((begun is None and symmetric is None) or verbs.get("like") is not None)  # whose strength it then is
    found: list[Spec | None] = [
        conditions,
        guide_from(
            verbs.get("guidance_function"), verbs.get("guidance_scale"), verbs.get("guidance_way"), verbs.get("guidance_clip"),
            conditions,
        ),
        compositions,
        candidates if begun is None else begun,  # which chooses among its own
        symmetric,  # after candidates, whose doubt is that of the free model
        _kept(info, verbs),  # after candidates, which are compared in the model's own cell, and not in that of a file
        like_from(verbs.get("like"), verbs.get("strength") if late else None),
        way,
        graph_from(verbs.get("smiles"), info.config.sampling.conformers),
        positions_from(verbs.get("positions")),
        # after what is kept, whose atoms it counts
        elements_from(verbs.get("elements"), verbs.get("exclude"), verbs.get("require")),
        element_count_from(verbs.get("n_elements"), info),  # after those, whose draws it corrects
        charge_from(verbs.get("charge")),
        apart_from(verbs.get("redraws"), info),
        valences_from(verbs.get("valences"), info),  # after all that say which elements and bonds there may be
        reward_from(
            verbs.get("reward"), verbs.get("target"), verbs.get("particles"), verbs.get("reward_strength"),
            verbs.get("reward_options"), info,
        ),
    ]  # fmt: skip
    return tuple(spec for spec in found if spec is not None)


def _kept(info: ModelInfo, verbs: Verbs) -> Spec | None:
    """What is kept: a fragment of a molecule, or the cell or a sublattice of a crystal."""
    from moldiff.keep import keep_from
    from moldiff.keep_crystal import keep_crystal_from

    keep, atoms, times = verbs.get("keep"), verbs.get("keep_atoms"), verbs.get("resamplings")
    smarts, grow = verbs.get("keep_smarts"), verbs.get("grow")
    elements, cell = verbs.get("keep_elements"), verbs.get("keep_cell")
    if info.config.kind == "crystal":
        return keep_crystal_from(keep, atoms, elements, cell, times, keep_smarts=smarts, grow=grow)
    for flag, value in (("keep-cell", cell), ("keep-elements", elements)):
        if value is not None:
            raise BadRequest(f"{info.name} makes molecules, and --{flag} is for crystals: keep a fragment with --keep")
    return keep_from(keep, atoms, smarts, grow, times)


def _begun(info: ModelInfo, verbs: Verbs, compositions: Compositions | None) -> Spec | None:
    """Where the prediction of a composition begins: as asked, or the model's own prototypes, which give way to other verbs."""
    from moldiff.prototypes import prototypes_from

    wanted, candidates = verbs.get("prototypes"), verbs.get("candidates")
    if wanted is None:
        other = any(verbs.get(name) is not None for name in ("keep", "keep_cell", "like", "between")) or candidates == 1
        if compositions is None or other or _steered(verbs):
            return None
        wanted = info.config.sampling.prototypes
    if wanted is not None and str(wanted) != "none" and info.config.kind != "crystal":
        raise BadRequest(f"prototypes are crystals, and {info.name} makes {info.config.kind}s")
    return prototypes_from(wanted, compositions, verbs.get("strength"), candidates)


def _symmetric(
    info: ModelInfo, verbs: Verbs, compositions: Compositions | None, begun: Spec | None, conditions: Conditions | None
) -> Spec | None:
    """The symmetry of crystals of a composition: as asked, or the model's own, which gives way to what contradicts it."""
    from moldiff.symmetry import symmetry_from

    other = begun is not None or any(verbs.get(name) is not None for name in ("keep", "keep_cell", "like", "between"))
    strength = None if other else verbs.get("strength")
    return symmetry_from(info, verbs.get("symmetry"), compositions, not other, strength, conditions)


def _steered(verbs: Verbs) -> bool:
    """Whether particles are asked for, which a model's own number of candidates gives way to."""
    return verbs.get("reward") is not None or verbs.get("target") is not None
