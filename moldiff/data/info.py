"""A data set in numbers: sizes, elements, bonds, charges, cells, property columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moldiff.data.location import find_data
from moldiff.data.store import Store, read_meta

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


@dataclass(frozen=True)
class PropertyInfo:
    """A property column: its unit, how many systems have it, and mean, least and greatest of those."""

    unit: str
    known: int
    mean: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class DataInfo:
    """What ``moldiff data info`` shows; counts are over all splits.

    ``sizes`` counts systems by number of atoms, ``elements`` atoms by symbol, ``bonds`` by kekulised order, ``charges`` atoms
    by nonzero formal charge; ``rejected`` counts rows of the source by reason and ``bonds_from`` molecules by where their
    bonds are from. Crystals have ``volume_per_atom`` (Å^3) and the numbers of their elements (``n_elements``).
    """

    name: str
    folder: Path
    kind: str
    source: str
    splits: dict[str, int]
    sizes: dict[int, int]
    elements: dict[str, int]
    bonds: dict[int, int]
    charges: dict[int, int]
    charged_molecules: int
    properties: dict[str, PropertyInfo]
    rejected: dict[str, int] = field(default_factory=dict)
    bonds_from: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    volume_per_atom: PropertyInfo | None = None
    n_elements: dict[int, int] = field(default_factory=dict)

    @property
    def n_systems(self) -> int:
        """Number of systems in all splits."""
        return sum(self.splits.values())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, fit for JSON."""
        return {**asdict(self), "folder": str(self.folder)}

    def table(self) -> Group:
        """Return the summary as rich tables."""
        from rich.console import Group

        count = sum(self.sizes.values())
        mean = sum(size * n for size, n in self.sizes.items()) / count
        common = sorted(self.sizes, key=lambda size: -self.sizes[size])[:3]
        rows: dict[str, str] = {
            "folder": str(self.folder),
            "source": self.source,
            self.kind + "s": ", ".join(f"{split} {n:,}" for split, n in self.splits.items()),
            "atoms": f"{min(self.sizes)} to {max(self.sizes)}, mean {mean:.1f}, most often {_listed(common)}",
            "elements": _counts(self.elements),
        }
        if self.kind == "molecule":
            orders = {1: "single", 2: "double", 3: "triple"}
            rows["bonds"] = _counts({orders.get(order, str(order)): n for order, n in self.bonds.items()})
            rows["charges"] = _counts({f"{q:+d}": n for q, n in self.charges.items()}) or "none"
            if self.charged_molecules:
                rows["ions"] = f"{self.charged_molecules:,} molecules with a total charge"
        if self.volume_per_atom is not None:
            v = self.volume_per_atom
            rows["volume per atom"] = f"mean {v.mean:.1f} {v.unit}, {v.minimum:.1f} to {v.maximum:.1f}"
            rows["n elements"] = _counts(self.n_elements)
        if self.bonds_from:
            rows["bonds from"] = _counts(self.bonds_from)
        rows["rejected"] = _counts(self.rejected) or "none"
        for k, note in enumerate(self.notes):
            rows[f"note {k + 1}" if len(self.notes) > 1 else "note"] = note
        main = _grid(f"data set {self.name}", ("", ""))
        for key, value in rows.items():
            main.add_row(key, value)
        if not self.properties:
            return Group(main)
        columns = _grid("properties", ("column", "unit", "known", "mean", "least", "greatest"))
        for name, info in self.properties.items():
            numbers = (f"{v:.4g}" for v in (info.mean, info.minimum, info.maximum))
            columns.add_row(name, info.unit, f"{info.known:,}", *numbers)
        return Group(main, columns)

    def __rich__(self) -> Group:
        return self.table()


def data_info(name_or_path: str | Path, root: str | Path | None = None) -> DataInfo:
    """Summarise a prepared data set, given by its name under the data root or by its folder.

    Raises BadRequest when there is none, DamagedFile when it is inconsistent.
    """
    folder = find_data(name_or_path, root)
    meta = read_meta(folder)
    stores = [Store(folder, split) for split in meta["splits"]]
    charges = _tally(stores, "charges")
    charged = 0
    for store in stores:
        if "charges" in store.names and len(store):
            owner = np.repeat(np.arange(len(store)), store.sizes.numpy())
            charged += int((np.bincount(owner, store.tensor("charges").numpy(), len(store)).round() != 0).sum())
    return DataInfo(
        name=str(meta["name"]),
        folder=folder,
        kind=str(meta["kind"]),
        source=str(meta.get("source", "")),
        splits={store.split: len(store) for store in stores},
        sizes=_tally(stores, "n_atoms"),
        elements=_symbols(_tally(stores, "atom_types")),
        bonds=_tally(stores, "bond_types"),
        charges={q: n for q, n in charges.items() if q},
        charged_molecules=charged,
        properties=_properties(stores, meta.get("properties", {})),
        rejected=dict(meta.get("rejected", {})),
        bonds_from=dict(meta.get("bonds_from", {})),
        notes=tuple(meta.get("notes", ())),
        volume_per_atom=_volumes(stores) if meta["kind"] == "crystal" else None,
        n_elements=_element_counts(stores) if meta["kind"] == "crystal" else {},
    )


def _tally(stores: list[Store], name: str) -> dict[int, int]:
    counts: dict[int, int] = {}
    for store in stores:
        if name in store.names:
            values, numbers = np.unique(store.tensor(name).numpy(), return_counts=True)
            for value, n in zip(values.tolist(), numbers.tolist(), strict=True):
                counts[value] = counts.get(value, 0) + n
    return dict(sorted(counts.items()))


def _volumes(stores: list[Store]) -> PropertyInfo:
    cells = [np.abs(np.linalg.det(store.tensor("lattice").numpy().astype(np.float64))) for store in stores]
    values = np.concatenate([v / store.sizes.numpy() for v, store in zip(cells, stores, strict=True)])
    return PropertyInfo("Å^3", len(values), float(values.mean()), float(values.min()), float(values.max()))


def _element_counts(stores: list[Store]) -> dict[int, int]:
    """Count crystals by their number of different elements."""
    counts: dict[int, int] = {}
    for store in stores:
        owner = np.repeat(np.arange(len(store)), store.sizes.numpy())
        pairs = np.unique(np.stack([owner, store.tensor("atom_types").numpy()]), axis=1)
        for n in np.bincount(pairs[0], minlength=len(store)).tolist():
            counts[n] = counts.get(n, 0) + 1
    return dict(sorted(counts.items()))


def _properties(stores: list[Store], units: Mapping[str, str]) -> dict[str, PropertyInfo]:
    found: dict[str, PropertyInfo] = {}
    for name in sorted({name for store in stores for name in store.properties}):
        columns = [store.column(name).numpy().astype(np.float64) for store in stores if name in store.properties]
        known = np.concatenate(columns)
        known = known[np.isfinite(known)]
        stats = (float(known.mean()), float(known.min()), float(known.max())) if len(known) else (np.nan,) * 3
        found[name] = PropertyInfo(str(units.get(name, "")), len(known), *stats)
    return found


def _symbols(counts: Mapping[int, int]) -> dict[str, int]:
    from ase.data import chemical_symbols

    return {chemical_symbols[z]: n for z, n in counts.items()}


def _counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{key} {n:,}" for key, n in counts.items())


def _listed(values: list[int]) -> str:
    return ", ".join(str(value) for value in values)


def _grid(title: str, columns: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(columns), pad_edge=False)
    for k, name in enumerate(columns):
        table.add_column(name, justify="left" if k < 2 else "right", style="bold" if k == 0 else "")
    return table
