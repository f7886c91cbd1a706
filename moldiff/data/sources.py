"""What people bring: files, folders and archives of molecules or crystals, found by what they hold and read row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from moldiff.data import crystal_files, gdb9, mp20, qm9
from moldiff.data.crystal_entry import CrystalEntry, CrystalRow
from moldiff.data.entry import Entry, Row
from moldiff.data.members import Kind, Member, kind_of, list_members
from moldiff.data.sdf import read_sdf
from moldiff.data.smiles import read_csv, read_smi
from moldiff.data.xyz import read_xyz
from moldiff.errors import BadRequest, DamagedFile

GDB9 = "gdb9"
Reader = Callable[[Iterable[str], str, Iterator[int]], Iterator[Row]]
CrystalReader = Callable[[Iterable[str], str, Iterator[int]], Iterator[CrystalRow]]

#: Readers of text, by the ending of the file (a further .gz is allowed).
READERS: dict[str, Reader] = {
    ".sdf": read_sdf,
    ".sd": read_sdf,
    ".mol": read_sdf,
    ".xyz": read_xyz,
    ".extxyz": read_xyz,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".smi": read_smi,
}
CRYSTAL_READERS: dict[str, CrystalReader] = {
    ".cif": crystal_files.read_cif_file,
    ".mcif": crystal_files.read_cif_file,
    ".vasp": crystal_files.read_poscar_file,
    ".poscar": crystal_files.read_poscar_file,
    ".xyz": crystal_files.read_periodic_xyz,
    ".extxyz": crystal_files.read_periodic_xyz,
    ".csv": crystal_files.read_cif_table,
    ".tsv": crystal_files.read_cif_table,
}
SPLIT_NAMES = ("train", "val", "test")


@dataclass(frozen=True)
class Source:
    """Systems to prepare: ``splits`` maps a split's name to a function that iterates over its rows.

    One split named ``all`` means that the source has none of its own. ``units`` gives units of property columns where the
    format defines them, ``origin`` says in words where the systems come from, ``kind`` what they are.
    """

    path: Path
    format: str
    splits: dict[str, Callable[[], Iterator[Any]]]
    units: dict[str, str] = field(default_factory=dict)
    origin: str = ""
    kind: Kind = "molecule"

    def n_rows(self, split: str) -> int | None:
        """Count the rows of a split by running through it once; None where that would take minutes."""
        return None if self.format == GDB9 else sum(1 for _ in self.splits[split]())


def open_source(path: str | Path) -> Source:
    """Recognise what a path holds.

    Molecules: QM9 as npz, the raw gdb9 archive, or SDF, MOL, XYZ, extxyz, CSV of SMILES and SMI files. Crystals: MP-20 as npz,
    CIF, POSCAR, extxyz with a cell, CSV with a column of CIFs, or an ASE database. A folder or a zip archive may hold many such
    files; files named ``train.*``, ``val.*`` (and ``test.*``) keep their splits. Raises BadRequest for a path that does not
    exist, holds none of these, or molecules as well as crystals.
    """
    path = Path(path)
    if not path.exists():
        raise BadRequest(f"{path} does not exist")
    if path.is_dir() and mp20.is_mp20_folder(path):
        crystals: dict[str, Callable[[], Iterator[Any]]] = {split: partial(mp20.read_mp20, path, split) for split in mp20.SPLITS}
        return Source(path, "MP-20 npz", crystals, mp20.UNITS, mp20.ORIGIN, "crystal")
    if path.is_dir() and qm9.is_qm9_folder(path):
        readers: dict[str, Callable[[], Iterator[Any]]] = {
            split: partial(qm9.read_qm9_npz, path / f"{split}.npz") for split in qm9.SPLITS
        }
        units = dict(qm9.PROPERTIES.values())
        return Source(path, "QM9 npz", readers, units, "QM9 (Ramakrishnan et al., Sci. Data 1, 140022, 2014; CC0)")
    if gdb9.find_gdb9(path) is not None:
        origin = "raw QM9 archive (Ramakrishnan et al., Sci. Data 1, 140022, 2014; CC0)"
        return Source(path, GDB9, {"all": partial(gdb9.read_gdb9, path)}, gdb9.UNITS, origin)
    members = list_members(path)
    kind = kind_of(members, path)
    stems = {member.stem for member in members}
    if {"train", "val"} <= stems <= set(SPLIT_NAMES):
        by_split = {name: [m for m in members if m.stem == name] for name in SPLIT_NAMES if name in stems}
    else:
        by_split = {"all": members}
    formats = sorted({member.ending.lstrip(".").upper() for member in members})
    splits: dict[str, Callable[[], Iterator[Any]]] = {name: partial(_rows, files, kind) for name, files in by_split.items()}
    return Source(path, "+".join(formats), splits, {}, path.name, kind)


def read_rows(path: str | Path, kind: Kind = "molecule") -> Iterator[Any]:
    """Yield every row of a source, split by split, still unread; each one's ``entry()`` reads it.

    Rows of molecules give ``data.entry.Entry``, rows of crystals ``data.crystal_entry.CrystalEntry``. Raises BadRequest where
    the source holds the other kind.
    """
    source = open_source(path)
    if source.kind != kind:
        raise BadRequest(f"{path} holds {source.kind}s; {kind}s are needed here")
    for rows in source.splits.values():
        yield from rows()


def _rows(members: list[Member], kind: Kind) -> Iterator[Any]:
    numbers = count(1)
    for member in members:
        found = False
        try:
            for row in _read(member, kind, numbers):
                found = True
                yield row
        except DamagedFile as error:
            yield _problem(next(numbers), member.label, str(error), kind)
        else:
            if not found:
                yield _problem(next(numbers), member.label, "empty file", kind)


def _read(member: Member, kind: Kind, numbers: Iterator[int]) -> Iterator[Any]:
    if member.ending == ".db":
        if member.inside or member.label.lower().endswith(".gz"):
            raise DamagedFile(f"{member.label} is an ASE database in an archive, which can't be read in place: unpack it")
        return crystal_files.read_ase_db(member.path, numbers)
    if kind == "crystal":
        return CRYSTAL_READERS[member.ending](member.lines(), member.label, numbers)
    return READERS[member.ending](member.lines(), member.label, numbers)


def _problem(number: int, label: str, problem: str, kind: Kind) -> Entry | CrystalEntry:
    if kind == "crystal":
        return CrystalEntry(number, label, number, problem=problem)
    return Entry(number, label, number, problem=problem)
