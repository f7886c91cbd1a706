"""Further property columns of a prepared data set: computed in processes, kept as they come, written when all are there."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moldiff.data.location import find_data
from moldiff.data.store import PROPERTY, Store, read_meta, write_store
from moldiff.data.workers import map_stream, n_cores
from moldiff.errors import BadRequest

#: Folder of a data set in which results wait until they become columns, and failures stay.
LABELS = "labels"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Labeller:
    """What makes the columns: ``columns`` maps their names to units; ``compute`` turns a system (``Store.system``, as arrays)
    into values by column, and is importable by name or a partial of such a function.

    ``origin`` says in words what computes; ``quick`` ones are handed to a process many at a time.
    """

    name: str
    columns: Mapping[str, str]
    compute: Callable[[Mapping[str, Any]], Mapping[str, float]]
    origin: str
    quick: bool = False


@dataclass(frozen=True)
class LabelReport:
    """What became of a labelling: systems by split that were computed now, taken from an earlier run, and failed by reason."""

    folder: Path
    columns: tuple[str, ...]
    computed: int = 0
    kept: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    failures: Path | None = None

    def __str__(self) -> str:
        known = self.computed + self.kept
        text = f"{self.folder.name}: {', '.join(self.columns)} of {known:,} systems"
        if self.kept:
            text += f" ({self.kept:,} of them from an earlier run)"
        if self.failed:
            often = "; ".join(f"{reason} ({n:,})" for reason, n in self.failed.most_common(3))
            text += f"; unknown for {sum(self.failed.values()):,}: {often}; all in {self.failures}"
        return text


def label_store(
    data: str | Path,
    labeller: Labeller,
    *,
    root: str | Path | None = None,
    n_workers: int | None = None,
    time_limit: float = 60.0,
    overwrite: bool = False,
    retry: bool = False,
    progress: Progress | None = None,
) -> LabelReport:
    """Add a labeller's columns to every split of a data set.

    Results are appended to ``labels/`` in its folder as they come, so that a run that was stopped goes on; a system that fails,
    or needs longer than ``time_limit`` seconds, gets NaN and a row with the reason in ``labels/NAME.failed.csv``. ``retry``
    computes those again; ``n_workers`` 0 works in this process, without a time limit. The columns are written when all systems
    are done. Raises BadRequest for columns that exist (unless ``overwrite``), and for a data set that can't be written.
    """
    folder = find_data(data, root)
    meta = read_meta(folder)
    stores = [Store(folder, split) for split in meta["splits"]]
    for column in labeller.columns:
        if not _NAME.fullmatch(column):
            raise BadRequest(f"{column!r} can't be the name of a column (letters, digits and _)")
        if column in stores[0].properties and not overwrite:
            raise BadRequest(f"{folder} has a column {column!r} already: replace it with --overwrite, or give a --prefix")
    if n_workers is not None and n_workers < 0:
        raise BadRequest(f"workers must be 0 or more, found {n_workers}")
    if not time_limit > 0:
        raise BadRequest(f"the time limit must be positive, found {time_limit:g}")
    place = folder / LABELS
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise BadRequest(f"can't write to {place}: {error.strerror or error}") from error
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "_", labeller.name)[:80]
    total, done, kept = sum(len(store) for store in stores), 0, 0
    tables: dict[str, _Table] = {}
    for store in stores:
        path = place / f"{slug}.{store.split}.csv"
        table = tables[store.split] = _Table(path, tuple(labeller.columns), _digest(store), len(store))
        table.open(retry)
        kept += len(table.rows)
        done += len(table.rows)
        if progress is not None:
            progress(done, total)
        left = [i for i in range(len(store)) if i not in table.rows]
        workers = min(n_cores() if n_workers is None else n_workers, max(1, len(left)))
        chunk = 32 if labeller.quick else 1
        stream = map_stream(labeller.compute, _systems(store, left), n_processes=workers, time_limit=time_limit, chunk_size=chunk)
        try:
            for index, (ok, value) in zip(left, stream, strict=True):
                table.add(index, value if ok else {}, "" if ok else str(value).removeprefix("MoldiffError: "))
                done += 1
                if progress is not None:
                    progress(done, total)
        finally:
            table.close()
    return _finish(folder, meta, stores, tables, labeller, place / f"{slug}.failed.csv", kept)


def _finish(
    folder: Path,
    meta: dict[str, Any],
    stores: Sequence[Store],
    tables: Mapping[str, _Table],
    labeller: Labeller,
    path: Path,
    kept: int,
) -> LabelReport:
    """Write the columns into the splits, and the failures beside them."""
    failed: Counter[str] = Counter()
    splits = {}
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("split", "index", "id", "reason"))
        for store in stores:
            rows = tables[store.split].rows
            columns: dict[str, NDArray[Any]] = {name: store.tensor(name).numpy() for name in store.names}
            for k, column in enumerate(labeller.columns):
                columns[PROPERTY + column] = np.array([rows[i][0][k] for i in range(len(store))], dtype=np.float32)
            ids = store.tensor("id").tolist() if "id" in store.names else [""] * len(store)
            for i in range(len(store)):
                reason = rows[i][1]
                if reason:
                    failed[reason] += 1
                    writer.writerow((store.split, i, ids[i], reason))
            splits[store.split] = columns
    total = sum(len(store) for store in stores)
    if sum(failed.values()) == total:
        often = "; ".join(f"{reason} ({n:,})" for reason, n in failed.most_common(3))
        raise BadRequest(f"{labeller.name} gives nothing for any system of {folder}: {often}")
    if not failed:
        path.unlink()
    properties = {**meta.get("properties", {}), **labeller.columns}
    origins = {**meta.get("labels", {}), **dict.fromkeys(labeller.columns, labeller.origin)}
    write_store(folder, splits, {**meta, "properties": properties, "labels": origins})
    n_failed = sum(failed.values())
    kept = min(kept, total - n_failed)
    return LabelReport(folder, tuple(labeller.columns), total - n_failed - kept, kept, failed, path if failed else None)


class _Table:
    """The results of one split, a row a system, appended as they come; begun anew where it belongs to other structures."""

    def __init__(self, path: Path, columns: tuple[str, ...], digest: str, n: int) -> None:
        self.path, self.columns, self.digest, self.n = path, columns, digest, n
        self.rows: dict[int, tuple[tuple[float, ...], str]] = {}

    @property
    def header(self) -> list[str]:
        return ["index", *self.columns, "reason", self.digest]

    def open(self, retry: bool) -> None:
        if self.path.is_file():
            with open(self.path, newline="", encoding="utf-8") as file:
                lines = list(csv.reader(file))
            if lines and lines[0] == self.header:
                for line in lines[1:]:
                    self._read(line, retry)
        # Written anew, without a half line that a kill may have left and without what is to be tried again.
        self._file = open(self.path, "w", newline="", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(self.header)
        for index, (values, reason) in self.rows.items():
            self._writer.writerow((index, *values, reason, ""))
        self._file.flush()

    def _read(self, line: list[str], retry: bool) -> None:
        try:
            index, values, reason = int(line[0]), tuple(float(v) for v in line[1:-2]), line[-2]
        except (ValueError, IndexError):
            return
        if len(values) == len(self.columns) and 0 <= index < self.n and not (retry and reason):
            self.rows[index] = values, reason

    def add(self, index: int, found: Mapping[str, float], reason: str) -> None:
        values = tuple(float(found.get(column, math.nan)) for column in self.columns)
        if not reason and not any(math.isfinite(v) for v in values):
            reason = "no finite value"
        values = tuple(v if math.isfinite(v) else math.nan for v in values)
        self.rows[index] = values, reason
        self._writer.writerow((index, *values, reason, ""))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _systems(store: Store, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
    for index in indices:
        yield {name: value.numpy() for name, value in store.system(index).items()}


def _digest(store: Store) -> str:
    """What the results of a split hang on: its structures, whatever columns it has."""
    parts = hashlib.sha256()
    for name in ("n_atoms", "atom_types", "positions", "frac_coords", "lattice", "charges", "bond_index", "bond_types"):
        if name in store.names:
            parts.update(store.tensor(name).contiguous().numpy().tobytes())
    return parts.hexdigest()[:16]
