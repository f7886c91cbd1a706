"""What is known of real crystals offline: hashes of composition and prototype label, and histograms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moldiff.chem.crystals import Crystal
from moldiff.data.crystal_entry import CrystalEntry, CrystalRow
from moldiff.errors import BadRequest
from moldiff.evaluation.cache import ResultCache
from moldiff.evaluation.conditional import CALCULATED
from moldiff.evaluation.crystals.basic import judge_crystal
from moldiff.evaluation.crystals.novelty import Training
from moldiff.evaluation.crystals.sets import CrystalSettings, crystal_profile, evaluate_crystals
from moldiff.evaluation.molecules.data_row import N_HELD_OUT, as_data_row
from moldiff.evaluation.molecules.distributions import Profile, add_profile
from moldiff.evaluation.parallel import map_items
from moldiff.evaluation.progress import StageProgress
from moldiff.evaluation.reference import Reference, hash_texts

if TYPE_CHECKING:
    from moldiff.data.store import Store
    from moldiff.evaluation.parallel import Progress


def crystals_of(store: Store, indices: Iterable[int] | None = None) -> Iterator[CrystalEntry]:
    """Yield the crystals of a store as entries (all of them, or those of ``indices``)."""
    z, frac, lattice = (store.tensor(name).numpy() for name in ("atom_types", "frac_coords", "lattice"))
    ids = store.tensor("id").tolist() if "id" in store.names else list(range(len(store)))
    offsets = store.atom_offsets.tolist()
    columns = {name: store.column(name).tolist() for name in store.properties}
    for i in range(len(store)) if indices is None else indices:
        part = slice(offsets[i], offsets[i + 1])
        properties = {name: values[i] for name, values in columns.items()}
        yield CrystalEntry(i, f"{store.meta['name']}_{ids[i]}", ids[i], Crystal.of(z[part], frac[part], lattice[i]), properties)


def build_crystal_reference(
    store: Store, out: str | Path | None = None, *, n_processes: int | None = None, progress: Progress | None = None
) -> Reference:
    """Build the reference of a split of crystals, and write it when ``out`` is given.

    A crystal is known by the hashes of its reduced formula and its prototype label at each of ``basic.LABEL_TOLERANCES``. Raises
    BadRequest for a store of molecules.
    """
    if store.kind != "crystal":
        raise BadRequest(f"{store.folder} holds {store.kind}s; this reference is made from crystals")
    reference = reference_of_crystals(
        str(store.meta["name"]), list(crystals_of(store)), n_processes=n_processes, progress=progress
    )
    if out is not None:
        reference.save(out)
    return reference


def reference_of_crystals(
    name: str, rows: Sequence[CrystalRow], *, n_processes: int | None = None, progress: Progress | None = None
) -> Reference:
    """Build the reference of crystals; rows that can't be read are left out."""
    known: set[str] = set()
    counts: dict[str, NDArray[np.int64]] = {}

    def add(index: int, result: tuple[tuple[str, ...], Profile]) -> None:
        known.update(result[0])
        add_profile(counts, result[1])

    map_items(_learn, rows, _nothing, n_processes=n_processes, progress=progress, done=add)
    return Reference(name, "crystal", len(rows), np.unique(hash_texts(sorted(known))), counts)


def make_crystal_data_row(
    reference: Reference,
    train: Store,
    held_out: Store,
    settings: CrystalSettings | None = None,
    *,
    n_held_out: int = N_HELD_OUT,
    n_processes: int | None = None,
    cache: ResultCache | None = None,
    progress: StageProgress | None = None,
) -> dict[str, Any]:
    """Evaluate random held-out crystals against those of training, as plain values for the reference's file."""
    settings = CrystalSettings(n_processes=n_processes) if settings is None else settings
    chosen = np.sort(np.random.default_rng(0).permutation(len(held_out))[:n_held_out]).tolist()
    title = f"{reference.name}, held-out crystals"
    rows = list(crystals_of(held_out, chosen))
    known = [name for name in CALCULATED["crystal"] if name in held_out.properties]
    if settings.hull is None:
        known = [name for name in known if name != "e_above_hull"]
    settings = replace(settings, properties=tuple((name, name) for name in known))
    training = Training(train)
    found = evaluate_crystals(title, rows, reference, settings, training=training, cache=cache, progress=progress)
    return as_data_row(found, title, reference)


def _learn(row: CrystalRow) -> tuple[tuple[str, ...], Profile]:
    one = judge_crystal(row)
    return one.labels, crystal_profile(one)


def _nothing(row: CrystalRow, reason: str) -> tuple[tuple[str, ...], Profile]:
    return (), {}
