"""Samples as text: SDF records, rows of samples.csv, extxyz; and back."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from moldiff.errors import BadRequest, DamagedFile
from moldiff.samples import Sample, fault

if TYPE_CHECKING:
    from moldiff.evaluation.molecules.basic import Verdict

#: Columns of samples.csv: the id, then the verdict, what people look for first coming first.
COLUMNS = (
    "id", "smiles", "formula", "n_atoms", "valid", "reason", "connected", "n_fragments", "charge", "radical", "molecule_stable",
    "stable_atoms", "edm_molecule_stable", "edm_stable_atoms", "edm_valid", "unique", "novel", "finite", "bonds",
)  # fmt: skip
#: The second line of a mol block: the program in columns 3 to 10, no date, and in columns 21 and 22 that there are three
#: dimensions, without which RDKit warns of every molecule.
HEADER = "  " + "moldiff".ljust(8) + " " * 10 + "3D"
#: Data items of an SDF record.
ITEMS = ("smiles", "valid", "reason", "connected", "molecule_stable", "edm_molecule_stable")


def csv_row(sample: Sample, verdict: Verdict) -> dict[str, Any]:
    """One row of samples.csv; None stands for what is not known."""
    own = {"id": sample.id, **{name: getattr(verdict, name) for name in COLUMNS[1:]}}
    return {**own, **{k: v for k, v in sample.info.items() if k not in own}}


def columns_of(rows: Sequence[Mapping[str, Any]], first: Sequence[str] = COLUMNS) -> tuple[str, ...]:
    """The columns of a table: ``first``, then what else its rows hold, in the order in which it comes."""
    return tuple(dict.fromkeys([*first, *(name for row in rows for name in row)]))


def csv_header(columns: Sequence[str] = COLUMNS) -> str:
    """The first line of samples.csv."""
    return ",".join(columns) + "\n"


def csv_lines(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Rows of samples.csv without the header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    for row in rows:
        writer.writerow({k: cell_text(v) for k, v in row.items()})
    return text.getvalue()


def csv_text(rows: Sequence[Mapping[str, Any]], first: Sequence[str] = COLUMNS) -> str:
    """A whole samples.csv."""
    columns = columns_of(rows, first)
    return csv_header(columns) + csv_lines(rows, columns)


def read_header(text: str) -> tuple[str, ...]:
    """The columns that the first line of a CSV names."""
    return tuple(next(csv.reader(io.StringIO(text)), ()))


def read_verdicts(text: str) -> list[Verdict]:
    """The verdicts that a samples.csv holds, exactly as they were; raises ``DamagedFile`` where it is not one."""
    from moldiff.evaluation.molecules.basic import Verdict

    hints = get_type_hints(Verdict)
    kinds = {f.name: _kind(hints[f.name]) for f in dataclass_fields(Verdict)}
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ())[: len(COLUMNS)] != COLUMNS:
        raise DamagedFile("samples.csv does not have the columns of this version")
    verdicts = []
    for number, row in enumerate(reader, 2):
        try:
            values = {name: _parse(row[name], kinds[name]) for name in COLUMNS[1:]}
            verdicts.append(Verdict(name=row["id"], **values))
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFile(f"samples.csv, line {number}, is damaged: {error}") from None
    return verdicts


def sdf_record(sample: Sample, verdict: Verdict) -> str:
    """One record of an SDF file: mol block and data items.

    A failed sample has an empty mol block, so that records and samples keep the same count. Bonds are kekulised, charges formal.
    """
    from rdkit import Chem, rdBase

    from moldiff.chem.molecules import raw_molecule

    if sample.problem:
        block = f"{sample.id}\n  moldiff\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n"
    else:
        with rdBase.BlockLogs():
            mol = raw_molecule(sample.numbers, sample.positions, sample.bond_types, sample.charges)
            mol.UpdatePropertyCache(strict=False)
            mol.SetProp("_Name", sample.id)
            mol.SetProp("_MolFileInfo", HEADER)
            block = Chem.MolToMolBlock(mol, includeStereo=False, kekulize=False)
        lines = block.split("\n")
        lines[1] = HEADER  # RDKit would write the time of day here
        block = "\n".join(lines)
    items = {"id": sample.id, **{name: cell_text(getattr(verdict, name)) for name in ITEMS}}
    items |= {name: cell_text(value) for name, value in sample.info.items() if name not in items}
    return block + "".join(f">  <{k}>\n{v}\n\n" for k, v in items.items() if v != "") + "$$$$\n"


def extxyz_text(samples: Sequence[Sample]) -> str:
    """All samples as extended XYZ, coordinates in full single precision."""
    from ase.io.extxyz import write_extxyz

    text = io.StringIO()
    for sample in samples:
        write_extxyz(text, [sample.to_ase()], columns=None, write_results=False)
    return text.getvalue()


def read_samples(path: str | Path) -> list[Sample]:
    """Samples from files of molecules or crystals; see ``SampleSet.load``."""
    from moldiff.data.sources import open_source

    source = open_source(Path(path))
    if source.kind == "crystal":
        from moldiff.crystal_files import read_crystals

        return read_crystals(path)
    samples = []
    for k, row in enumerate(row for split in source.splits.values() for row in split()):
        entry: Any = row.entry()
        index = index_in(entry.name, k)
        if entry.problem or entry.numbers is None or entry.positions is None:
            numbers = np.asarray([] if entry.numbers is None else entry.numbers, dtype=np.int64)
            empty: dict[str, NDArray[Any]] = {"atom_types": numbers, "positions": np.zeros((len(numbers), 3), dtype=np.float32)}
            samples.append(Sample(index, empty, entry.problem or "no coordinates"))
            continue
        data: dict[str, NDArray[Any]] = {
            "atom_types": np.asarray(entry.numbers, dtype=np.int64),
            "positions": np.asarray(entry.positions, dtype=np.float32),
        }
        if entry.bonds is not None:
            data["bond_types"] = entry.bonds.matrix().astype(np.int64)
            data["charges"] = entry.bonds.charges.astype(np.int64)
        samples.append(Sample(index, data, fault(data) or ("" if len(entry.numbers) else "no atoms")))
    if not samples or all(s.problem == "no coordinates" for s in samples):
        raise BadRequest(f"{path} holds no molecules with coordinates")
    return samples


def index_in(name: str, otherwise: int) -> int:
    """The number in ``sample_NUMBER``."""
    head, _, tail = name.rpartition("_")
    return int(tail) if head == "sample" and tail.isdecimal() else otherwise


def cell_text(value: Any) -> Any:
    """A value as it stands in a CSV."""
    return {True: "true", False: "false", None: ""}.get(value, value) if value is None or isinstance(value, bool) else value


def _kind(hint: Any) -> tuple[type, bool]:
    """The plain type of a verdict's field, and whether it may be unknown."""
    options = [t for t in get_args(hint) if t is not type(None)]
    plain = [t for t in (options or [hint]) if isinstance(t, type)]
    return (plain[0] if plain else str, type(None) in get_args(hint))


def _parse(text: str, kind: tuple[type, bool]) -> Any:
    plain, optional = kind
    if text == "" and optional:
        return None
    if plain is bool:
        return {"true": True, "false": False}[text]
    return plain(text)


def summary_rows(metrics: Mapping[str, float]) -> dict[str, float]:
    """The rates that the terminal shows, in the order in which it shows them; those that are unknown are absent."""
    order = (
        "validity", "valid_connected", "uniqueness", "novelty", "vun", "atom_stability", "molecule_stability",
        "edm_atom_stability", "edm_molecule_stability", "structure_validity", "crystal_uniqueness", "crystal_novelty_coarse",
        "unique_novel_coarse",
    )  # fmt: skip
    return {name: metrics[name] for name in order if name in metrics}
