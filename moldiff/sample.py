"""One generated system in physical values, and samples made of what a network gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms
    from rdkit.Chem import Mol

    from moldiff.chem.crystals import Crystal
    from moldiff.core.batch import AtomBatch
    from moldiff.data.entry import Entry

#: Coordinates beyond this (Å) do not fit the columns of a mol block, and are no molecule either.
FAR = 9999.0
NOT_FINITE = "non-finite numbers"


@dataclass(frozen=True)
class Sample:
    """One generated system in physical values.

    ``fields`` maps names of ``core.fields.FIELDS`` to arrays without the system axis: ``atom_types`` [N] atomic numbers,
    ``positions`` [N, 3] Å, ``bond_types`` [N, N] kekulised orders, ``charges`` [N]. ``problem`` says why a sample failed before
    it could be judged.
    """

    index: int
    fields: Mapping[str, NDArray[Any]]
    problem: str = ""
    info: Mapping[str, Any] = dataclass_field(default_factory=dict)

    @property
    def id(self) -> str:
        """The sample's name in files: ``sample_INDEX``."""
        return f"sample_{self.index}"

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Atomic numbers, int64 [N]."""
        return np.asarray(self.fields["atom_types"], dtype=np.int64)

    @property
    def positions(self) -> NDArray[np.float32] | None:
        """Å, float32 [N, 3]; None for a crystal, whose coordinates are fractional."""
        return self.fields.get("positions")

    @property
    def bond_types(self) -> NDArray[np.int64] | None:
        """Kekulised bond orders, int64 [N, N]; None where they are unknown."""
        return self.fields.get("bond_types")

    @property
    def charges(self) -> NDArray[np.int64]:
        """Formal charges, int64 [N]."""
        return np.asarray(self.fields.get("charges", np.zeros(len(self.numbers))), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.fields["atom_types"])

    def entry(self) -> Entry:
        """The sample as evaluation takes it."""
        from moldiff.evaluation.molecules.basic import entry_of

        return entry_of(
            self.index, self.numbers, self.positions, self.bond_types, self.charges, name=self.id, problem=self.problem
        )

    def to_crystal(self) -> Crystal | None:
        """The crystal as arrays in double precision; None for a molecule and for a failed sample."""
        if self.problem or "lattice" not in self.fields:
            return None
        from moldiff.chem.crystals import Crystal

        return Crystal.of(self.numbers, self.fields["frac_coords"], self.fields["lattice"])

    def to_rdkit(self, sanitize: bool = True) -> Mol | None:
        """The molecule with its conformer; None for a failed sample, and for an invalid one unless ``sanitize`` is False."""
        from moldiff.chem.molecules import raw_molecule, sanitise

        if self.problem or (sanitize and self.bond_types is None):
            return None
        raw = raw_molecule(self.numbers, self.positions, self.bond_types, self.charges)
        mol = sanitise(raw)[0] if sanitize else raw
        if mol is not None:
            mol.SetProp("_Name", self.id)
        return mol

    def to_ase(self) -> Atoms:
        """ASE atoms; formal charges as array ``formal_charge``, bonds in ``info["bonds"]``: ``i-j-order``, comma-separated."""
        from ase import Atoms

        atoms = Atoms(numbers=self.numbers)
        atoms.info["id"] = self.id
        atoms.info.update(self.info)
        if "lattice" in self.fields:
            atoms.set_cell(self.fields["lattice"])
            atoms.set_pbc(True)
            # not by set_scaled_positions, which would wrap in single precision
            frac, cell = (np.asarray(self.fields[name], dtype=np.float64) for name in ("frac_coords", "lattice"))
            atoms.set_positions(frac @ cell)
            if self.problem:
                atoms.info["problem"] = self.problem
            return atoms
        atoms.set_positions(np.asarray(self.positions, dtype=np.float64))
        atoms.set_array("formal_charge", self.charges)
        if self.bond_types is not None:
            pairs = np.argwhere(np.triu(self.bond_types, 1))
            atoms.info["bonds"] = ",".join(f"{i}-{j}-{self.bond_types[i, j]}" for i, j in pairs)
        if self.problem:
            atoms.info["problem"] = self.problem
        return atoms


def from_batch(
    batch: AtomBatch, indices: Sequence[int], bonds: str = "generated", spoilt: Sequence[bool] | None = None
) -> list[Sample]:
    """The systems of a physical batch as samples; where a model gives no bonds they are inferred by ``edm`` or ``rdkit``.

    A system with a non-finite number, or one that had any on its way (``spoilt``), becomes a failed sample.
    """
    samples = []
    for k, (index, one) in enumerate(zip(indices, batch.to_list(), strict=True)):
        # what a system was told (NaN for what it was not) is no part of it
        fields = {name: value[0].numpy() for name, value in one.data.items() if name != "conditions"}
        problem = NOT_FINITE if spoilt is not None and spoilt[k] else fault(fields)
        if not problem and bonds != "generated":
            fields |= _inferred(fields, bonds)
        samples.append(Sample(index, fields, problem))
    return samples


def fault(fields: Mapping[str, NDArray[Any]]) -> str:
    """Why a system can't be judged at all, or an empty string."""
    if not all(np.isfinite(value).all() for value in fields.values()):
        return NOT_FINITE
    if "positions" in fields and np.abs(fields["positions"]).max(initial=0) > FAR:
        return "coordinates out of range"
    return ""


def _inferred(fields: Mapping[str, NDArray[Any]], how: str) -> dict[str, NDArray[Any]]:
    from moldiff.chem.bonds import perceive_bonds
    from moldiff.chem.edm import edm_bond_orders

    numbers, positions = fields["atom_types"], fields["positions"]
    if how == "edm":
        return {"bond_types": edm_bond_orders(numbers, positions).astype(np.int64)}
    found = perceive_bonds(numbers, positions)
    if found.bonds is None:
        return {}  # the verdict will say why
    return {"bond_types": found.bonds.matrix().astype(np.int64), "charges": found.bonds.charges.astype(np.int64)}
