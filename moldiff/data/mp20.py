"""MP-20 as moldiff takes it in: an npz folder of crystals with tables of their formation energies and band gaps."""

from __future__ import annotations

import csv
import gzip
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moldiff.chem.crystals import Crystal
from moldiff.data.crystal_entry import COMPUTED, CrystalEntry, number_of
from moldiff.data.tables import as_number
from moldiff.errors import BadRequest, DamagedFile

SPLITS = ("train", "val")
ORIGIN = "MP-20 (Materials Project, CC-BY 4.0; splits of Xie et al., CDVAE, ICLR 2022)"
#: Property, the columns of the table that give it in the order of preference, and its unit.
PROPERTIES: dict[str, tuple[tuple[str, ...], str]] = {
    "formation_energy": (("formation_energy_per_atom",), "eV/atom"),
    "band_gap": (("band_gap",), "eV"),
    # Where the published value is missing, that of a convex hull of the same entries stands in (2 meV/atom apart on average).
    "e_above_hull": (("e_above_hull", "e_above_hull_derived"), "eV/atom"),
}
UNITS = {**{name: unit for name, (_, unit) in PROPERTIES.items()}, **COMPUTED}
_ARRAYS = ("material_id", "num_atoms", "lattice", "atomic_numbers", "frac_coords")


def is_mp20_folder(path: Path) -> bool:
    """Tell whether a folder holds ``train.npz`` and ``val.npz`` with crystals (the layout that ``read_mp20`` reads)."""
    if not all((path / f"{split}.npz").is_file() for split in SPLITS):
        return False
    try:
        with np.load(path / "train.npz", allow_pickle=False) as arrays:
            return "frac_coords" in arrays.files
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def read_mp20(folder: str | Path, split: str) -> Iterator[CrystalEntry]:
    """Yield the crystals of one split.

    ``SPLIT.npz`` holds ``material_id`` and ``num_atoms`` [M], ``lattice`` [M, 3, 3] (Å, rows), ``atomic_numbers`` [A] and
    ``frac_coords`` [A, 3]; ``SPLIT_meta.csv.gz``, where there is one, the columns of ``PROPERTIES`` by ``material_id``. The
    number of atoms of each cell is kept: benchmarks count in it. Raises BadRequest for a missing file, DamagedFile for one
    that is not of this layout.
    """
    path = Path(folder) / f"{split}.npz"
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise BadRequest(f"{path} does not exist") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedFile(f"{path} can't be read as an npz archive: {error}") from error
    if missing := [name for name in _ARRAYS if name not in arrays]:
        raise DamagedFile(f"{path} lacks the arrays {', '.join(missing)}")
    offsets = np.concatenate([[0], np.cumsum(arrays["num_atoms"], dtype=np.int64)])
    if offsets[-1] != len(arrays["atomic_numbers"]) or arrays["frac_coords"].shape != (offsets[-1], 3):
        raise DamagedFile(f"{path} is inconsistent: num_atoms does not add up to its atoms")
    table = _properties(Path(folder) / f"{split}_meta.csv.gz")
    for row, name in enumerate(arrays["material_id"].astype(str).tolist()):
        part = slice(offsets[row], offsets[row + 1])
        crystal = Crystal.of(arrays["atomic_numbers"][part], arrays["frac_coords"][part], arrays["lattice"][row])
        yield CrystalEntry(row + 1, name, number_of(name, row + 1), crystal, table.get(name, {}), keep_size=True)


def _properties(path: Path) -> dict[str, dict[str, float]]:
    if not path.is_file():
        return {}
    found: dict[str, dict[str, float]] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            for values in csv.DictReader(file):
                numbers = {name: _first(values, columns) for name, (columns, _) in PROPERTIES.items()}
                found[values["material_id"]] = numbers
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise DamagedFile(f"{path} can't be read as a table with a column material_id: {error}") from error
    return found


def _first(values: dict[str, str], columns: tuple[str, ...]) -> float:
    """Return the first known number among some columns of a row, NaN where there is none."""
    numbers = (as_number(values.get(column) or "") for column in columns)
    return next((n for n in numbers if n is not None and not math.isnan(n)), math.nan)
