"""What a run of ``moldiff generate`` writes for crystals: frames, a table, CIFs, clusters in their order, relaxed structures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moldiff.crystal_files import (
    CIF,
    COLUMNS,
    RAW_CIF,
    cif_texts,
    crystals_as_written,
    csv_row,
    frames_text,
    ranked_text,
    read_csv_rows,
    verdict_of,
)
from moldiff.errors import DamagedFile
from moldiff.journal import JournaledFiles, failed_write
from moldiff.output import CSV, Output, Stage, rows_as_text

if TYPE_CHECKING:
    from moldiff.chem.crystals import Crystal
    from moldiff.evaluation.crystals.basic import CrystalVerdict
    from moldiff.evaluation.crystals.relax import RelaxResult, RelaxTask
    from moldiff.evaluation.reference import Reference
    from moldiff.samples import Sample

XYZ, RANKED, RELAXED = "samples.extxyz", "ranked.csv", "relaxed"
#: The rates that mean something where compositions were asked for.
ASKED = ("structure_validity", "crystal_uniqueness")
#: Columns of relaxed/samples.csv; energies are eV/atom.
RELAXED_COLUMNS = (
    "id", "request", "formula", "cluster", "energy", "relaxed_energy", "converged", "steps", "rmsd", "volume_change",
    "space_group", "symbol", "density", "reason",
)  # fmt: skip


class CrystalOutput(Output):
    """samples.extxyz, samples.csv, CIFs a sample, ranked.csv, and ``relaxed/`` where a ``calculator`` is named.

    Verdicts are on the crystals as the extxyz file holds them. ``clusters`` False leaves out the comparison of samples.
    """

    files = (XYZ, CSV)

    def __init__(
        self, reference: Reference | None, calculator: str = "", time_limit: float = 120.0, clusters: bool = True
    ) -> None:
        from moldiff.crystal_verdicts import Judge

        self.judge = Judge(reference, clusters)
        self.calculator, self.time_limit = calculator, time_limit
        self.verdicts: list[CrystalVerdict] = []
        self.requests: list[str] = []
        self.columns: tuple[str, ...] = ()
        self.ranked: list[dict[str, Any]] = []

    def restore(self, out: Path, count: int) -> None:
        from moldiff.sample_files import read_header

        if not count:
            return
        text = (out / CSV).read_text(encoding="utf-8")
        rows, frames = read_csv_rows(text), self._frames(out)
        if not len(rows) == len(frames) == count:
            raise DamagedFile(f"{out} holds {len(rows)} rows and {len(frames)} frames, its journal {count}: use another folder")
        self.columns = read_header(text)
        self.verdicts = [verdict_of(row) for row in rows]
        self.requests = [row["request"] for row in rows]
        self.judge.restore(frames, self.verdicts)

    def texts(self, out: Path, part: Sequence[Sample]) -> dict[str, str]:
        xyz = frames_text(part)
        written = crystals_as_written(xyz)
        crystals = [None if sample.problem else crystal for sample, (crystal, _) in zip(part, written, strict=True)]
        problems = [sample.problem or problem for sample, (_, problem) in zip(part, written, strict=True)]
        found = self.judge(crystals, [s.id for s in part], problems, len(self.verdicts))
        write_cifs(out, [s.id for s in part], crystals, [v.structure_valid for v in found])
        rows = [csv_row(s, v) for s, v in zip(part, found, strict=True)]
        table, self.columns = rows_as_text(rows, self.columns, COLUMNS)
        self.verdicts += found
        self.requests += ["" if row["request"] is None else str(row["request"]) for row in rows]
        return {XYZ: xyz, CSV: table}

    def finish(self, out: Path, stage: Stage | None = None) -> None:
        from moldiff.data.store import write_atomically

        energies = self._relax(out, stage) if self.calculator else {}
        self.ranked = rank(self.verdicts, self.requests, energies if self.calculator else None)
        try:
            write_atomically(out / RANKED, ranked_text(self.ranked).encode())
        except OSError as error:
            raise failed_write(out, error) from None

    def metrics(self) -> dict[str, float]:
        from moldiff.crystal_verdicts import crystal_rates

        rates = crystal_rates(self.verdicts)
        # Where the composition was asked for, a known structure is no fault.
        return {k: v for k, v in rates.items() if k in ASKED} if any(self.requests) else rates

    def failures(self) -> Mapping[str, int]:
        from moldiff.evaluation.crystals.basic import failures

        return failures(self.verdicts)

    def _frames(self, out: Path) -> list[Crystal | None]:
        return [crystal for crystal, _ in crystals_as_written((out / XYZ).read_text(encoding="utf-8"))]

    def _relax(self, out: Path, stage: Stage | None) -> dict[str, Mapping[str, str]]:
        """Relax the first sample of each cluster (or each valid sample, without clusters) and keep what is done.

        Returns the rows of relaxed/samples.csv by id.
        """
        from moldiff.evaluation.crystals.relax import RelaxTask, compute
        from moldiff.evaluation.parallel import map_items

        chosen = [i for i, v in enumerate(self.verdicts) if v.structure_valid and v.unique is not False]
        folder = out / RELAXED
        frames = self._frames(out)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise failed_write(folder, error) from None
        with JournaledFiles(folder, (XYZ, CSV)) as files:
            start = files.count
            left = chosen[start:]
            tasks = [RelaxTask(c, self.calculator) for i in left if (c := frames[i]) is not None]

            def keep(k: int, result: RelaxResult) -> None:
                i = left[k]
                texts = relaxed_texts(folder, self.verdicts[i], self.requests[i], result)
                if files.count == 0:
                    texts[CSV] = ",".join(RELAXED_COLUMNS) + "\n" + texts[CSV]
                files.append(texts, 1)

            def tell(done: int, of: int) -> None:
                if stage is not None:
                    stage(f"relaxing by {self.calculator}", start + done, start + of)

            map_items(compute, tasks, _not_relaxed, time_limit=self.time_limit, progress=tell, done=keep)
        return read_relaxed(out)


def write_cifs(folder: Path, names: Sequence[str], crystals: Sequence[Crystal | None], sound: Sequence[bool]) -> None:
    """Write ``cif/NAME.cif`` and ``cif_raw/NAME.cif``; the same crystal always gives the same files."""
    try:
        for sub in (CIF, RAW_CIF):
            (folder / sub).mkdir(exist_ok=True)
        for name, crystal, good in zip(names, crystals, sound, strict=True):
            if crystal is not None and len(crystal):
                nice, raw = cif_texts(crystal, name, good)
                (folder / CIF / f"{name}.cif").write_text(nice, encoding="utf-8")
                (folder / RAW_CIF / f"{name}.cif").write_text(raw, encoding="utf-8")
    except OSError as error:
        raise failed_write(folder, error) from None


def relaxed_texts(folder: Path, verdict: CrystalVerdict, request: str, result: RelaxResult) -> dict[str, str]:
    """What one relaxation adds to the files of ``relaxed/``; a failed one has a row with its reason and no frame."""
    import io

    from ase.io.extxyz import write_extxyz

    from moldiff.chem.crystals import to_ase
    from moldiff.chem.symmetry import space_group
    from moldiff.sample_files import csv_lines

    crystal = result.crystal
    row: dict[str, Any] = {
        "id": verdict.name,
        "request": request,
        "formula": verdict.formula,
        "cluster": verdict.cluster,
        "energy": _short(result.energy),
        "relaxed_energy": _short(result.relaxed_energy),
        "converged": result.converged,
        "steps": result.n_steps,
        "rmsd": _short(result.rmsd),
        "volume_change": _short(result.volume_change),
        "reason": result.reason,
    }
    text = io.StringIO()
    if crystal is not None:
        group = space_group(crystal)
        row |= {"space_group": group.number, "symbol": group.symbol, "density": _short(crystal.density)}
        atoms = to_ase(crystal)
        atoms.info |= {"id": verdict.name, "energy": row["relaxed_energy"]}
        if request:
            atoms.info["request"] = int(request)
        write_extxyz(text, [atoms], columns=None, write_results=False)
        write_cifs(folder, [verdict.name], [crystal], [True])
    return {XYZ: text.getvalue(), CSV: csv_lines([row], RELAXED_COLUMNS)}


def read_relaxed(out: Path) -> dict[str, Mapping[str, str]]:
    """The rows of relaxed/samples.csv by id; empty where there are none."""
    import csv

    path = out / RELAXED / CSV
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def rank(
    verdicts: Sequence[CrystalVerdict], requests: Sequence[str], energies: Mapping[str, Mapping[str, str]] | None = None
) -> list[dict[str, Any]]:
    """The clusters of each request in their order: by relaxed energy where ``energies`` are given, else by how often they came.

    One row a cluster: its first sample stands for it; ``share`` is that of all samples of the request. Without clusters every
    valid sample has a row of its own.
    """
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    totals: defaultdict[str, int] = defaultdict(int)
    for i, (verdict, request) in enumerate(zip(verdicts, requests, strict=True)):
        totals[request] += 1
        if verdict.structure_valid:
            label = verdict.name if verdict.cluster is None else str(verdict.cluster)
            groups[request, label].append(i)
    rows: list[dict[str, Any]] = []
    for (request, _), members in groups.items():
        v = verdicts[members[0]]
        found = next((e for i in members if (e := (energies or {}).get(verdicts[i].name))), {})
        rows.append(
            {
                "request": request,
                "rank": 0,
                "formula": v.formula,
                "cluster": v.cluster,
                "count": len(members),
                "share": round(len(members) / totals[request], 4),
                "id": v.name,
                "n_atoms": v.n_atoms,
                "space_group": v.space_group,
                "symbol": v.symbol,
                "density": v.density,
                "volume_per_atom": v.volume_per_atom,
                "min_distance": v.min_distance,
                **({} if energies is None else {"relaxed_energy": found.get("relaxed_energy", ""), "above_best": ""}),
                **({} if energies is None else {"relaxed_symbol": found.get("symbol", ""), "problem": found.get("reason", "")}),
            }
        )

    def order(row: dict[str, Any]) -> tuple[int, float, int, int]:
        energy = float(row.get("relaxed_energy") or math.inf)
        return int(row["request"] or 0), energy, -row["count"], int(str(row["id"]).rpartition("_")[2])

    rows.sort(key=order)
    best: dict[tuple[str, str], float] = {}
    places: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        places[row["request"]] += 1
        row["rank"] = places[row["request"]]
        if row.get("relaxed_energy"):
            energy = float(row["relaxed_energy"])
            # Energies an atom say something about which is likelier among crystals of one composition only.
            lowest = best.setdefault((row["request"], row["formula"]), energy)
            row["above_best"] = round(energy - lowest, 6)
    return rows


def _not_relaxed(task: RelaxTask, reason: str) -> RelaxResult:
    from moldiff.evaluation.crystals.relax import RelaxResult

    return RelaxResult(reason=reason)


def _short(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


