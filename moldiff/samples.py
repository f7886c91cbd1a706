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

    from moldiff.chem.crystals import Crystal
    from moldiff.core.batch import AtomBatch
    from moldiff.data.entry import Entry
    from moldiff.evaluation.reference import Reference
    from moldiff.model_store import ModelInfo
    from moldiff.request import Request

#: Coordinates beyond this (Å) do not fit the columns of a mol block, and are no molecule either.
FAR = 9999.0
NOT_FINITE = "non-finite numbers"
FORMATS = {"molecule": (".sdf", ".extxyz", ".csv"), "crystal": (".extxyz", ".csv", ".cif", ".zip", "a folder")}


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

    @property
    def kind(self) -> str:
        """``molecule`` or ``crystal``."""
        return "crystal" if any("lattice" in s.fields for s in self.samples) else "molecule"

    @cached_property
    def verdicts(self) -> list[Any]:
        """What evaluation finds of each sample: a ``Verdict``, or a ``CrystalVerdict`` (see ``evaluation.*.basic``)."""
        if self.kind == "crystal":
            from moldiff.crystal_verdicts import Judge

            crystals = [s.to_crystal() for s in self.samples]
            return list(Judge(self.reference)(crystals, [s.id for s in self.samples], [s.problem for s in self.samples]))
        from moldiff.evaluation.molecules.basic import evaluate_basic

        return evaluate_basic([s.entry() for s in self.samples], self.reference).verdicts

    def metrics(self) -> dict[str, float]:
        """The rates of the set by name: validity, stability, uniqueness, novelty ... (docs/evaluation.md defines them)."""
        if self.kind == "crystal":
            from moldiff.crystal_verdicts import crystal_rates

            return crystal_rates(self.verdicts)
        from moldiff.evaluation.molecules.basic import rates

        return rates(self.verdicts)

    def valid(self) -> SampleSet:
        """The samples that RDKit sanitises and that are one connected molecule; crystals without overlapping atoms."""
        good = [s for s, v in zip(self.samples, self.verdicts, strict=True) if v.valid and getattr(v, "connected", True)]
        return SampleSet(good, self.request, self.info)

    def to_rdkit(self) -> list[Mol | None]:
        """One RDKit molecule a sample, sanitised and with its conformer; None for samples that are not valid."""
        return [s.to_rdkit() for s in self.samples]

    def to_ase(self) -> list[Atoms]:
        """One ASE Atoms a sample."""
        return [s.to_ase() for s in self.samples]

    def to_pymatgen(self) -> list[Structure | None]:
        """One pymatgen Structure a crystal, None for a failed one; raises ``BadRequest`` for molecules, which have no cell."""
        if self.samples and self.kind != "crystal":
            raise BadRequest("these samples are molecules, which have no cell: use to_ase() or to_rdkit()")
        from moldiff.chem.crystals import to_structure

        crystals = [s.to_crystal() for s in self.samples]
        return [None if crystal is None else to_structure(crystal) for crystal in crystals]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a sample: id, SMILES, formula and every verdict, as in samples.csv."""
        import pandas

        from moldiff.sample_files import columns_of

        rows, first = self._rows()
        return pandas.DataFrame(rows, columns=list(columns_of(rows, first)))

    def _rows(self) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """The rows of samples.csv, and its usual columns."""
        from moldiff import crystal_files, sample_files

        files: Any = crystal_files if self.kind == "crystal" else sample_files
        return [files.csv_row(s, v) for s, v in zip(self.samples, self.verdicts, strict=True)], files.COLUMNS

    def save(self, path: str | Path) -> Path:
        """Write all samples to ``.sdf`` (bonds, charges, 3D), ``.extxyz`` (full precision) or ``.csv`` (verdicts).

        Crystals go to ``.extxyz``, ``.csv``, ``.cif`` (one file of all) or, as CIFs of their own, conventional and as generated,
        to a folder or a ``.zip``. Raises ``BadRequest`` for another ending or a place that can't be written; a file appears
        whole or not at all.
        """
        from moldiff.crystal_files import cif_of_all, save_cifs
        from moldiff.data.store import write_atomically
        from moldiff.sample_files import csv_text, extxyz_text, sdf_record

        path, crystals = Path(path), self.kind == "crystal"
        ending = path.suffix or "a folder"
        if ending not in FORMATS[self.kind]:
            raise BadRequest(f"{self.kind}s can be saved as {', '.join(FORMATS[self.kind])}, not {path.suffix or path.name!r}")
        try:
            if crystals and ending in (".zip", "a folder"):
                save_cifs(path, self.samples, self.verdicts)
                return path
            if ending == ".sdf":
                text = "".join(sdf_record(s, v) for s, v in zip(self.samples, self.verdicts, strict=True))
            elif ending == ".extxyz":
                text = extxyz_text(self.samples)
            elif ending == ".cif":
                text = cif_of_all(self.samples, self.verdicts)
            else:
                text = csv_text(*self._rows())
            write_atomically(path, text.encode())
        except OSError as error:
            raise BadRequest(f"can't write {path}: {error.strerror or error}") from None
        return path

    @classmethod
    def load(cls, path: str | Path) -> SampleSet:
        """Read samples from SDF, XYZ or extxyz, CIF or POSCAR (a folder or archive of them too); nothing is dropped.

        The output folder of ``moldiff generate`` is read from its ``samples.sdf`` or ``samples.extxyz``. Rows that can't be read
        become failed samples. Raises ``BadRequest`` for a path that holds no molecules or crystals with coordinates.
        """
        from moldiff.sample_files import read_samples

        path = Path(path)
        found = (path / name for name in ("samples.sdf", "samples.extxyz") if (path / name).is_file())
        return cls(read_samples(next(found, path)))

    def view(self, index: int = 0, width: int = 360, height: int = 300) -> Any:
        """A py3Dmol view of one sample, for Jupyter, a crystal with its cell; raises ``MoldiffError`` for a failed sample."""
        from moldiff.sample_files import sdf_record

        one = self.samples[index]
        if one.problem:
            raise MoldiffError(f"{one.id} failed ({one.problem}): there is nothing to show")
        if self.kind == "crystal":
            from moldiff.crystal_pictures import crystal_view

            return crystal_view(one, width, height)
        import py3Dmol

        view = py3Dmol.view(width=width, height=height)
        view.addModel(sdf_record(one, self.verdicts[index]), "sdf")
        view.setStyle({"stick": {"radius": 0.14}, "sphere": {"scale": 0.25}})
        view.zoomTo()
        return view

    def _repr_html_(self) -> str:
        from moldiff.pictures import sample_set_html

        return sample_set_html(self)
