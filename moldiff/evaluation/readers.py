"""Anyone's samples: files of every format, and lists of what other libraries have in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moldiff.chem.bonds import bonds_of
from moldiff.chem.cif import read_cif
from moldiff.chem.crystals import Crystal, from_ase, from_structure
from moldiff.data.crystal_entry import CrystalEntry, CrystalText
from moldiff.data.entry import Entry, Row
from moldiff.data.members import Kind
from moldiff.data.sources import open_source
from moldiff.data.tables import read_columns
from moldiff.errors import BadRequest

if TYPE_CHECKING:
    from rdkit.Chem import Mol

#: The files of an output folder of ``moldiff generate`` that hold its samples.
GENERATED = ("samples.sdf", "samples.extxyz")


@dataclass(frozen=True)
class Samples:
    """One set of samples, still unread: what they are, and a row each (``entry.Row`` or ``crystal_entry.CrystalRow``)."""

    kind: Kind
    rows: list[Any]


def read_files(path: str | Path) -> Samples:
    """Read the samples of a file, a folder or a zip, each file also gzipped.

    Molecules: SDF, XYZ, extxyz, CSV or SMI of SMILES. Crystals: CIF, POSCAR, extxyz with a cell, CSV with a column of CIFs, ASE
    databases. The output folder of ``moldiff generate`` is read from its ``samples.sdf`` or ``samples.extxyz``. Samples that
    can't be read stay in the list with their problem. Raises BadRequest when the path does not exist, is of no known kind,
    holds both kinds, or no readable sample at all.
    """
    path = Path(path)
    if (path / "meta.json").is_file():
        raise BadRequest(f"{path} is a prepared data set: give it as --reference, or the files that it was made from as samples")
    path = next((path / name for name in GENERATED if (path / name).is_file()), path)
    source = open_source(path)
    rows = [row for split in source.splits.values() for row in split()]
    if not rows:
        raise BadRequest(f"{path} holds no {source.kind}s")
    if next((row for row in rows if not row.entry().problem), None) is None:
        raise BadRequest(f"{path} holds no readable {source.kind}: {rows[0].entry().problem}")
    return Samples(source.kind, rows)


def read_objects(samples: Iterable[Any]) -> Samples:
    """Turn objects into samples, None standing for a failed one.

    Molecules: RDKit molecules, ASE atoms, moldiff samples, SMILES. An RDKit molecule keeps its bonds and charges; without a 3D
    conformer, or with implicit hydrogens, only its graph is judged. ASE atoms have their bonds perceived, for the total charge
    ``info["charge"]`` (0 where there is none). Crystals: pymatgen structures, periodic ASE atoms, moldiff samples with a cell,
    texts of CIFs. Raises BadRequest for objects of other kinds, and for molecules and crystals in one set; ASE atoms of the
    rarer kind are failed samples.
    """
    found = list(samples)
    if not found:
        raise BadRequest("there are no samples to evaluate")
    kinds = [_kind_of(i, sample) for i, sample in enumerate(found)]
    certain = {kind for kind, sure in kinds if sure and kind is not None}
    if len(certain) == 2:
        raise BadRequest("the samples are molecules as well as crystals; evaluate them one kind at a time")
    n_crystals = sum(kind == "crystal" for kind, _ in kinds)
    if certain == {"crystal"} or (not certain and n_crystals > sum(kind == "molecule" for kind, _ in kinds)):
        return Samples("crystal", [_crystal_row(i, sample) for i, sample in enumerate(found)])
    return Samples("molecule", [_row(i, sample) for i, sample in enumerate(found)])


def is_path(value: Any) -> bool:
    """Tell whether a value names a file or folder: a Path, or a text that exists on the disk or ends like a file."""
    if isinstance(value, Path):
        return True
    if not isinstance(value, str) or "\n" in value or len(value) > 1000:
        return False
    return Path(value).exists() or Path(value.removesuffix(".gz")).suffix.lower() in {
        ".sdf", ".sd", ".mol", ".xyz", ".extxyz", ".csv", ".tsv", ".smi", ".zip", ".cif", ".mcif", ".vasp", ".poscar", ".db",
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


def _kind_of(index: int, sample: Any) -> tuple[Kind | None, bool]:
    """Tell what an object is, and whether it can be nothing else; raises BadRequest for what is neither kind."""
    if sample is None:
        return None, False
    if isinstance(sample, str):
        return ("crystal" if "_cell_length_a" in sample else "molecule"), True
    if hasattr(sample, "fields") and hasattr(sample, "entry"):
        return ("crystal" if "lattice" in sample.fields else "molecule"), True
    if isinstance(sample, CrystalEntry | Crystal) or (hasattr(sample, "lattice") and hasattr(sample, "frac_coords")):
        return "crystal", True
    if hasattr(sample, "entry") or hasattr(sample, "GetAtoms"):
        return "molecule", True
    if hasattr(sample, "get_atomic_numbers"):
        return ("crystal" if any(sample.pbc) else "molecule"), False
    raise BadRequest(
        f"sample {index} is a {type(sample).__name__}; expected RDKit Mol, ASE Atoms, pymatgen Structure, Sample or SMILES"
    )


def _crystal_row(index: int, sample: Any) -> CrystalEntry | CrystalText:
    """Make a crystal of an object that ``_kind_of`` knows."""
    name, info = f"sample_{index}", {}
    if sample is None:
        return CrystalEntry(index, name, index, problem="no structure")
    if isinstance(sample, str):
        return CrystalText(index, name, sample, read_cif)
    if isinstance(sample, CrystalEntry):
        return sample if sample.name else replace(sample, name=name)
    problem, crystal = "", None
    try:
        if isinstance(sample, Crystal):
            crystal = sample
        elif hasattr(sample, "get_atomic_numbers"):
            info, crystal = sample.info, from_ase(sample)
        elif hasattr(sample, "fields"):
            info, name, problem = getattr(sample, "info", {}) or {}, sample.id or name, sample.problem
            fields = sample.fields
            crystal = Crystal.of(fields["atom_types"], fields["frac_coords"], np.asarray(fields["lattice"]).reshape(3, 3))
        else:
            info, crystal = getattr(sample, "properties", {}) or {}, from_structure(sample)
    except (ValueError, KeyError, np.linalg.LinAlgError) as error:
        problem = problem or str(error)
    properties, texts, _, _ = read_columns((k, v) for k, v in info.items() if np.ndim(v) == 0 and not isinstance(v, bool))
    return CrystalEntry(index, name, index, crystal, properties, texts, problem)


def _row(index: int, sample: Any) -> Row:
    name = f"sample_{index}"
    if sample is None:
        return Entry(index, name, index, problem="no molecule")
    if isinstance(sample, str):
        return Entry(index, name, index, smiles=sample)
    if hasattr(sample, "entry"):
        entry: Entry = sample.entry()
        properties, texts, _, _ = read_columns(
            (k, v) for k, v in (getattr(sample, "info", None) or {}).items() if np.ndim(v) == 0
        )
        entry = replace(entry, properties={**properties, **entry.properties}, texts=(*entry.texts, *texts))
        return entry if entry.name else replace(entry, name=name)
    if hasattr(sample, "get_atomic_numbers"):
        if any(sample.pbc):
            return Entry(index, name, index, problem="periodic, not a molecule")
        charge = sample.info.get("charge")
        numbers, positions = np.asarray(sample.get_atomic_numbers()), np.asarray(sample.get_positions())
        total = None if charge is None else round(float(charge))
        scalars = ((k, v) for k, v in sample.info.items() if np.ndim(v) == 0 and not isinstance(v, bool))
        properties, texts, _, _ = read_columns(scalars)
        return Entry(
            index, name, index, numbers=numbers, positions=positions, total_charge=total, properties=properties, texts=texts
        )
    return _of_mol(index, sample)


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
    properties, texts, _, _ = read_columns(mol.GetPropsAsDict().items())
    return Entry(
        index,
        name,
        index,
        numbers=numbers,
        positions=positions,
        bonds=bonds,
        total_charge=charge,
        properties=properties,
        texts=texts,
    )
