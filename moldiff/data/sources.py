"""What people bring: files, folders and archives of molecules, found by what they hold and read row by row."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath
from typing import IO, cast

from moldiff.data import gdb9, qm9
from moldiff.data.entry import Entry, Row
from moldiff.data.sdf import read_sdf
from moldiff.data.smiles import read_csv, read_smi
from moldiff.data.xyz import read_xyz
from moldiff.errors import BadRequest, DamagedFile

GDB9 = "gdb9"
Reader = Callable[[Iterable[str], str, Iterator[int]], Iterator[Row]]

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
SPLIT_NAMES = ("train", "val", "test")


@dataclass(frozen=True)
class Source:
    """Molecules to prepare: ``splits`` maps a split's name to a function that iterates over its rows.

    One split named ``all`` means that the source has none of its own. ``units`` gives units of property columns where the
    format defines them, ``origin`` says in words where the molecules come from.
    """

    path: Path
    format: str
    splits: dict[str, Callable[[], Iterator[Row]]]
    units: dict[str, str] = field(default_factory=dict)
    origin: str = ""

    def n_rows(self, split: str) -> int | None:
        """Count the rows of a split by running through it once; None where that would take minutes."""
        return None if self.format == GDB9 else sum(1 for _ in self.splits[split]())


@dataclass(frozen=True)
class _Member:
    """One readable text: a file, or a member of a zip archive."""

    label: str
    ending: str
    path: Path
    inside: str = ""

    @property
    def stem(self) -> str:
        return PurePosixPath(self.label).name.split(".")[0].lower()

    def lines(self) -> Iterator[str]:
        """Yield the lines; raises DamagedFile where the bytes can't be unpacked."""
        try:
            with ExitStack() as stack:
                stream: IO[bytes]
                if self.inside:
                    stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(self.path)).open(self.inside))
                else:
                    stream = stack.enter_context(open(self.path, "rb"))
                if self.label.lower().endswith(".gz"):
                    stream = stack.enter_context(cast(IO[bytes], gzip.GzipFile(fileobj=stream)))
                # Foreign bytes in a comment must not cost the whole file.
                yield from stack.enter_context(io.TextIOWrapper(stream, encoding="utf-8", errors="replace"))
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
            raise DamagedFile(f"{self.label} is damaged or can't be read: {error}") from error


def open_source(path: str | Path) -> Source:
    """Recognise what a path holds: QM9 as npz, the raw gdb9 archive, or SDF, MOL, XYZ, extxyz, CSV and SMI files.

    A folder or a zip archive may hold many such files; files named ``train.*``, ``val.*`` (and ``test.*``) keep their splits.
    Raises BadRequest for a path that does not exist or holds none of these.
    """
    path = Path(path)
    if not path.exists():
        raise BadRequest(f"{path} does not exist")
    if path.is_dir() and qm9.is_qm9_folder(path):
        readers: dict[str, Callable[[], Iterator[Row]]] = {
            split: partial(qm9.read_qm9_npz, path / f"{split}.npz") for split in qm9.SPLITS
        }
        units = dict(qm9.PROPERTIES.values())
        return Source(path, "QM9 npz", readers, units, "QM9 (Ramakrishnan et al., Sci. Data 1, 140022, 2014; CC0)")
    if gdb9.find_gdb9(path) is not None:
        origin = "raw QM9 archive (Ramakrishnan et al., Sci. Data 1, 140022, 2014; CC0)"
        return Source(path, GDB9, {"all": partial(gdb9.read_gdb9, path)}, gdb9.UNITS, origin)
    members = _members(path)
    stems = {member.stem for member in members}
    if {"train", "val"} <= stems <= set(SPLIT_NAMES):
        by_split = {name: [m for m in members if m.stem == name] for name in SPLIT_NAMES if name in stems}
    else:
        by_split = {"all": members}
    formats = sorted({member.ending.lstrip(".").upper() for member in members})
    splits: dict[str, Callable[[], Iterator[Row]]] = {name: partial(_rows, files) for name, files in by_split.items()}
    return Source(path, "+".join(formats), splits, {}, path.name)


def read_rows(path: str | Path) -> Iterator[Row]:
    """Yield every row of a source, split by split, still unread; each one's ``entry()`` reads it."""
    for rows in open_source(path).splits.values():
        yield from rows()


def _rows(members: list[_Member]) -> Iterator[Row]:
    numbers = count(1)
    for member in members:
        found = False
        try:
            for row in READERS[member.ending](member.lines(), member.label, numbers):
                found = True
                yield row
        except DamagedFile as error:
            number = next(numbers)
            yield Entry(number, member.label, number, problem=str(error))
        else:
            if not found:
                number = next(numbers)
                yield Entry(number, member.label, number, problem="empty file")


def _members(path: Path) -> list[_Member]:
    allowed = f"allowed: {', '.join(READERS)}, each also as .gz, and folders or .zip of them"
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        members = [_Member(str(p.relative_to(path)), ending, p) for p in files if (ending := _ending(p.name))]
    elif path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(n for n in archive.namelist() if not PurePosixPath(n).name.startswith("."))
        except (OSError, zipfile.BadZipFile) as error:
            raise DamagedFile(f"{path} is empty or not a zip archive: {error}") from error
        members = [_Member(n, ending, path, n) for n in names if (ending := _ending(n))]
    else:
        if not (ending := _ending(path.name)):
            raise BadRequest(f"{path} is of no kind that can be read ({allowed})")
        members = [_Member(path.name, ending, path)]
    if not members:
        raise BadRequest(f"{path} holds no file that can be read ({allowed})")
    return members


def _ending(name: str) -> str:
    ending = PurePosixPath(name.lower().removesuffix(".gz")).suffix
    return ending if ending in READERS else ""
