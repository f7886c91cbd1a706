"""What a run of ``moldiff generate`` writes for molecules; ``crystal_output`` does the same for crystals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moldiff.errors import DamagedFile

if TYPE_CHECKING:
    from moldiff.evaluation.molecules.basic import Verdict
    from moldiff.evaluation.reference import Reference
    from moldiff.samples import Sample

CSV = "samples.csv"
#: Called with a stage's name, how much of it is done and how much there is.
Stage = Callable[[str, int, int], None]


class Output(ABC):
    """Judges samples as they come and turns them into text; ``files`` are those that grow with them.

    Whatever it writes depends on the samples alone, not on how they were cut into parts.
    """

    files: tuple[str, ...]

    @abstractmethod
    def restore(self, out: Path, count: int) -> None:
        """Take up the first ``count`` samples, which lie in the folder; raises ``DamagedFile`` where they don't."""

    @abstractmethod
    def texts(self, out: Path, part: Sequence[Sample]) -> dict[str, str]:
        """What to append to each file for further samples."""

    def finish(self, out: Path, stage: Stage | None = None) -> None:
        """Do what needs all samples; may be called again after a kill."""
        return

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """The rates of all samples by name."""

    @abstractmethod
    def failures(self) -> Mapping[str, int]:
        """How many samples are not valid, by reason."""


class MoleculeOutput(Output):
    """samples.sdf and samples.csv."""

    files = ("samples.sdf", CSV)

    def __init__(self, reference: Reference | None) -> None:
        self.reference = reference
        self.verdicts: list[Verdict] = []
        self.seen: set[str] = set()
        self.columns: tuple[str, ...] = ()

    def restore(self, out: Path, count: int) -> None:
        from moldiff.sample_files import read_header, read_verdicts

        if count:
            text = (out / CSV).read_text(encoding="utf-8")
            self.verdicts, self.columns = read_verdicts(text), read_header(text)
        if len(self.verdicts) != count:
            raise DamagedFile(f"{out / CSV} holds {len(self.verdicts)} samples, its journal {count}; start in another folder")
        self.seen = {v.smiles for v in self.verdicts if v.valid}

    def texts(self, out: Path, part: Sequence[Sample]) -> dict[str, str]:
        from moldiff.evaluation.molecules.basic import evaluate_basic
        from moldiff.sample_files import COLUMNS, csv_row, sdf_record

        # In this process: judging takes a fiftieth of the time of drawing, starting processes takes longer.
        found = evaluate_basic([s.entry() for s in part], self.reference, n_processes=1).verdicts
        found = mark_seen(found, self.seen)
        rows = [csv_row(s, v) for s, v in zip(part, found, strict=True)]
        table, self.columns = rows_as_text(rows, self.columns, COLUMNS)
        self.verdicts += found
        return {
            self.files[0]: "".join(sdf_record(s, v) for s, v in zip(part, found, strict=True)),
            CSV: table,
        }

    def metrics(self) -> dict[str, float]:
        from moldiff.evaluation.molecules.basic import rates

        return rates(self.verdicts)

    def failures(self) -> Mapping[str, int]:
        from moldiff.evaluation.molecules.basic import failures

        return failures(self.verdicts)


def mark_seen(verdicts: list[Verdict], seen: set[str]) -> list[Verdict]:
    """Correct ``unique`` for molecules of earlier batches, and add the new ones to ``seen``."""
    from dataclasses import replace

    marked = []
    for verdict in verdicts:
        unique = verdict.valid and verdict.smiles not in seen
        if verdict.valid:
            seen.add(verdict.smiles)
        marked.append(replace(verdict, unique=unique))
    return marked


def rows_as_text(
    rows: Sequence[Mapping[str, Any]], columns: tuple[str, ...], first: Sequence[str]
) -> tuple[str, tuple[str, ...]]:
    """Rows as lines of CSV, with the header where ``columns`` is empty yet; and the columns."""
    from moldiff.sample_files import columns_of, csv_header, csv_lines

    if columns:
        return csv_lines(rows, columns), columns
    columns = columns_of(rows, first)
    return csv_header(columns) + csv_lines(rows, columns), columns
