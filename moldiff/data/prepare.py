"""From people's files to a data set: read, perceive, reject with a reason, split, write."""

from __future__ import annotations

import csv
import io
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moldiff.data.crystal_entry import COMPUTED, to_crystal_system
from moldiff.data.entry import Outcome, to_system
from moldiff.data.info import DataInfo, data_info
from moldiff.data.location import check_name, data_root
from moldiff.data.sources import Source, open_source
from moldiff.data.store import PROPERTY, pack, write_atomically, write_store
from moldiff.data.workers import map_stream, n_cores
from moldiff.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable

REJECTED = "rejected.csv"
#: Seconds that one system may take before its worker is killed.
TIME_LIMIT = 30.0
VAL_FRACTION = 0.1


def prepare(
    source: str | Path,
    name: str,
    root: str | Path | None = None,
    n_workers: int | None = None,
    progress: bool = True,
    *,
    seed: int = 0,
    time_limit: float = TIME_LIMIT,
    overwrite: bool = False,
    max_atoms: int | None = None,
) -> DataInfo:
    """Turn a source into the data set ``root/name`` and return its summary.

    ``source`` is anything that ``sources.open_source`` knows. Works in ``n_workers`` processes (None: one a core; 0: in this
    one, without a time limit). Rows that can't be used go to ``rejected.csv`` in the folder: row (from 1, in the source's
    order), name, reason; systems of more than ``max_atoms`` are among them. A source without splits is split 90/10 into
    ``train`` and ``val`` by ``seed``. Raises BadRequest for an unreadable source, one that gives no systems, an existing data
    set without ``overwrite``, a bad name or an unwritable root.
    """
    folder = data_root(root) / check_name(name)
    if n_workers is not None and n_workers < 0:
        raise BadRequest(f"n_workers must be 0 or more, found {n_workers}")
    if max_atoms is not None and max_atoms < 1:
        raise BadRequest(f"max_atoms must be at least 1, found {max_atoms}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise BadRequest(f"{folder} already exists; choose another name or overwrite it")
    opened = open_source(source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"can't write to {folder}: {error.strerror or error}") from error
    try:
        n = n_cores() if n_workers is None else n_workers
        return _prepare(opened, name, folder, n, progress, seed, time_limit, max_atoms)
    except BaseException:
        if not any(folder.iterdir()):
            folder.rmdir()
        raise


def _prepare(
    source: Source, name: str, folder: Path, n: int, progress: bool, seed: int, time_limit: float, max_atoms: int | None
) -> DataInfo:
    convert: Callable[[Any], Outcome] = to_system if source.kind == "molecule" else to_crystal_system
    accepted: dict[str, list[dict[str, Any]]] = {split: [] for split in source.splits}
    rejects: list[tuple[int, str, str]] = []
    origins: Counter[str] = Counter()
    texts: set[str] = set()
    first = n_rows = 0
    for split, rows in source.splits.items():
        total = source.n_rows(split)
        under_way: deque[tuple[int, str]] = deque()
        with _bar(progress, f"{name} {split}" if split != "all" else name, total) as advance:
            # A process takes longer to start than fifty systems take to be read.
            processes = n if total is None else min(n, total // 50 + 1)
            stream = map_stream(convert, _noted(rows(), under_way), n_processes=processes, time_limit=time_limit)
            for result in stream:
                row, label = under_way.popleft()
                n_rows += 1
                outcome: Outcome = result.value if result.ok else Outcome(row, label, None, str(result.value))
                if outcome.system is not None and max_atoms is not None and len(outcome.system["atom_types"]) > max_atoms:
                    outcome = Outcome(outcome.row, outcome.name, None, f"more than {max_atoms} atoms")
                if outcome.system is None:
                    rejects.append((first + outcome.row, outcome.name, outcome.reason))
                else:
                    accepted[split].append(outcome.system)
                    origins[outcome.bonds_from] += 1
                    texts.update(outcome.texts)
                advance()
        first = n_rows
    reasons = Counter(reason for _, _, reason in rejects)
    if not any(accepted.values()):
        why = "; ".join(f"{reason} ({count:,} rows)" for reason, count in reasons.most_common(3))
        raise BadRequest(f"no {source.kind} of {source.path} can be used: {why or 'it holds none'}")
    for split, systems in accepted.items():
        if not systems:
            raise BadRequest(f"no {source.kind} of the split {split!r} of {source.path} can be used")
    # A column with words in it is no property, whatever some of its rows hold.
    for system in (system for systems in accepted.values() for system in systems):
        for text in texts:
            system.pop(PROPERTY + text, None)
    if "all" in accepted:
        accepted = _split(accepted.pop("all"), seed, source)
    columns = {split: pack(systems) for split, systems in accepted.items()}
    notes = [f"columns left out because they hold text: {', '.join(sorted(texts))}"] if texts else []
    meta = {
        "name": name,
        "kind": source.kind,
        "source": source.origin,
        "source_format": source.format,
        "properties": source.units if source.kind == "molecule" else {**COMPUTED, **source.units},
        "rejected": dict(reasons.most_common()),
        "bonds_from": dict(origins.most_common()) if source.kind == "molecule" else {},
        "notes": notes,
        "split_seed": seed if list(source.splits) == ["all"] else None,
    }
    write_rejected(folder / REJECTED, rejects)
    write_store(folder, columns, meta)
    return data_info(folder)


def write_rejected(path: Path, rows: list[tuple[int, str, str]]) -> None:
    """Write the table of rejected rows: row, name, reason; raises BadRequest when the folder is not writable."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("row", "name", "reason"))
    writer.writerows(rows)
    try:
        write_atomically(path, text.getvalue().encode())
    except OSError as error:
        raise BadRequest(f"can't write {path}: {error.strerror or error}") from error


def _noted(rows: Iterator[Any], notes: deque[tuple[int, str]]) -> Iterator[Any]:
    """Pass rows on and note their number and name, for those of which nothing else comes back."""
    for row in rows:
        notes.append((row.row, row.name))
        yield row


def _split(systems: list[dict[str, Any]], seed: int, source: Source) -> dict[str, list[dict[str, Any]]]:
    """Split at random by the seed; both parts keep the source's order."""
    if len(systems) < 2:
        raise BadRequest(f"{source.path} gives one {source.kind}; train and val need at least one each")
    n_val = max(1, round(VAL_FRACTION * len(systems)))
    val = set(np.random.default_rng(seed).permutation(len(systems))[:n_val].tolist())
    parts: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for k, system in enumerate(systems):
        parts["val" if k in val else "train"].append(system)
    return parts


@contextmanager
def _bar(show: bool, label: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Give a function that moves a progress bar on by one."""
    if not show:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=False) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)
