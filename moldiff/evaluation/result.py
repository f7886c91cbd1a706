"""The outcome of an evaluation: its table, its numbers, its rows, and the files that it is written to."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moldiff
from moldiff.data.members import Kind
from moldiff.errors import BadRequest
from moldiff.evaluation.bootstrap import Estimate
from moldiff.evaluation.crystals.sets import CrystalSetResult, CrystalSettings
from moldiff.evaluation.definitions import definition
from moldiff.evaluation.molecules.data_row import DataRow
from moldiff.evaluation.molecules.sets import SetResult, Settings
from moldiff.evaluation.reference import Reference
from moldiff.evaluation.table import Column, frame, full_width, rich_table

if TYPE_CHECKING:
    import pandas
    from rich.table import Table

#: Packages whose versions change the numbers.
PACKAGES = ("rdkit", "numpy", "ase", "tblite", "posebusters", "pymatgen", "spglib", "smact", "chgnet")


@dataclass(frozen=True)
class Evaluation:
    """What was found of one or several sets of samples, with the real data beside them.

    ``sets`` in the order given, all molecules or all crystals, the substitution baseline last where there is one; ``reference``
    and ``data`` (the metrics of real held-out data) are None where there are none. ``remarks`` are notes on all of it.
    """

    sets: Sequence[SetResult] | Sequence[CrystalSetResult]
    reference: Reference | None
    data: DataRow | None
    settings: Settings | CrystalSettings
    cache_problem: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """What the samples are."""
        return "crystal" if isinstance(self.settings, CrystalSettings) else "molecule"

    @property
    def metrics(self) -> dict[str, dict[str, Estimate]]:
        """Every metric with its interval, by the set's name and the metric's name (defined in docs/evaluation.md)."""
        return {s.name: dict(s.metrics) for s in self.sets}

    @property
    def table(self) -> pandas.DataFrame:
        """A row a metric, a column a set, and the last column ``data``; rates are fractions."""
        return frame(self._columns(), self._data_column())

    @cached_property
    def per_sample(self) -> pandas.DataFrame:
        """One row a sample of any set: every verdict, the reason of its failure, and what else was computed of it."""
        import pandas

        rows = [{"set": s.name, **row} for s in self.sets for row in s.rows()]
        return pandas.DataFrame(rows)

    @cached_property
    def per_truth(self) -> pandas.DataFrame:
        """One row a true structure of any set of predictions: how near the first one and the best one come; empty without."""
        import pandas

        return pandas.DataFrame(
            [{"set": s.name, **row} for s in self.sets if isinstance(s, CrystalSetResult) for row in s.per_truth]
        )

    @property
    def notes(self) -> list[str]:
        """Sentences that belong under the table: perceived bonds, subsets, versions."""
        notes = [f"{s.name}: {note}" for s in self.sets for note in s.notes]
        if self.reference is not None:
            notes.append(f"reference: {self.reference.name}, {self.reference.n_systems:,} {self.kind}s")
        notes.extend(self.remarks)
        if self.data is not None:
            notes.append(f"data: {self.data.title}, n = {self.data.n:,}")
            notes.extend(f"data: {note}" for note in self.data.notes)
        return [*notes, self.cache_problem] if self.cache_problem else notes

    def rich_table(self, width: int = 120) -> Table:
        """The table as a terminal of ``width`` characters shows it, values with their 95 % intervals where there is room."""
        return rich_table(self._columns(), self._data_column(), self.notes, width)

    def __str__(self) -> str:
        from rich.console import Console

        width = max(100, full_width(len(self.sets) + 1))
        console = Console(width=width, no_color=True)
        with console.capture() as text:
            console.print(self.rich_table(width))
        return text.get()

    def _repr_html_(self) -> str:
        return str(self.table.to_html(na_rep="–", float_format="{:.4g}".format))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the rows of the samples, as plain values for JSON."""
        names = {name for s in self.sets for name in s.metrics}
        data = None
        if self.data is not None:
            data = {"title": self.data.title, "n": self.data.n, "notes": self.data.notes, "metrics": _plain(self.data.metrics)}
        return {
            "moldiff": moldiff.__version__,
            "versions": {"python": platform.python_version(), **_versions()},
            "kind": self.kind,
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.settings).items() if k != "n_processes"},
            "reference": None if self.reference is None else {"name": self.reference.name, "n": self.reference.n_systems},
            "sets": {
                s.name: {"n": s.n, "metrics": _plain(s.metrics), "failures": dict(s.failures()), "notes": s.notes}
                for s in self.sets
            },
            "data": data,
            "remarks": list(self.remarks),
            "definitions": {name: asdict(definition(name)) for name in sorted(names)},
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Return ``metrics.json`` as text, and write it when a path is given."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"
        if path is not None:
            _write(Path(path), text)
        return text

    def report(self, path: str | Path) -> Path:
        """Write ``report.html``: one file that needs no network."""
        from moldiff.evaluation.report import report_html

        return _write(Path(path), report_html(self))

    def save(self, folder: str | Path) -> Path:
        """Write ``metrics.json``, ``per_sample.csv`` and ``report.html`` into a folder, for predictions ``per_truth.csv`` too.

        Raises BadRequest where it can't be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadRequest(f"can't write the evaluation to {folder}: {error.strerror or error}") from error
        self.to_json(folder / "metrics.json")
        _write(folder / "per_sample.csv", self.per_sample.to_csv(index=False))
        if len(self.per_truth):
            _write(folder / "per_truth.csv", self.per_truth.to_csv(index=False))
        self.report(folder / "report.html")
        return folder

    def _columns(self) -> list[Column]:
        return [(s.name, s.n, s.metrics) for s in self.sets]

    def _data_column(self) -> Column | None:
        return None if self.data is None else ("data", self.data.n, self.data.metrics)


def _write(path: Path, text: str) -> Path:
    from moldiff.data.store import write_atomically

    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise BadRequest(f"can't write {path}: {error.strerror or error}") from error
    return path


def _plain(metrics: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.to_dict() for name, estimate in metrics.items()}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
