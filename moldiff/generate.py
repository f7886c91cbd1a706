"""The run behind ``moldiff generate``: samples to files as they come, and a resume that changes nothing."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from moldiff import __version__
from moldiff.errors import BadRequest, DamagedFile
from moldiff.journal import JOURNAL, JournaledFiles, failed_write
from moldiff.request import Request

if TYPE_CHECKING:
    from moldiff.evaluation.molecules.basic import Verdict
    from moldiff.evaluation.reference import Reference
    from moldiff.generator import Generator

SDF, CSV, METRICS, RUN, TIMING = "samples.sdf", "samples.csv", "metrics.json", "run.yaml", "timing.json"
_PART = re.compile(r"\.(run\.yaml|metrics\.json|timing\.json)\..+")
#: Packages whose versions can change what a sample is.
PACKAGES = ("torch", "numpy", "rdkit", "e3nn")


@dataclass(frozen=True)
class RunResult:
    """What a finished run holds: its folder, the number of samples, the rates, the real-data row, and seconds spent."""

    folder: Path
    n: int
    metrics: dict[str, float]
    data_row: Mapping[str, Any]
    failures: Mapping[str, int]
    seconds: float
    drawn: int

    @property
    def real(self) -> dict[str, float]:
        """The metrics of held-out real molecules; empty where the model's reference has none."""
        rates = {}
        for name, value in self.data_row.get("metrics", {}).items():
            number = value.get("value") if isinstance(value, Mapping) else value
            if isinstance(number, (int, float)):
                rates[name] = float(number)
        return rates


def open_run(out: str | Path, request: Request, device: str, resume: bool, model: str = "") -> Path:
    """Make the output folder ready before anything heavy: returns it, with run.yaml in it.

    ``device`` is the kind of device, ``model`` what the user called the model (a name or a folder). Raises ``BadRequest`` for a
    folder that is not empty without ``resume``, a resume with other settings, and a place that can't be written.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise BadRequest(f"{out} is a file; --out takes a folder")
    left = [p.name for p in out.iterdir()] if out.exists() else []
    for name in [name for name in left if _PART.match(name)]:  # what a kill in the middle of an atomic write left behind
        left.remove(name)
        if resume:
            (out / name).unlink(missing_ok=True)
    asked = {**request.settings(), "device": device}
    if left and not resume:
        raise BadRequest(f"{out} is not empty; choose another folder or go on with --resume")
    if left and RUN not in left:
        raise BadRequest(f"nothing to resume in {out}: it has no {RUN}")
    if left:
        before = read_run(out)["settings"]
        other = [key for key in asked if before.get(key) != asked[key]]
        if other:
            was, now = before.get(other[0]), asked[other[0]]
            raise BadRequest(f"{out} was made with {other[0]} = {was!r}, now {now!r}: resume with the same settings")
        if not os.access(out, os.W_OK):
            raise BadRequest(f"can't write to {out}: permission denied")
        return out
    from moldiff.data.store import write_atomically

    try:
        out.mkdir(parents=True, exist_ok=True)
        values = {"settings": asked, "given_model": model or request.model, "versions": versions()}
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_atomically(out / RUN, text.encode())
    except OSError as error:
        raise BadRequest(f"can't write to {out}: {error.strerror or error}") from None
    return out


def read_run(out: str | Path) -> dict[str, Any]:
    """The settings and versions of a run; raises ``DamagedFile`` where run.yaml is not readable."""
    path = Path(out) / RUN
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {**values, "settings": dict(values["settings"])}
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise DamagedFile(f"{path} is not readable: {str(error).splitlines()[0]}") from None


def finished(out: Path) -> bool:
    """Whether a run has written everything: metrics.json comes last."""
    return (out / METRICS).is_file()


def run(
    generator: Generator,
    request: Request,
    out: Path,
    batch_size: int | str = "auto",
    progress: Callable[[float, int], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> RunResult:
    """Draw what is missing in a folder that ``open_run`` made ready, write it, and finish with the metrics.

    ``progress(samples done, n)`` also counts samples of earlier tries. Raises ``MoldiffError`` when the disk is full; all batches
    that were written stay.
    """
    from moldiff.evaluation.molecules.basic import failures, rates
    from moldiff.sample_files import read_verdicts

    began = time.monotonic()
    reference = generator.info.reference()
    with JournaledFiles(out, (SDF, CSV)) as files:
        already = files.count
        verdicts: list[Verdict] = []
        if already:
            verdicts = read_verdicts((out / CSV).read_text(encoding="utf-8"))
        if len(verdicts) != already:
            raise DamagedFile(f"{out / CSV} holds {len(verdicts)} samples, its journal {already}; start in another folder")
        seen = {v.smiles for v in verdicts if v.valid}
        _draw(generator, request, files, verdicts, seen, reference, batch_size, progress, notice)
        seconds = time.monotonic() - began
        result = RunResult(
            out, request.n, rates(verdicts), {} if reference is None else reference.data_row, failures(verdicts), seconds,
            request.n - already,
        )  # fmt: skip
        _finish(result)
    return result


def _draw(
    generator: Generator,
    request: Request,
    files: JournaledFiles,
    verdicts: list[Verdict],
    seen: set[str],
    reference: Reference | None,
    batch_size: int | str,
    progress: Callable[[float, int], None] | None,
    notice: Callable[[str], None] | None,
) -> None:
    from moldiff.evaluation.molecules.basic import evaluate_basic
    from moldiff.sample_files import csv_header, csv_lines, sdf_record

    start = files.count
    tell = None if progress is None else lambda done, _: progress(start + done, request.n)
    for part in generator.stream(request, batch_size, start, tell, request.n, notice):
        # In this process: judging takes a fiftieth of the time of drawing, starting processes takes longer.
        found = evaluate_basic([s.entry() for s in part], reference, n_processes=1).verdicts
        found = mark_seen(found, seen)
        header = csv_header() if files.count == 0 else ""
        texts = {
            SDF: "".join(sdf_record(s, v) for s, v in zip(part, found, strict=True)),
            CSV: header + csv_lines(part, found),
        }
        files.append(texts, len(part))
        verdicts += found


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


def _finish(result: RunResult) -> None:
    """Write metrics.json and timing.json, then drop the journal: the run is whole."""
    from moldiff.data.store import write_atomically

    metrics = {
        "n": result.n,
        "metrics": {k: v if math.isfinite(v) else None for k, v in result.metrics.items()},
        "failures": dict(result.failures),
        "real_data": {
            "title": result.data_row.get("title"),
            "n": result.data_row.get("n"),
            "metrics": {k: v for k, v in result.real.items() if k in result.metrics},
        },
    }
    timing = {
        "seconds": round(result.seconds, 3),
        "samples_drawn": result.drawn,
        "samples_per_second": round(result.drawn / max(result.seconds, 1e-9), 4),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
    }
    try:
        write_atomically(result.folder / TIMING, (json.dumps(timing, indent=1) + "\n").encode())
        write_atomically(result.folder / METRICS, (json.dumps(metrics, indent=1) + "\n").encode())
        (result.folder / JOURNAL).unlink(missing_ok=True)
    except OSError as error:
        raise failed_write(result.folder, error) from None


def read_result(out: Path) -> RunResult:
    """The result of a finished run from its files; raises ``DamagedFile`` where they are not readable."""
    try:
        metrics = json.loads((out / METRICS).read_text(encoding="utf-8"))
        timing = json.loads((out / TIMING).read_text(encoding="utf-8"))
        (out / JOURNAL).unlink(missing_ok=True)
        rates = {k: float("nan") if v is None else float(v) for k, v in metrics["metrics"].items()}
        return RunResult(
            out, int(metrics["n"]), rates, metrics["real_data"], metrics["failures"], float(timing["seconds"]), 0
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{out} holds no readable {METRICS} and {TIMING}: {error}") from None


def versions() -> dict[str, str]:
    """Versions of this package and of those that can change a sample."""
    found = {"moldiff": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def report_run(out: str | Path) -> Path:
    """Evaluate the samples of a finished run in full and write ``report.html`` beside them.

    Raises ``BadRequest`` for a folder without a finished run and for a model that is no longer there.
    """
    from moldiff.evaluation.api import evaluate
    from moldiff.model_store import model_info

    out = Path(out)
    if not out.is_dir() or not (out / RUN).is_file():
        raise BadRequest(f"{out} is no output folder of moldiff generate: it has no {RUN}")
    if not finished(out):
        raise BadRequest(f"the run in {out} is not finished; go on with moldiff generate --resume")
    run_values = read_run(out)
    info = model_info(run_values.get("given_model", "qm9"))
    result = evaluate({info.name: out / SDF}, info.reference())
    return Path(result.report(out / "report.html"))
