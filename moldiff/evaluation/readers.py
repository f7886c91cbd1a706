"""Anyone's samples: files of every format, and lists of what other libraries have in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moldiff.chem.bonds import bonds_of
from moldiff.data.entry import Entry, Row
from moldiff.data.sources import read_rows
from moldiff.errors import BadRequest

if TYPE_CHECKING:
    from rdkit.Chem import Mol


def read_files(path: str | Path) -> list[Row]:
    """Read the samples of a file, a folder or a zip: SDF, XYZ, extxyz, CSV or SMI of SMILES, each also gzipped.

    The output folder of ``moldiff generate`` is read from its ``samples.sdf``. Samples that can't be read stay in the list with
    their problem. Raises BadRequest when the path does not exist, is of no known kind, or holds no readable sample at all.
    """
    path = Path(path)
    if (path / "meta.json").is_file():
        raise BadRequest(f"{path} is a prepared data set: give it as --reference, or the files that it was made from as samples")
    if (path / "samples.sdf").is_file():
        path = path / "samples.sdf"
    rows = list(read_rows(path))
    if not rows:
        raise BadRequest(f"{path} holds no molecules")
    if next((row for row in rows if not row.entry().problem), None) is None:
        raise BadRequest(f"{path} holds no readable molecule: {rows[0].entry().problem}")
    return rows


def read_objects(samples: Iterable[Any]) -> list[Row]:
    """Turn objects into samples: RDKit molecules, ASE atoms, moldiff samples, SMILES or None (a failed sample).

    An RDKit molecule keeps its bonds and charges; without a 3D conformer, or with implicit hydrogens, only its graph is judged.
    ASE atoms have their bonds perceived, for the total charge ``info["charge"]`` (0 where there is none). Raises BadRequest for
    objects of other kinds.
    """
    rows = [_row(i, sample) for i, sample in enumerate(samples)]
    if not rows:
        raise BadRequest("there are no samples to evaluate")
    return rows


def is_path(value: Any) -> bool:
    """Tell whether a value names a file or folder: a Path, or a text that exists on the disk or ends like a file."""
    if isinstance(value, Path):
        return True
    if not isinstance(value, str) or "\n" in value or len(value) > 1000:
        return False
    return Path(value).exists() or Path(value.removesuffix(".gz")).suffix.lower() in {
        ".sdf", ".sd", ".mol", ".xyz", ".extxyz", ".csv", ".tsv", ".smi", ".zip", ".cif",
    }  # fmt: skip


def names_of(paths: Sequence[str | Path], names: Sequence[str] | None) -> list[str]:
    """Return the names of the sets: those given, or the files' own; raises BadRequest when they don't fit."""
    if names is None:
        stems = [Path(p).name.removesuffix(".gz").split(".")[0] or str(p) for p in paths]
        return [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths, strict=True)]
    if len(names) != len(paths):
        raise BadRequest(f"{len(names)} names for {len(paths)} sets of samples: {', '.join(names)}")
    return check_names(names)


def check_names(names: Sequence[str]) -> list[str]:
    """Return the names of sets; raises BadRequest for an empty one, one that occurs twice, and ``data``."""
    for name in names:
        if not name.strip():
            raise BadRequest("a set of samples needs a name")
        if list(names).count(name) > 1:
            raise BadRequest(f"two sets of samples are named {name!r}")
        if name == "data":
            raise BadRequest("the name 'data' belongs to the column of real data")
    return list(names)


def _row(index: int, sample: Any) -> Row:
    name = f"sample_{index}"
    if sample is None:
        return Entry(index, name, index, problem="no molecule")
    if isinstance(sample, str):
        return Entry(index, name, index, smiles=sample)
    if hasattr(sample, "entry"):
        entry: Entry = sample.entry()
        return entry if entry.name else replace(entry, name=name)
    if hasattr(sample, "GetAtoms"):
        return _of_mol(index, sample)
    if hasattr(sample, "get_atomic_numbers"):
        if any(sample.pbc):
            return Entry(index, name, index, problem="periodic, not a molecule")
        charge = sample.info.get("charge")
        numbers, positions = np.asarray(sample.get_atomic_numbers()), np.asarray(sample.get_positions())
        total = None if charge is None else round(float(charge))
        return Entry(index, name, index, numbers=numbers, positions=positions, total_charge=total)
    raise BadRequest(f"sample {index} is a {type(sample).__name__}; expected RDKit Mol, ASE Atoms, moldiff Sample or SMILES")


def _of_mol(index: int, mol: Mol) -> Entry:
    from rdkit import Chem, rdBase

    title = mol.GetProp("_Name") if mol.HasProp("_Name") else ""
    name = title or f"sample_{index}"
    with rdBase.BlockLogs():
        mol = Chem.Mol(mol)
        mol.UpdatePropertyCache(strict=False)
        solid = any(c.Is3D() for c in mol.GetConformers())
        implied = any(a.GetTotalNumHs() for a in mol.GetAtoms())
        if implied and not (solid and any(a.GetAtomicNum() == 1 for a in mol.GetAtoms())):
            # Hydrogens whose place nobody knows: the graph can be judged, the geometry can't. Where some hydrogens have a place,
            # the others are missing, and RDKit's guess that they are implied would hide a radical.
            mol, solid = Chem.AddHs(mol), False
        numbers = np.array([a.GetAtomicNum() for a in mol.GetAtoms()], dtype=np.int64)
        try:
            bonds = bonds_of(mol)
        except (Chem.MolSanitizeException, ValueError):
            return Entry(index, name, index, numbers=numbers, problem="can't be kekulised")
    if len(numbers) == 0:
        return Entry(index, name, index, problem="no atoms")
    positions = mol.GetConformer().GetPositions() if solid else None
    charge = int(bonds.charges.sum(dtype=np.int64))
    return Entry(index, name, index, numbers=numbers, positions=positions, bonds=bonds, total_charge=charge)
