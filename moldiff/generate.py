"""The run behind ``moldiff generate``: samples to files as they come, and a resume that changes nothing."""

from __future__ import annotations

import csv
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
    from moldiff.evaluation.reference import Reference
    from moldiff.generator import Generator
    from moldiff.output import Output, Stage

METRICS, RUN, TIMING = "metrics.json", "run.yaml", "timing.json"
#: The file from which each kind of samples is evaluated again.
SAMPLES = {"molecule": "samples.sdf", "crystal": "samples.extxyz"}
_PART = re.compile(r"\.(run\.yaml|metrics\.json|timing\.json|ranked\.csv)\..+")
#: Packages whose versions can change what a sample is.
PACKAGES = ("torch", "numpy", "rdkit", "e3nn", "pymatgen", "spglib")


@dataclass(frozen=True)
class Extras:
    """What is done with crystals beside drawing them.

    ``relax`` names a calculator that relaxes the first sample of each cluster, each within ``time_limit`` seconds; ``clusters``
    compares the samples with each other.
    """

    relax: str = ""
    time_limit: float = 120.0
    clusters: bool = True

    def check(self, kind: str) -> None:
        """Raise, before anything is drawn, for a calculator that is none (``BadRequest``) or is not installed."""
        if kind != "crystal":
            if self.relax or not self.clusters:
                raise BadRequest("--relax and --no-clusters are for crystals; molecules are relaxed by moldiff evaluate --relax")
            return
        if self.time_limit <= 0:
            raise BadRequest(f"the time limit must be above 0 seconds, found {self.time_limit:g}")
        if self.relax:
            from moldiff.evaluation.crystals.relax import find_calculator

            find_calculator(self.relax)

    def settings(self) -> dict[str, Any]:
        """Plain values for run.yaml; none where nothing is asked for."""
        found: dict[str, Any] = {"relax": self.relax, "time_limit": self.time_limit} if self.relax else {}
        return found if self.clusters else {**found, "clusters": False}


@dataclass(frozen=True)
class RunResult:
    """What a finished run holds: its folder, the number of samples, the rates, the real-data row, and seconds spent.

    ``drawing`` are the seconds of drawing and judging alone; ``ranked`` the clusters of crystals in their order;
    ``calls_each`` the network calls that each sample cost (0 where that is not known).
    """

    folder: Path
    n: int
    metrics: dict[str, float]
    data_row: Mapping[str, Any]
    failures: Mapping[str, int]
    seconds: float
    drawn: int
    drawing: float = 0.0
    ranked: tuple[Mapping[str, Any], ...] = ()
    calls_each: int = 0

    @property
    def real(self) -> dict[str, float]:
        """The metrics of held-out real systems; empty where the model's reference has none."""
        rates = {}
        for name, value in self.data_row.get("metrics", {}).items():
            number = value.get("value") if isinstance(value, Mapping) else value
            if isinstance(number, (int, float)):
                rates[name] = float(number)
        return rates


def open_run(
    out: str | Path, request: Request, device: str, resume: bool, model: str = "", extras: Extras | None = None
) -> Path:
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
    asked = {**request.settings(), "device": device, **(extras.settings() if extras is not None else {})}
    if left and not resume:
        raise BadRequest(f"{out} is not empty; choose another folder or go on with --resume")
    if left and RUN not in left:
        raise BadRequest(f"nothing to resume in {out}: it has no {RUN}")
    if left:
        before = read_run(out)["settings"]
        other = [key for key in {**asked, **before} if before.get(key) != asked.get(key)]
        if other:
            was, now = before.get(other[0]), asked.get(other[0])
            raise BadRequest(f"{out} was made with {other[0]} = {was!r}, now {now!r}: resume with the same settings")
        if not os.access(out, os.W_OK):
            raise BadRequest(f"can't write to {out}: permission denied")
        return out
    from moldiff.data.store import write_atomically

    try:
        out.mkdir(parents=True, exist_ok=True)
        values = {"settings": asked, "calls_each": request.calls_each, "given_model": model or request.model}
        values["versions"] = versions()
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
    stage: Stage | None = None,
    extras: Extras | None = None,
) -> RunResult:
    """Draw what is missing in a folder that ``open_run`` made ready, write it, and finish with the metrics.

    ``progress(samples done, n)`` also counts samples of earlier tries; ``stage`` is told of what comes after drawing. Raises
    ``MoldiffError`` when the disk is full; all batches that were written stay.
    """
    began = time.monotonic()
    reference = generator.info.reference()
    output = make_output(generator.info.config.kind, reference, extras)
    with JournaledFiles(out, output.files) as files:
        already = files.count
        output.restore(out, already)
        tell = None if progress is None else lambda done, _: progress(already + done, request.n)
        for part in generator.stream(request, batch_size, already, tell, request.n, notice):
            files.append(output.texts(out, part), len(part))
        drawn = time.monotonic() - began
        output.finish(out, stage)
        seconds = time.monotonic() - began
        result = RunResult(
            out, request.n, output.metrics(), {} if reference is None else reference.data_row, output.failures(), seconds,
            request.n - already, drawn, tuple(getattr(output, "ranked", ())), request.calls_each,
        )  # fmt: skip
        _finish(result)
    return result


def make_output(kind: str, reference: Reference | None, extras: Extras | None = None) -> Output:
    """What judges and writes the samples of a model of this kind."""
    if kind == "crystal":
        from moldiff.crystal_output import CrystalOutput

        extras = Extras() if extras is None else extras
        return CrystalOutput(reference, extras.relax, extras.time_limit, extras.clusters)
    from moldiff.output import MoleculeOutput

    return MoleculeOutput(reference)


def _finish(result: RunResult) -> None:
    """Write metrics.json and timing.json, then drop the journal: the run is whole."""
    from moldiff.data.store import write_atomically

    metrics = {
        "n": result.n,
        "calls_each": result.calls_each,
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
        "seconds_of_drawing": round(result.drawing, 3),
        "samples_per_second": round(result.drawn / max(result.drawing, 1e-9), 4),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
    }
    try:
        write_atomically(result.folder / TIMING, (json.dumps(timing, indent=1) + "\n").encode())
        write_atomically(result.folder / METRICS, (json.dumps(metrics, indent=1) + "\n").encode())
        _drop_journals(result.folder)
    except OSError as error:
        raise failed_write(result.folder, error) from None


def _drop_journals(out: Path) -> None:
    for folder in (out, out / "relaxed"):
        (folder / JOURNAL).unlink(missing_ok=True)


def read_result(out: Path) -> RunResult:
    """The result of a finished run from its files; raises ``DamagedFile`` where they are not readable."""
    try:
        metrics = json.loads((out / METRICS).read_text(encoding="utf-8"))
        timing = json.loads((out / TIMING).read_text(encoding="utf-8"))
        _drop_journals(out)
        rates = {k: float("nan") if v is None else float(v) for k, v in metrics["metrics"].items()}
        return RunResult(
            out, int(metrics["n"]), rates, metrics["real_data"], metrics["failures"], float(timing["seconds"]), 0,
            ranked=read_ranked(out), calls_each=int(metrics.get("calls_each", 0)),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{out} holds no readable {METRICS} and {TIMING}: {error}") from None


def read_ranked(out: Path) -> tuple[dict[str, str], ...]:
    """The rows of ranked.csv; none where there is no such file."""
    path = out / "ranked.csv"
    if not path.is_file():
        return ()
    with open(path, encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


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
    result = evaluate({info.name: out / SAMPLES[info.config.kind]}, info.reference())
    return Path(result.report(out / "report.html"))
