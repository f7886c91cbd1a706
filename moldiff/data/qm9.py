"""QM9 as moldiff takes it in: an npz folder of geometries, SMILES and GFN2-xTB and B3LYP labels."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moldiff.data.entry import Entry
from moldiff.errors import BadRequest, DamagedFile

SPLITS = ("train", "val")
#: Column of the file, its name as a property, its unit. Plain names are GFN2-xTB, so that a sample's value can be computed.
PROPERTIES: dict[str, tuple[str, str]] = {
    "gfn2_energy_eV": ("energy", "eV"),
    "gfn2_homo_eV": ("homo", "eV"),
    "gfn2_lumo_eV": ("lumo", "eV"),
    "gfn2_gap_eV": ("gap", "eV"),
    "gfn2_dipole_D": ("dipole", "D"),
    "dft_mu_D": ("dft_mu", "D"),
    "dft_alpha_bohr3": ("dft_alpha", "bohr^3"),
    "dft_homo_Ha": ("dft_homo", "Ha"),
    "dft_lumo_Ha": ("dft_lumo", "Ha"),
    "dft_gap_Ha": ("dft_gap", "Ha"),
    "dft_cv_cal_molK": ("dft_cv", "cal/(mol K)"),
}
_ARRAYS = ("gdb_id", "n_atoms", "atomic_numbers", "positions", "smiles")


def is_qm9_folder(path: Path) -> bool:
    """Tell whether a folder holds ``train.npz`` and ``val.npz`` with molecules (the layout that ``read_qm9_npz`` reads)."""
    if not all((path / f"{split}.npz").is_file() for split in SPLITS):
        return False
    try:
        with np.load(path / "train.npz", allow_pickle=False) as arrays:
            return "gdb_id" in arrays.files
    except (OSError, ValueError, zipfile.BadZipFile):
        # Damaged, but named so: read_qm9_npz says what is wrong with it.
        return True


def read_qm9_npz(path: str | Path) -> Iterator[Entry]:
    """Yield the molecules of one npz file.

    Arrays: ``gdb_id``, ``n_atoms``, ``smiles`` [M]; ``atomic_numbers`` [A] and ``positions`` [A, 3] (Å) concatenated; the
    columns of ``PROPERTIES`` [M] where there are any. Raises BadRequest for a missing file, DamagedFile for one that is no
    such archive.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise BadRequest(f"{path} does not exist") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedFile(f"{path} can't be read as an npz archive: {error}") from error
    if missing := [name for name in _ARRAYS if name not in arrays]:
        raise DamagedFile(f"{path} lacks the arrays {', '.join(missing)}")
    offsets = np.concatenate([[0], np.cumsum(arrays["n_atoms"], dtype=np.int64)])
    if offsets[-1] != len(arrays["atomic_numbers"]) or arrays["positions"].shape != (offsets[-1], 3):
        raise DamagedFile(f"{path} is inconsistent: n_atoms does not add up to its atoms")
    columns = {name: arrays[key] for key, (name, _) in PROPERTIES.items() if key in arrays}
    for row, gdb_id in enumerate(arrays["gdb_id"].tolist()):
        part = slice(offsets[row], offsets[row + 1])
        yield Entry(
            row=row,
            name=f"gdb_{gdb_id}",
            id=gdb_id,
            numbers=arrays["atomic_numbers"][part],
            positions=arrays["positions"][part],
            smiles=arrays["smiles"][row].decode("ascii", "replace"),
            total_charge=0,
            properties={name: float(values[row]) for name, values in columns.items()},
        )
