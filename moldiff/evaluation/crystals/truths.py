"""True structures that predictions are compared with, and which prediction belongs to which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moldiff.chem.crystals import Crystal, check_crystal
from moldiff.data.location import find_data
from moldiff.data.sources import open_source
from moldiff.data.store import Store
from moldiff.errors import BadRequest
from moldiff.evaluation.crystals.basic import JudgedCrystal
from moldiff.evaluation.crystals.matching import composition_key

if TYPE_CHECKING:
    from moldiff.data.crystal_entry import CrystalEntry, CrystalRow

#: The property of a prediction that numbers the row of its truth.
REQUEST = "request"


@dataclass(frozen=True)
class Truths:
    """True structures by row: ``crystals`` [n] (None for a row that can't be used), ``names``, and a ``title`` for the notes.

    ``store`` is the prepared data set's split that they are from, None where they are from files; ``requests`` maps the numbers
    that a file itself gives to its structures (``request``) to their rows.
    """

    title: str
    names: list[str]
    crystals: list[Crystal | None]
    store: Store | None = None
    requests: Mapping[int, int] = field(default_factory=dict)

    @property
    def kept(self) -> list[int]:
        """The rows that hold a structure."""
        return [i for i, crystal in enumerate(self.crystals) if crystal is not None]


@dataclass(frozen=True)
class Assignment:
    """Which truth each sample was predicted for: ``places`` holds (row of the truth, rank among its predictions) or None.

    ``how`` says in words how they were found, ``n_lost`` how many samples belong to no truth.
    """

    places: list[tuple[int, int] | None]
    how: str
    n_lost: int

    def predictions(self, crystals: Sequence[Crystal | None], n_truths: int) -> list[list[Crystal | None]]:
        """Return the predictions of each truth in their order, None for one that failed."""
        rows: list[list[Crystal | None]] = [[] for _ in range(n_truths)]
        for place, crystal in zip(self.places, crystals, strict=True):
            if place is not None:
                rows[place[0]].append(crystal)
        return rows


def read_truths(given: str | Path) -> Truths:
    """Read true structures: files as samples have them, or a prepared data set by name or path.

    ``NAME:SPLIT`` takes another split than ``val``, ``NAME:SPLIT:N`` its first N. Raises BadRequest for what is neither and for
    molecules.
    """
    path = Path(given)
    parts = str(given).rsplit(":", 2)
    prepared = None if path.exists() and not (path / "meta.json").is_file() else _prepared(parts, path)
    if prepared is not None:
        store, n = prepared
        if store.kind != "crystal":
            raise BadRequest(f"the truths in {given} are {store.kind}s; crystals are needed here")
        from moldiff.evaluation.crystals.reference import crystals_of

        rows: list[CrystalRow] = list(crystals_of(store, range(n)))
        title = f"{store.meta['name']}, {store.split}" + (f", the first {n:,}" if n < len(store) else "")
        return _read(title, rows, store)
    source = open_source(path)
    if source.kind != "crystal":
        raise BadRequest(f"the truths in {path} are {source.kind}s; crystals are needed here")
    found = _read(path.name, [row for split in source.splits.values() for row in split()])
    if not found.kept:
        raise BadRequest(f"{path} holds no readable true structure")
    return found


def assign(judged: Sequence[JudgedCrystal], truths: Truths) -> Assignment:
    """Find the truth of each sample by its ``request``, or, where no sample carries one, by its composition.

    Where the truths carry a ``request`` themselves, equal numbers belong together. Otherwise it is the number of the truth's row,
    counted from 0 or from 1: the way in which more samples have the composition of their truth is taken. Without requests the
    samples of a composition are dealt out in equal runs to the truths that have it, in the order of both.
    """
    asked = [_number(one) for one in judged]
    if all(number is None for number in asked):
        return _by_composition(judged, truths)
    keys = [None if c is None else composition_key(c.numbers) for c in truths.crystals]
    mine = [None if one.crystal is None else composition_key(one.crystal.numbers) for one in judged]

    def hits(rows: Mapping[int, int]) -> int:
        found = [rows.get(-1 if number is None else number, -1) for number in asked]
        return sum(r >= 0 and m is not None and keys[r] == m for r, m in zip(found, mine, strict=True))

    from_0, from_1 = ({i + first: i for i in range(len(keys))} for first in (0, 1))
    rows: Mapping[int, int] = from_1 if hits(from_1) > hits(from_0) else from_0
    how = "counted from 1" if rows is from_1 else "counted from 0"
    if truths.requests:
        rows, how = truths.requests, "which the true structures carry too"
    ranks: defaultdict[int, int] = defaultdict(int)
    places: list[tuple[int, int] | None] = []
    for number in asked:
        row = rows.get(-1 if number is None else number, -1)
        if row < 0 or keys[row] is None:
            places.append(None)
            continue
        places.append((row, ranks[row]))
        ranks[row] += 1
    return Assignment(places, f"by their request, {how}", sum(place is None for place in places))


def _by_composition(judged: Sequence[JudgedCrystal], truths: Truths) -> Assignment:
    waiting: defaultdict[Any, list[int]] = defaultdict(list)
    for row in truths.kept:
        crystal = truths.crystals[row]
        assert crystal is not None
        waiting[composition_key(crystal.numbers)].append(row)
    samples: defaultdict[Any, list[int]] = defaultdict(list)
    for i, one in enumerate(judged):
        if one.crystal is not None and len(one.crystal) and one.crystal.numbers.min() > 0:
            samples[composition_key(one.crystal.numbers)].append(i)
    places: list[tuple[int, int] | None] = [None] * len(judged)
    for key, found in samples.items():
        rows = waiting.get(key, [])
        for row, run in zip(rows, np.array_split(np.array(found), max(1, len(rows))), strict=False):
            for rank, i in enumerate(run.tolist()):
                places[i] = (row, rank)
    how = "by their composition, since no sample carries a request"
    return Assignment(places, how, sum(place is None for place in places))


def _prepared(parts: Sequence[str], path: Path) -> tuple[Store, int] | None:
    """Open the split that ``PATH``, ``PATH:SPLIT`` or ``PATH:SPLIT:N`` names, with the number of rows to take."""
    name, split, n = (*parts, "", "")[:3]
    if len(parts) == 1 and not (path / "meta.json").is_file() and (path.suffix or len(path.parts) > 1):
        return None  # a file that does not exist: the reader of files says so
    folder = find_data(name)
    store = Store(folder, split or "val")
    if n and (not n.isdecimal() or int(n) < 1):
        raise BadRequest(f"the number of true structures must be a whole number above 0, found {n!r}")
    return store, min(int(n), len(store)) if n else len(store)


def _read(title: str, rows: Sequence[CrystalRow], store: Store | None = None) -> Truths:
    names: list[str] = []
    crystals: list[Crystal | None] = []
    requests: dict[int, int] = {}
    for row in rows:
        entry = row.entry()
        crystal = entry.crystal
        if entry.problem or crystal is None or check_crystal(crystal.numbers, crystal.frac_coords, crystal.lattice):
            crystal = None
        if (number := _number(entry)) is not None and store is None:
            requests.setdefault(number, len(names))
        names.append(entry.name)
        crystals.append(crystal)
    return Truths(title, names, crystals, store, requests)


def _number(one: JudgedCrystal | CrystalEntry) -> int | None:
    value = one.properties.get(REQUEST)
    return int(value) if value is not None and value == value and value == int(value) else None
