"""The raw QM9 archive (gdb9), read by the loader of PyTorch Geometric."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from moldiff.data.entry import Entry
from moldiff.errors import BadRequest, DamagedFile

FILES = ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")
#: Columns of PyG's y that become properties: place, name, unit in the store. PyG turns hartree into eV; the store keeps hartree,
#: so that a column means the same from every source of QM9.
COLUMNS: tuple[tuple[int, str, str], ...] = (
    (0, "dft_mu", "D"),
    (1, "dft_alpha", "bohr^3"),
    (2, "dft_homo", "Ha"),
    (3, "dft_lumo", "Ha"),
    (4, "dft_gap", "Ha"),
    (11, "dft_cv", "cal/(mol K)"),
)
_HARTREE = 27.211386246
UNITS = {name: unit for _, name, unit in COLUMNS}


def find_gdb9(path: Path) -> dict[str, str] | None:
    """Return where the raw files lie in a folder (or its ``raw``) or an archive, by name; None when gdb9.sdf is not there."""
    if path.is_dir():
        for folder in (path, path / "raw"):
            if (folder / FILES[0]).is_file():
                return {name: str(folder / name) for name in FILES if (folder / name).is_file()}
        return None
    members = {Path(member).name: member for member in _members(path)}
    return {name: members[name] for name in FILES if name in members} if FILES[0] in members else None


def read_gdb9(path: Path) -> Iterator[Entry]:
    """Yield the molecules of the raw archive, without the uncharacterised ones, in PyG's order.

    Raises BadRequest when one of ``FILES`` is missing, and DamagedFile when PyG can't read them. Nothing is downloaded.
    """
    found = find_gdb9(path) or {}
    missing = [name for name in FILES if name not in found]
    if missing:
        raise BadRequest(f"{path} lacks {', '.join(missing)}; the raw QM9 archive has {', '.join(FILES)}")
    with tempfile.TemporaryDirectory(prefix="moldiff-gdb9-") as scratch:
        raw = Path(scratch) / "raw"
        raw.mkdir()
        _lay_out(path, found, raw)
        from torch_geometric.datasets import QM9

        try:
            # PyG reports on stderr, which belongs to our own progress bar.
            with contextlib.redirect_stderr(io.StringIO()):
                data = QM9(scratch)
        except (ValueError, IndexError, KeyError, AttributeError, RuntimeError, OSError) as error:
            raise DamagedFile(f"{path} can't be read as the raw QM9 archive: {error}") from error
        for row, item in enumerate(data, start=1):
            scale = {"Ha": 1 / _HARTREE}
            yield Entry(
                row=row,
                name=item.name,
                id=int(item.idx) + 1,
                numbers=item.z.numpy(),
                positions=item.pos.numpy(),
                smiles=item.smiles,
                total_charge=0,
                properties={name: float(item.y[0, k]) * scale.get(unit, 1.0) for k, name, unit in COLUMNS},
            )


def _members(path: Path) -> list[str]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return archive.namelist()
        if path.name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2")):
            with tarfile.open(path) as archive:
                return archive.getnames()
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DamagedFile(f"{path} can't be read as an archive: {error}") from error
    return []


def _lay_out(path: Path, found: dict[str, str], raw: Path) -> None:
    """Link the files, or copy them out of the archive, to where PyG looks for them."""
    if path.is_dir():
        for name, place in found.items():
            os.symlink(Path(place).resolve(), raw / name)
        return
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                for name, member in found.items():
                    with zipped.open(member) as source, open(raw / name, "wb") as target:
                        shutil.copyfileobj(source, target)
        else:
            with tarfile.open(path) as tarred:
                for name, member in found.items():
                    stream = tarred.extractfile(member)
                    if stream is None:
                        raise DamagedFile(f"{path}: {member} is not a file")
                    with stream, open(raw / name, "wb") as target:
                        shutil.copyfileobj(stream, target)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DamagedFile(f"{path} is damaged: {error}") from error
