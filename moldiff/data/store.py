"""The on-disk store of a data set: concatenated arrays in safetensors, one file a split (needs torch and safetensors only)."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise
from torch import Tensor

from moldiff.errors import BadRequest, DamagedFile, unknown

#: dtype and trailing shape of each tensor of a split, by what it counts: systems, atoms or bonds.
LAYOUT: dict[str, tuple[str, Any, tuple[int, ...]]] = {
    "n_atoms": ("system", np.int32, ()),
    "n_bonds": ("system", np.int32, ()),
    "id": ("system", np.int64, ()),
    "lattice": ("system", np.float32, (3, 3)),
    "atom_types": ("atom", np.uint8, ()),
    "positions": ("atom", np.float32, (3,)),
    "frac_coords": ("atom", np.float32, (3,)),
    "charges": ("atom", np.int8, ()),
    "bond_index": ("bond", np.int16, (2,)),
    "bond_types": ("bond", np.int8, ()),
}
PROPERTY = "property."
Columns = dict[str, NDArray[Any]]


def pack(systems: Sequence[Mapping[str, Any]]) -> Columns:
    """Concatenate systems into the columns of one split.

    Each system maps names of ``LAYOUT`` (without the counts) and ``property.NAME`` to arrays: ``atom_types`` [N] and either
    ``positions`` [N, 3] (Å) or ``frac_coords`` [N, 3] with ``lattice`` [3, 3]; ``bond_index`` [B, 2] with ``bond_types`` [B];
    ``charges`` [N]; ``id``. Names must agree between systems, but for properties, which are NaN where a system lacks them.
    Raises ValueError when a shape is wrong or a name is missing.
    """
    if not systems:
        raise ValueError("no systems to pack")
    names = [name for name in LAYOUT if name in systems[0]]
    properties = sorted({key for system in systems for key in system if key.startswith(PROPERTY)})
    columns: Columns = {"n_atoms": np.array([len(s["atom_types"]) for s in systems], dtype=np.int32)}
    if "bond_types" in names:
        columns["n_bonds"] = np.array([len(s["bond_types"]) for s in systems], dtype=np.int32)
    for name in names:
        _, dtype, tail = LAYOUT[name]
        missing = next((k for k, s in enumerate(systems) if name not in s), None)
        if missing is not None:
            raise ValueError(f"system {missing} has no {name!r}")
        columns[name] = np.concatenate([np.asarray(s[name], dtype=dtype).reshape(-1, *tail) for s in systems])
    for name in properties:
        columns[name] = np.array([float(s.get(name, np.nan)) for s in systems], dtype=np.float32)
    _check(columns, "the systems")
    return columns


def select(columns: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """The columns of some systems of a split (``index`` int64, in this order), atoms and bonds with them."""
    out: dict[str, Tensor] = {}
    rows = {"system": index}
    for scope, counts in (("atom", "n_atoms"), ("bond", "n_bonds")):
        if counts in columns:
            n = columns[counts].long()
            start, own = (n.cumsum(0) - n)[index], n[index]
            within = torch.arange(int(own.sum())) - torch.repeat_interleave(own.cumsum(0) - own, own)
            rows[scope] = torch.repeat_interleave(start, own) + within
    for name, value in columns.items():
        out[name] = value[rows[LAYOUT[name][0] if name in LAYOUT else "system"]]
    return out


def join(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The systems of two splits, one after the other: columns that both have, and all properties, NaN where unknown."""
    out = {name: torch.cat([value, second[name]]) for name, value in first.items() if name in LAYOUT and name in second}
    for name in sorted({key for columns in (first, second) for key in columns if key not in LAYOUT}):
        parts = [columns.get(name, torch.full((len(columns["n_atoms"]),), torch.nan)) for columns in (first, second)]
        out[name] = torch.cat(parts)
    return out


def write_store(folder: str | Path, splits: Mapping[str, Columns], meta: Mapping[str, Any]) -> Path:
    """Write a data set, each file through a temporary one beside it and ``os.replace``, ``meta.json`` last.

    ``splits`` maps split names to columns (see ``pack``). Counts, elements, size range and the SHA-256 of each split are
    added to ``meta``, in which ``name`` and ``kind`` (``molecule`` | ``crystal``) are required. Raises BadRequest when the
    folder is not writable.
    """
    folder = Path(folder)
    for key in ("name", "kind"):
        if key not in meta:
            raise ValueError(f"meta lacks {key!r}")
    filled: dict[str, Any] = {"format": 1, **meta, "splits": {}}
    elements: set[int] = set()
    names: set[str] = set()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, columns in splits.items():
            _check(columns, f"split {split!r}")
            data = serialise({k: np.ascontiguousarray(v) for k, v in columns.items()})
            write_atomically(folder / f"{split}.safetensors", data)
            filled["splits"][split] = {
                "n_systems": len(columns["n_atoms"]),
                "n_atoms": len(columns["atom_types"]),
                "n_bonds": len(columns.get("bond_types", ())),
                "min_size": int(columns["n_atoms"].min()),
                "max_size": int(columns["n_atoms"].max()),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
            elements.update(np.unique(columns["atom_types"]).tolist())
            names.update(key.removeprefix(PROPERTY) for key in columns if key.startswith(PROPERTY))
        filled["elements"] = sorted(elements)
        filled["properties"] = {name: meta.get("properties", {}).get(name, "") for name in sorted(names)}
        write_atomically(folder / "meta.json", (json.dumps(filled, indent=1, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise BadRequest(f"can't write the data set {folder}: {error.strerror or error}") from error
    return folder


def write_atomically(path: Path, data: bytes) -> None:
    """Write bytes so that the file is at every moment either the old one or the complete new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_meta(folder: str | Path) -> dict[str, Any]:
    """Read ``meta.json`` of a data set; raises BadRequest when there is none and DamagedFile when it is not readable."""
    path = Path(folder) / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadRequest(f"{folder} is not a moldiff data set: it has no meta.json") from error
    except (OSError, ValueError) as error:
        raise DamagedFile(f"{path} can't be read: {error}") from error
    if not isinstance(meta, dict) or not {"name", "kind", "splits"} <= meta.keys():
        raise DamagedFile(f"{path} is not the meta.json of a moldiff data set")
    return meta


class Store:
    """One split of a data set, read lazily.

    Tensors are mapped into memory when first asked for, so that opening a store costs a header. Raises BadRequest for a
    folder that is no data set or an unknown split, DamagedFile for a file that is truncated or inconsistent.
    """

    def __init__(self, folder: str | Path, split: str = "train") -> None:
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
        if split not in self.meta["splits"]:
            raise unknown(f"split of {self.folder}", split, self.meta["splits"])
        self.split = split
        self.path = self.folder / f"{split}.safetensors"
        try:
            with safe_open(self.path, framework="pt") as file:
                self.names: tuple[str, ...] = tuple(sorted(file.keys()))
        except (OSError, SafetensorError) as error:
            raise DamagedFile(f"{self.path} is missing or damaged: {error}") from error
        self._tensors: dict[str, Tensor] = {}
        self._check_offsets()

    def __len__(self) -> int:
        return len(self.sizes)

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r}, split={self.split!r}, systems={len(self)})"

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes map the file themselves instead of being sent its contents.
        return {k: v for k, v in self.__dict__.items() if not isinstance(v, Tensor)} | {"_tensors": {}}

    def tensor(self, name: str) -> Tensor:
        """Return a whole stored tensor by its name in the table of docs/architecture.md."""
        if name not in self._tensors:
            if name not in self.names:
                raise unknown(f"tensor of {self.path}", name, self.names)
            with safe_open(self.path, framework="pt") as file:
                self._tensors[name] = file.get_tensor(name)
        return self._tensors[name]

    @property
    def kind(self) -> str:
        """``molecule`` or ``crystal``."""
        return str(self.meta["kind"])

    @property
    def sizes(self) -> Tensor:
        """Number of atoms of each system, int32 [M]."""
        return self.tensor("n_atoms")

    @property
    def properties(self) -> tuple[str, ...]:
        """Names of the property columns."""
        return tuple(name.removeprefix(PROPERTY) for name in self.names if name.startswith(PROPERTY))

    def column(self, name: str) -> Tensor:
        """Return a property column, float32 [M], NaN where unknown; raises BadRequest for an unknown name."""
        if name not in self.properties:
            raise unknown(f"property of {self.folder}", name, self.properties)
        return self.tensor(PROPERTY + name)

    @cached_property
    def atom_offsets(self) -> Tensor:
        """Offsets into the atom tensors, int64 [M + 1]."""
        return _offsets(self.sizes)

    @cached_property
    def bond_offsets(self) -> Tensor:
        """Offsets into the bond tensors, int64 [M + 1]."""
        return _offsets(self.tensor("n_bonds"))

    def system(self, index: int) -> dict[str, Tensor]:
        """Return one physical system as tensors.

        ``atom_types`` int64 [N] (atomic numbers), ``positions`` float32 [N, 3] or ``frac_coords`` and ``lattice``,
        ``charges`` int64 [N], ``bond_types`` int64 [N, N] (symmetric, kekulised order 0..3), ``id`` int64, ``property.NAME``
        float32. Raises IndexError.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"system {index} of {len(self)}")
        index %= len(self)
        atoms = slice(int(self.atom_offsets[index]), int(self.atom_offsets[index + 1]))
        system: dict[str, Tensor] = {}
        for name in self.names:
            scope = LAYOUT[name][0] if name in LAYOUT else "system"
            if scope == "atom":
                value = self.tensor(name)[atoms]
                system[name] = value.clone() if value.is_floating_point() else value.long()
            elif scope == "system" and name not in ("n_atoms", "n_bonds"):
                system[name] = self.tensor(name)[index].clone()
        if "bond_types" in self.names:
            pairs, types = self.bonds(index)
            dense = torch.zeros(atoms.stop - atoms.start, atoms.stop - atoms.start, dtype=torch.long)
            dense[pairs[:, 0], pairs[:, 1]] = types
            dense[pairs[:, 1], pairs[:, 0]] = types
            system["bond_types"] = dense
        return system

    def bonds(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the bonds of one system: index pairs int64 [B, 2] with i < j, and orders int64 [B]."""
        part = slice(int(self.bond_offsets[index]), int(self.bond_offsets[index + 1]))
        return self.tensor("bond_index")[part].long(), self.tensor("bond_types")[part].long()

    def verify(self) -> None:
        """Compare the file with the SHA-256 in ``meta.json``; raises DamagedFile when it was altered."""
        with open(self.path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.meta["splits"][self.split].get("sha256"):
            raise DamagedFile(f"{self.path} is not the file that its meta.json describes (SHA-256 differs)")

    def _check_offsets(self) -> None:
        needed = {"n_atoms", "atom_types", "positions" if self.kind == "molecule" else "frac_coords"}
        if missing := needed - set(self.names):
            raise DamagedFile(f"{self.path} lacks {', '.join(sorted(missing))}")
        pairs = [("n_atoms", "atom_types")] + ([("n_bonds", "bond_types")] if "bond_types" in self.names else [])
        with safe_open(self.path, framework="pt") as file:
            for counts, counted in pairs:
                if int(self.tensor(counts).sum()) != file.get_slice(counted).get_shape()[0]:
                    raise DamagedFile(f"{self.path} is inconsistent: {counts} does not add up to {counted}")


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.long), counts.long().cumsum(0)])


def _check(columns: Columns, what: str) -> None:
    """Raise ValueError where columns contradict the layout or each other."""
    if "n_atoms" not in columns or "atom_types" not in columns:
        raise ValueError(f"{what} lack n_atoms or atom_types")
    counts = {
        "system": len(columns["n_atoms"]),
        "atom": int(columns["n_atoms"].sum()),
        "bond": int(columns["n_bonds"].sum()) if "n_bonds" in columns else 0,
    }
    for name, array in columns.items():
        if name not in LAYOUT and not name.startswith(PROPERTY):
            raise ValueError(f"{what} have an unknown column {name!r} (known: {', '.join(LAYOUT)}, {PROPERTY}NAME)")
        scope, dtype, tail = LAYOUT.get(name, ("system", np.float32, ()))
        shape = (counts[scope], *tail)
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(f"{what}: {name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}")
    if counts["system"] == 0 or int(columns["n_atoms"].min()) < 1:
        raise ValueError(f"{what} have no systems or a system without atoms")
