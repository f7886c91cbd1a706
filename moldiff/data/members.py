"""The files that a path holds: one file, a folder of them, or the members of a zip archive."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Literal, cast

from moldiff.data.crystal_files import CIF_COLUMNS
from moldiff.data.smiles import SMILES_COLUMNS
from moldiff.data.tables import find_column, read_header
from moldiff.errors import BadRequest, DamagedFile

Kind = Literal["molecule", "crystal"]

#: Endings that tell what a file holds; those of ``MIXED`` hold either, and are looked into.
MOLECULES = (".sdf", ".sd", ".mol", ".smi")
CRYSTALS = (".cif", ".mcif", ".vasp", ".poscar", ".db")
MIXED = (".xyz", ".extxyz", ".csv", ".tsv")
#: Beginnings of the names of VASP's files, which need no ending.
_VASP = ("poscar", "contcar")


@dataclass(frozen=True)
class Member:
    """One readable file, or member of a zip archive (``inside``)."""

    label: str
    ending: str
    path: Path
    inside: str = ""

    @property
    def stem(self) -> str:
        """Name without folders and endings, in lower case."""
        return PurePosixPath(self.label).name.split(".")[0].lower()

    @property
    def kind(self) -> Kind | None:
        """What it holds; None where a table or a damaged file does not tell."""
        if self.ending in MIXED:
            try:
                return _sniff_xyz(self) if self.ending in (".xyz", ".extxyz") else _sniff_table(self)
            except DamagedFile:
                return None
        return "crystal" if self.ending in CRYSTALS else "molecule"

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


def list_members(path: Path) -> list[Member]:
    """List the readable files of a path, by name; raises BadRequest when there are none."""
    endings = ", ".join((*MOLECULES, *MIXED, *CRYSTALS))
    allowed = f"allowed: {endings}, POSCAR, each but .db also as .gz, and folders or .zip of them"
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        members = [Member(str(p.relative_to(path)), ending, p) for p in files if (ending := _ending(p.name))]
    elif path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                names = sorted(n for n in archive.namelist() if not PurePosixPath(n).name.startswith("."))
        except (OSError, zipfile.BadZipFile) as error:
            raise DamagedFile(f"{path} is empty or not a zip archive: {error}") from error
        members = [Member(n, ending, path, n) for n in names if (ending := _ending(n))]
    else:
        if not (ending := _ending(path.name)):
            raise BadRequest(f"{path} is of no kind that can be read ({allowed})")
        members = [Member(path.name, ending, path)]
    if not members:
        raise BadRequest(f"{path} holds no file that can be read ({allowed})")
    return members


def kind_of(members: list[Member], path: Path) -> Kind:
    """Tell whether the files hold molecules or crystals; raises BadRequest where some hold one and some the other."""
    first: dict[Kind, Member] = {}
    # Of thousands of files with one ending a few are looked into; the rows of the others say themselves what is wrong.
    by_ending: dict[str, list[Member]] = {}
    for member in members:
        by_ending.setdefault(member.ending, []).append(member)
    for same in by_ending.values():
        for member in islice(same, 20):
            if (kind := member.kind) is not None:
                first.setdefault(kind, member)
    if len(first) == 2:
        raise BadRequest(
            f"{path} holds molecules ({first['molecule'].label}) and crystals ({first['crystal'].label}); give them one at a time"
        )
    return next(iter(first), "molecule")


def _ending(name: str) -> str:
    plain = PurePosixPath(name.lower().removesuffix(".gz"))
    if plain.suffix in (*MOLECULES, *MIXED, *CRYSTALS):
        return plain.suffix
    return ".poscar" if plain.name.startswith(_VASP) or plain.name.endswith(_VASP) else ""


def _sniff_xyz(member: Member) -> Kind | None:
    head = list(islice(member.lines(), 2))
    if len(head) < 2:
        return None
    comment = head[1].lower()
    periodic = "lattice=" in comment and 'pbc="f f f"' not in comment
    return "crystal" if periodic else "molecule"


def _sniff_table(member: Member) -> Kind | None:
    names, _, _ = read_header(member.lines())
    if find_column(names, SMILES_COLUMNS) is not None:
        return "molecule"
    return "crystal" if find_column(names, CIF_COLUMNS) is not None else None
