"""Parts given: a fragment, or the cell or a sublattice of a crystal, that every sample keeps exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from moldiff.chem.fragments import Fragment, cut_fragment
from moldiff.chem.molecules import symbols
from moldiff.control import Place, Spec
from moldiff.core.batch import AtomBatch
from moldiff.errors import BadRequest

if TYPE_CHECKING:
    from moldiff.model_store import ModelInfo
    from moldiff.sampling.control import Control

#: Fields of a molecule that a kept atom brings along.
FIELDS = ("positions", "atom_types", "charges", "bond_types")
#: Settings with which scaffolds were completed best at equal network calls (benchmarks/keep.py).
RESAMPLINGS, JUMP = 1, 1


@dataclass(frozen=True, eq=False)
class Keep(Spec):
    """Every sample contains ``fragment``: its atoms come first, in their order and in the frame of their file.

    ``grow`` is the least and the greatest number of atoms beyond those of the structure with all its hydrogens, or None for
    whatever size is asked for. ``resamplings`` makes stretches of ``jump`` steps several times (RePaint) at equal calls.
    """

    fragment: Fragment
    grow: tuple[int, int] | None = None
    resamplings: int = RESAMPLINGS
    jump: int = JUMP
    label: str = "the scaffold"
    name = "keep"
    gives = FIELDS

    @property
    def passes(self) -> int:  # type: ignore[override]
        """Every step is made ``resamplings`` times."""
        return self.resamplings

    def settings(self) -> Any:
        part = self.fragment
        digest = hashlib.sha256()
        for array in (part.numbers, part.positions, part.bonds, part.charges, part.open):
            digest.update(np.ascontiguousarray(array).tobytes())
        return {
            "atoms": "".join(symbols(part.numbers.tolist())), "sha256": digest.hexdigest(), "resamplings": self.resamplings,
            "jump": self.jump, "grow": None if self.grow is None else list(self.grow),
        }  # fmt: skip

    def check(self, info: ModelInfo) -> None:
        if info.config.kind != "molecule":
            raise BadRequest(f"{info.name} makes crystals: keep their cell or a sublattice, not a fragment")
        check_known(info, self.label, self.fragment.numbers, self.fragment.charges, self.fragment.bonds)
        if len(self.fragment) > max(info.sizes):
            most = max(info.sizes)
            raise BadRequest(f"{self.label} has {len(self.fragment)} atoms to keep, {info.name} makes at most {most}")
        if self.grow is not None and self.fragment.n_whole + self.grow[0] > max(info.sizes):
            sizes = f"{self.fragment.n_whole} atoms and {self.grow[0]} more"
            raise BadRequest(f"{self.label} would have {sizes}, {info.name} makes at most {max(info.sizes)}")
        check_processes(info, FIELDS, self.resamplings)

    def cautions(self, info: ModelInfo) -> list[str]:
        if told_what_is_known(info):
            return []
        return [f"{info.name} was not trained with kept parts: few completions may be valid"]

    def check_beside(self, others: Sequence[Spec]) -> None:
        refuse_two(self, others)

    def admits(self, size: int) -> bool:
        if self.grow is None:
            return size >= len(self.fragment)
        return self.fragment.n_whole + self.grow[0] <= size <= self.fragment.n_whole + self.grow[1]

    def wants(self) -> str:
        if self.grow is not None:
            low, high = (self.fragment.n_whole + k for k in self.grow)
            return f"keep ({low} to {high} atoms)" if low < high else f"keep ({low} atoms)"
        return f"keep (at least {len(self.fragment)} atoms)"

    def control(self, place: Place) -> Control:
        from moldiff.sampling.inpaint import Inpaint, Known

        part, k, n = self.fragment, len(self.fragment), place.size
        bonds, pairs = torch.zeros(n, n, dtype=torch.int64), torch.zeros(n, n, dtype=torch.bool)
        bonds[:k, :k] = torch.from_numpy(part.bonds)
        pairs[:k, :k] = ~torch.eye(k, dtype=torch.bool)
        closed = torch.from_numpy(~part.open)  # no bond leads from there to a new atom
        pairs[:k, k:] |= closed[:, None]
        pairs[k:, :k] |= closed[None, :]
        fields = {
            "positions": padded(torch.from_numpy(part.positions), n),
            # what is beyond the fragment is masked, and only has to be some class
            "atom_types": padded(torch.from_numpy(part.numbers), n, place.vocabulary.values["atom_types"][0]),
            "charges": padded(torch.from_numpy(part.charges), n),
            "bond_types": bonds,
        }
        known = {name: value for name, value in fields.items() if name in place.diffusion.processes}
        truth = repeated(place, known)
        parts: dict[str, int | torch.Tensor] = {name: k for name in known if name != "bond_types"}
        if "bond_types" in known:
            parts["bond_types"] = pairs.expand(truth.n_systems, n, n).to(place.device)
        return Inpaint(Known(truth, parts), self.resamplings, self.jump, shown=shown_in(place.info))


def told_what_is_known(info: ModelInfo) -> bool:
    """Whether a model was trained with known entries, which its network is told (``network.given``)."""
    return bool(getattr(info.config.network, "given", False))


def shown_in(info: ModelInfo) -> str:
    """How known entries are shown to a model's network: clean where it was trained with such, else as noisy as all else."""
    return "clean" if told_what_is_known(info) else "noisy"


def padded(value: torch.Tensor, n: int, filling: int = 0) -> torch.Tensor:
    """The atoms' values [K, ...] with others behind them up to n."""
    out = value.new_full((n, *value.shape[1:]), filling)
    out[: len(value)] = value
    return out


def repeated(place: Place, fields: dict[str, torch.Tensor]) -> AtomBatch:
    """The same physical system in all rows of a place, encoded."""
    rows = len(place.indices)
    mask = torch.ones(rows, place.size, dtype=torch.bool)
    batch = AtomBatch(mask, {name: v.expand(rows, *v.shape).contiguous() for name, v in fields.items()})
    return place.vocabulary.encode(batch).to(place.device)


def check_known(info: ModelInfo, label: str, numbers: Any, charges: Any = (), bonds: Any = ()) -> None:
    """Raise ``BadRequest`` for elements, charges and bond orders outside a model's vocabulary."""
    words = info.config.vocabulary
    known = words.get("atom_types", [])
    foreign = sorted(set(np.asarray(numbers).ravel().tolist()) - set(known))
    if foreign:
        names, all_ = ", ".join(symbols(foreign)), ", ".join(symbols(sorted(known)))
        raise BadRequest(f"{label} contains {names}, which {info.name} does not know (it knows {all_})")
    for name, what, values in (("charges", "charge", charges), ("bond_types", "bond order", bonds)):
        wrong = sorted(set(np.asarray(values, dtype=np.int64).ravel().tolist()) - set(words.get(name, [])))
        if name in words and wrong:
            raise BadRequest(f"{label} has a {what} of {wrong[0]}, which {info.name} does not know")


def check_processes(info: ModelInfo, names: Sequence[str], resamplings: int) -> None:
    """Raise ``BadRequest`` where a model's processes can't keep what is known."""
    from moldiff.assemble import build_vocabulary
    from moldiff.diffusion.registry import build_diffusion
    from moldiff.sampling.inpaint import unable

    fields = {name: options.model_dump() for name, options in info.config.fields.items()}
    reason = unable(build_diffusion(fields, build_vocabulary(info.config)), [n for n in names if n in fields], resamplings)
    if reason:
        raise BadRequest(f"{info.name}: {reason}")


def refuse_two(spec: Spec, others: Sequence[Spec]) -> None:
    """Raise ``BadRequest`` where another specification fixes the same fields."""
    for other in others:
        both = [name for name in spec.gives if name in other.gives]
        if both:
            raise BadRequest(f"{spec.name} and {other.name} both fix {both[0]}: ask for one of them")


def read_fragment(source: Any, atoms: Sequence[int] | None = None, smarts: str | None = None) -> Fragment:
    """What is to be kept of the molecules in a file, or of molecules, atoms or samples; several of them are parts of one
    structure, in their mutual places.

    See ``chem.fragments.cut_fragment``. Raises ``BadRequest`` for what can't be read or gives no bonds that can be found.
    """
    from moldiff.structures import as_structures

    found = as_structures(source)
    for one in found:
        if one.problem:
            raise BadRequest(f"{one.name} can't be kept: {one.problem}")
    numbers = np.concatenate([s.numbers for s in found])
    charges = np.concatenate([s.charges for s in found])
    x = np.concatenate([s.positions for s in found])
    bonds = np.zeros((len(numbers), len(numbers)), dtype=np.int64)
    start = 0
    for s in found:
        if s.bonds is not None:
            bonds[start : start + len(s), start : start + len(s)] = s.bonds
        start += len(s)
    return cut_fragment(numbers, x, bonds, charges, atoms, smarts)


def keep_from(
    keep: Any,
    atoms: str | Sequence[int] | None = None,
    smarts: str | None = None,
    grow: str | int | tuple[int, int] | None = None,
    resamplings: int | None = None,
) -> Keep | None:
    """The specification behind ``--keep``, ``--keep-atoms``, ``--keep-smarts``, ``--grow`` and ``--resamplings``.

    ``keep`` is a file, an RDKit molecule, ASE atoms, a sample, several of them, or a ``Fragment``.
    """
    if keep is None:
        for flag, value in (("keep-atoms", atoms), ("keep-smarts", smarts), ("grow", grow), ("resamplings", resamplings)):
            if value is not None:
                raise BadRequest(f"--{flag} says how to keep a structure: name its file with --keep")
        return None
    from moldiff.request import parse_size, whole_number

    times = RESAMPLINGS if resamplings is None else whole_number("resamplings", resamplings)
    if times < 1:
        raise BadRequest(f"resamplings must be at least 1, found {times}")
    try:
        chosen = [int(word) for word in atoms.split(",")] if isinstance(atoms, str) else atoms
    except ValueError:
        raise BadRequest(f"atoms to keep are numbers such as 0,1,2, found {atoms!r}") from None
    if isinstance(keep, Fragment):
        fragment, label = keep, "the scaffold"
    else:
        label = Path(keep).name if isinstance(keep, (str, Path)) else "the scaffold"
        fragment = read_fragment(keep, chosen, smarts)
    return Keep(fragment, None if grow is None else parse_size(grow), times, JUMP, label)
