"""SampleSet: what a generator returns; physical values, verdicts on demand, and the ways out of the library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from moldiff.errors import BadRequest, MoldiffError

if TYPE_CHECKING:
    import pandas
    from ase import Atoms
    from pymatgen.core import Structure
    from rdkit.Chem import Mol

    from moldiff.core.batch import AtomBatch
    from moldiff.data.entry import Entry
    from moldiff.evaluation.molecules.basic import Verdict
    from moldiff.evaluation.reference import Reference
    from moldiff.model_store import ModelInfo
    from moldiff.request import Request

#: Coordinates beyond this (Å) do not fit the columns of a mol block, and are no molecule either.
FAR = 9999.0
NOT_FINITE = "non-finite numbers"
FORMATS = (".sdf", ".extxyz", ".csv")


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
            atoms.set_scaled_positions(self.fields["frac_coords"])
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
        fields = {name: value[0].numpy() for name, value in one.data.items()}
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


class SampleSet(Sequence[Sample]):
    """A sequence of samples with what was asked for (``request``) and the model that made them (``info``), where known.

    A slice is a SampleSet. Verdicts and metrics are computed when first asked for.
    """

    def __init__(
        self, samples: Sequence[Sample], request: Request | None = None, info: ModelInfo | None = None
    ) -> None:
        self.samples, self.request, self.info = list(samples), request, info

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> SampleSet: ...

    def __getitem__(self, index: int | slice) -> Sample | SampleSet:
        if isinstance(index, slice):
            return SampleSet(self.samples[index], self.request, self.info)
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __add__(self, other: SampleSet) -> SampleSet:
        same = self.info is other.info
        return SampleSet([*self, *other], self.request if same else None, self.info if same else None)

    def __repr__(self) -> str:
        made = f" from {self.request.model!r}, seed {self.request.seed}" if self.request is not None else ""
        return f"SampleSet({len(self)} samples{made})"

    @cached_property
    def reference(self) -> Reference | None:
        """What is known of the model's training data, for novelty."""
        return None if self.info is None else self.info.reference()

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """What evaluation finds of each sample (see ``evaluation.molecules.basic.Verdict``)."""
        from moldiff.evaluation.molecules.basic import evaluate_basic

        return evaluate_basic([s.entry() for s in self.samples], self.reference).verdicts

    def metrics(self) -> dict[str, float]:
        """The rates of the set by name: validity, stability, uniqueness, novelty ... (docs/evaluation.md defines them)."""
        from moldiff.evaluation.molecules.basic import rates

        return rates(self.verdicts)

    def valid(self) -> SampleSet:
        """The samples that RDKit sanitises and that are one connected molecule."""
        good = [s for s, v in zip(self.samples, self.verdicts, strict=True) if v.valid and v.connected]
        return SampleSet(good, self.request, self.info)

    def to_rdkit(self) -> list[Mol | None]:
        """One RDKit molecule a sample, sanitised and with its conformer; None for samples that are not valid."""
        return [s.to_rdkit() for s in self.samples]

    def to_ase(self) -> list[Atoms]:
        """One ASE Atoms a sample."""
        return [s.to_ase() for s in self.samples]

    def to_pymatgen(self) -> list[Structure]:
        """One pymatgen Structure a crystal; raises ``BadRequest`` for molecules, which have no cell."""
        if any("lattice" not in s.fields for s in self.samples):
            raise BadRequest("these samples are molecules, which have no cell: use to_ase() or to_rdkit()")
        from pymatgen.core import Structure

        return [Structure(s.fields["lattice"], s.numbers, s.fields["frac_coords"]) for s in self.samples]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a sample: id, SMILES, formula and every verdict, as in samples.csv."""
        import pandas

        from moldiff.sample_files import COLUMNS, csv_row

        rows = [csv_row(s, v) for s, v in zip(self.samples, self.verdicts, strict=True)]
        return pandas.DataFrame(rows, columns=list(COLUMNS))

    def save(self, path: str | Path) -> Path:
        """Write all samples to ``.sdf`` (bonds, charges, 3D), ``.extxyz`` (full precision) or ``.csv`` (verdicts).

        Raises ``BadRequest`` for another ending or a place that can't be written; the file appears whole or not at all.
        """
        from moldiff.data.store import write_atomically
        from moldiff.sample_files import csv_text, extxyz_text, sdf_record

        path = Path(path)
        if path.suffix not in FORMATS:
            raise BadRequest(f"samples can be saved as {', '.join(FORMATS)}, not {path.suffix or path.name!r}")
        if path.suffix == ".sdf":
            text = "".join(sdf_record(s, v) for s, v in zip(self.samples, self.verdicts, strict=True))
        elif path.suffix == ".extxyz":
            text = extxyz_text(self.samples)
        else:
            text = csv_text(self.samples, self.verdicts)
        try:
            write_atomically(path, text.encode())
        except OSError as error:
            raise BadRequest(f"can't write {path}: {error.strerror or error}") from None
        return path

    @classmethod
    def load(cls, path: str | Path) -> SampleSet:
        """Read samples from SDF, XYZ or extxyz (a folder or archive of them too); nothing is dropped.

        Rows that can't be read become failed samples. Raises ``BadRequest`` for a path that holds no molecules with coordinates.
        """
        from moldiff.sample_files import read_samples

        return cls(read_samples(path))

    def view(self, index: int = 0, width: int = 360, height: int = 300) -> Any:
        """A py3Dmol view of one sample, for Jupyter; raises ``MoldiffError`` for a failed sample."""
        from moldiff.sample_files import sdf_record

        one = self.samples[index]
        if one.problem:
            raise MoldiffError(f"{one.id} failed ({one.problem}): there is nothing to show")
        import py3Dmol

        view = py3Dmol.view(width=width, height=height)
        view.addModel(sdf_record(one, self.verdicts[index]), "sdf")
        view.setStyle({"stick": {"radius": 0.14}, "sphere": {"scale": 0.25}})
        view.zoomTo()
        return view

    def _repr_html_(self) -> str:
        from moldiff.pictures import sample_set_html

        return sample_set_html(self)
