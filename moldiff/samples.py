"""SampleSet: what a generator returns; physical values, verdicts on demand, and the ways out of the library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from moldiff.errors import BadRequest, MoldiffError
from moldiff.sample import FAR, NOT_FINITE, Sample, fault, from_batch

if TYPE_CHECKING:
    import pandas
    from ase import Atoms
    from pymatgen.core import Structure
    from rdkit.Chem import Mol

    from moldiff.evaluation.reference import Reference
    from moldiff.model_store import ModelInfo
    from moldiff.request import Request

__all__ = ["FAR", "NOT_FINITE", "Sample", "SampleSet", "fault", "from_batch"]

FORMATS = {"molecule": (".sdf", ".extxyz", ".csv"), "crystal": (".extxyz", ".csv", ".cif", ".zip", "a folder")}


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
