"""What is known of real data offline: hashes of canonical SMILES or of prototypes, histograms, metrics of held-out real data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.bonds import Bonds
from moldiff.data.entry import Entry, Row
from moldiff.errors import BadRequest, DamagedFile, unknown

if TYPE_CHECKING:
    from moldiff.data.store import Store
    from moldiff.evaluation.molecules.distributions import Profile
    from moldiff.evaluation.parallel import Progress

FILE = "reference.safetensors"
SHIPPED = Path(__file__).parent / "references"
HASHES, PROPERTY = "hashes", "property."


@dataclass(frozen=True)
class Reference:
    """The statistics of a data set that samples are compared with.

    ``hashes`` int64 [K], sorted: 64-bit hashes of canonical SMILES, or of the fingerprints of crystals; ``counts`` maps the
    name of a histogram to its counts (see ``molecules.distributions``); ``data_row`` holds the metrics of held-out real
    systems; ``name``, ``kind`` and ``n_systems`` tell where it is from. ``properties`` are known values of random held-out
    systems: for each property float32 [P, 2], the number of atoms and the value.
    """

    name: str
    kind: str
    n_systems: int
    hashes: NDArray[np.int64]
    counts: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    data_row: Mapping[str, Any] = field(default_factory=dict)
    properties: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def contains(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Tell for each canonical SMILES or fingerprint whether the data set has it; wrong once in 10^14 look-ups."""
        wanted = hash_texts(texts)
        if len(self.hashes) == 0:
            return np.zeros(len(wanted), dtype=np.bool_)
        place = np.searchsorted(self.hashes, wanted).clip(max=len(self.hashes) - 1)
        return np.asarray(self.hashes[place] == wanted, dtype=np.bool_)

    def with_data_row(self, data_row: Mapping[str, Any]) -> Reference:
        """Return a copy that carries the metrics of real held-out data."""
        return replace(self, data_row=dict(data_row))

    def with_properties(self, properties: Mapping[str, NDArray[np.float32]]) -> Reference:
        """Return a copy that carries known values of real held-out systems."""
        return replace(self, properties=dict(properties))

    def save(self, path: str | Path) -> Path:
        """Write the reference as one safetensors file (a folder gets ``reference.safetensors``)."""
        from safetensors.numpy import save

        from moldiff.data.store import write_atomically

        path = Path(path)
        path = path / FILE if path.is_dir() or not path.suffix else path
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {HASHES: self.hashes, **{f"counts.{name}": _thin(array) for name, array in self.counts.items()}}
        tensors |= {f"{PROPERTY}{name}": array for name, array in self.properties.items()}
        head = {"name": self.name, "kind": self.kind, "n_systems": self.n_systems, "data_row": self.data_row}
        write_atomically(path, save(tensors, metadata={"moldiff_reference": json.dumps(head, ensure_ascii=False)}))
        return path


def hash_texts(texts: Iterable[str]) -> NDArray[np.int64]:
    """Hash texts to 64 bits (BLAKE2b), stored as int64 because safetensors files are read by more programs so."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def load_reference(name: str | Path, *, n_processes: int | None = None, progress: Progress | None = None) -> Reference:
    """Load a reference by the name of one that ships, from a model folder or a reference's file, or from a data set.

    A data set is a prepared one, which is read whole the first time (minutes for 100,000 molecules) and remembered in the cache,
    or files of molecules or crystals. Raises BadRequest for a name that is none of these, DamagedFile for a damaged file.
    """
    path = Path(name)
    if (path / "meta.json").is_file():
        from moldiff.evaluation.molecules.data_row import reference_of_data

        return reference_of_data(path, n_processes=n_processes, progress=progress)
    for candidate in (path / FILE, path):
        if candidate.is_file() and candidate.suffix == ".safetensors":
            return _read(candidate)
    shipped = SHIPPED / f"{name}.safetensors"
    if shipped.is_file():
        return _read(shipped)
    if path.exists():
        from moldiff.evaluation.molecules.data_row import reference_of_files

        return reference_of_files(path, n_processes=n_processes, progress=progress)
    if len(path.parts) > 1:
        raise BadRequest(f"the reference {name} does not exist")
    raise unknown("reference", str(name), [*shipped_references(), "PATH"])


def shipped_references() -> list[str]:
    """Return the names of the references that ship with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def entries_of(store: Store, indices: Iterable[int] | None = None) -> Iterator[Entry]:
    """Yield the molecules of a store as entries with their bonds (all of them, or those of ``indices``)."""
    import torch

    z, x = store.tensor("atom_types"), store.tensor("positions")
    q = store.tensor("charges") if "charges" in store.names else torch.zeros(len(z), dtype=torch.int8)
    ids = store.tensor("id") if "id" in store.names else torch.arange(len(store))
    offsets = store.atom_offsets.tolist()
    columns = {name: store.column(name).tolist() for name in store.properties}
    for i in range(len(store)) if indices is None else indices:
        part = slice(offsets[i], offsets[i + 1])
        bonds = None
        if "bond_types" in store.names:
            pairs, types = store.bonds(i)
            bonds = Bonds(pairs.numpy().astype(np.int16), types.numpy().astype(np.int8), q[part].numpy())
        name = f"{store.meta['name']}_{int(ids[i])}"
        known = {column: values[i] for column, values in columns.items()}
        numbers, positions = z[part].numpy(), x[part].numpy()
        yield Entry(row=i, name=name, id=int(ids[i]), numbers=numbers, positions=positions, bonds=bonds, properties=known)


def build_reference(
    store: Store, out: str | Path | None = None, *, n_processes: int | None = None, progress: Progress | None = None
) -> Reference:
    """Build the reference of a data set's split, and write it when ``out`` is given.

    For crystals see ``crystals.reference``, for molecules ``reference_of_molecules``.
    """
    if store.kind == "crystal":
        from moldiff.evaluation.crystals.reference import build_crystal_reference

        return build_crystal_reference(store, out, n_processes=n_processes, progress=progress)
    reference = reference_of_molecules(
        str(store.meta["name"]), list(entries_of(store)), n_processes=n_processes, progress=progress
    )
    if out is not None:
        reference.save(out)
    return reference


def reference_of_molecules(
    name: str, rows: Sequence[Row], *, n_processes: int | None = None, progress: Progress | None = None
) -> Reference:
    """Build the reference of molecules.

    A molecule is known by two SMILES where they differ: that of its own bonds, and that of the bonds which RDKit perceives in
    its coordinates. Without the second one, samples whose bonds must be perceived would look new when they are not.
    """
    from moldiff.evaluation.molecules.distributions import add_profile
    from moldiff.evaluation.parallel import map_items

    known: set[str] = set()
    counts: dict[str, NDArray[np.int64]] = {}

    def add(index: int, result: tuple[tuple[str, ...], Profile]) -> None:
        known.update(result[0])
        add_profile(counts, result[1])

    map_items(_learn, rows, _nothing, n_processes=n_processes, progress=progress, done=add)
    return Reference(name, "molecule", len(rows), np.unique(hash_texts(sorted(known))), counts)


def _learn(row: Row) -> tuple[tuple[str, ...], Profile]:
    from moldiff.evaluation.molecules.basic import judge
    from moldiff.evaluation.molecules.sets import examine

    entry = row.entry()
    own = examine(entry)
    perceived = judge(replace(entry, bonds=None, total_charge=own.verdict.charge))
    return tuple({v.smiles for v in (own.verdict, perceived) if v.valid}), own.profile


def _nothing(row: Row, reason: str) -> tuple[tuple[str, ...], Profile]:
    return (), {}


def _thin(array: NDArray[np.int64]) -> NDArray[Any]:
    """Take the narrowest integers that hold the counts: the file ships with every model."""
    for kind in (np.uint8, np.int16, np.int32):
        if array.max(initial=0) <= np.iinfo(kind).max:
            return array.astype(kind)
    return array


def _read(path: Path) -> Reference:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            head = json.loads((file.metadata() or {})["moldiff_reference"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        hashes = tensors.pop(HASHES).astype(np.int64)
        known = {name.removeprefix(PROPERTY): tensors.pop(name) for name in list(tensors) if name.startswith(PROPERTY)}
        counts = {name.removeprefix("counts."): array.astype(np.int64) for name, array in tensors.items()}
        return Reference(head["name"], head["kind"], int(head["n_systems"]), hashes, counts, head["data_row"], known)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DamagedFile(f"{path} is not a moldiff reference: {error}") from error
