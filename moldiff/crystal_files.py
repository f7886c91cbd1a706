"""Crystals as text: frames of extxyz, rows of samples.csv, CIFs; and back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moldiff.errors import BadRequest, DamagedFile
from moldiff.sample_files import cell_text, extxyz_text

if TYPE_CHECKING:
    from moldiff.chem.crystals import Crystal
    from moldiff.evaluation.crystals.basic import CrystalVerdict
    from moldiff.samples import Sample

#: Columns of samples.csv for crystals: the id, what was asked for, then the verdict.
COLUMNS = (
    "id", "request", "formula", "n_atoms", "n_elements", "space_group", "symbol", "density", "volume_per_atom", "min_distance",
    "valid", "reason", "cluster", "unique", "novel",
)  # fmt: skip
#: Folders of CIFs: the conventional symmetrised cell, and the cell as it was generated.
CIF, RAW_CIF = "cif", "cif_raw"


def csv_row(sample: Sample, verdict: CrystalVerdict) -> dict[str, Any]:
    """One row of samples.csv; None stands for what is not known. ``novel`` is by composition and prototype label."""
    return {
        "id": sample.id,
        "request": sample.info.get("request"),
        "formula": verdict.formula,
        "n_atoms": len(sample),
        "n_elements": verdict.n_elements or None,
        "space_group": verdict.space_group or None,
        "symbol": verdict.symbol,
        "density": verdict.density,
        "volume_per_atom": verdict.volume_per_atom,
        "min_distance": verdict.min_distance,
        "valid": verdict.structure_valid,
        "reason": verdict.reason,
        "cluster": verdict.cluster,
        "unique": verdict.unique,
        "novel": None if verdict.known_label is None else not verdict.known_label,
        **{k: v for k, v in sample.info.items() if k not in COLUMNS},
    }


def read_csv_rows(text: str) -> list[dict[str, str]]:
    """The rows of a samples.csv of crystals; raises ``DamagedFile`` where it is not one."""
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ())[: len(COLUMNS)] != COLUMNS:
        raise DamagedFile("samples.csv does not have the columns of this version")
    return list(reader)


def verdict_of(row: Mapping[str, str]) -> CrystalVerdict:
    """The verdict that a row of samples.csv holds; raises ``DamagedFile`` where it holds none."""
    from moldiff.evaluation.crystals.basic import CrystalVerdict

    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    truth = {"true": True, "false": False, "": None}
    try:
        novel = truth[row["novel"]]
        return CrystalVerdict(
            name=row["id"],
            formula=row["formula"],
            n_atoms=int(row["n_atoms"]),
            n_elements=int(row["n_elements"] or 0),
            structure_valid=bool(truth[row["valid"]]),
            reason=row["reason"],
            space_group=int(row["space_group"] or 0),
            symbol=row["symbol"],
            density=number("density"),
            volume_per_atom=number("volume_per_atom"),
            min_distance=number("min_distance"),
            cluster=int(row["cluster"]) if row["cluster"] else None,
            unique=truth[row["unique"]],
            known_label=None if novel is None else not novel,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise DamagedFile(f"samples.csv, {row.get('id') or 'a row'}, is damaged: {error}") from None


def crystals_as_written(text: str) -> list[tuple[Crystal | None, str]]:
    """The crystals of an extxyz text, each with the problem of one that can't be read: what is judged is what people get."""
    from moldiff.data.crystal_files import read_periodic_xyz

    entries = [row.entry() for row in read_periodic_xyz(io.StringIO(text), "samples.extxyz")]
    return [(None if entry.problem else entry.crystal, entry.problem) for entry in entries]


def cif_texts(crystal: Crystal, name: str, sound: bool) -> tuple[str, str]:
    """The CIFs of a crystal: conventional and symmetrised (where it is ``sound`` and has symmetry), and as generated."""
    from moldiff.chem.cif import raw_cif, symmetrised_cif

    raw = raw_cif(crystal, name)
    return (symmetrised_cif(crystal, name) if sound else raw), raw


def save_cifs(path: Path, samples: Sequence[Sample], verdicts: Sequence[CrystalVerdict]) -> None:
    """Write ``cif/ID.cif`` and ``cif_raw/ID.cif`` of all samples with finite numbers into a folder, or a zip of that name."""
    import zipfile

    from moldiff.data.store import write_atomically

    texts: dict[str, str] = {}
    for sample, verdict in zip(samples, verdicts, strict=True):
        crystal = sample.to_crystal()
        if crystal is None or len(crystal) == 0:
            continue
        nice, raw = cif_texts(crystal, sample.id, verdict.structure_valid)
        texts |= {f"{CIF}/{sample.id}.cif": nice, f"{RAW_CIF}/{sample.id}.cif": raw}
    if path.suffix == ".zip":
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
        write_atomically(path, data.getvalue())
        return
    for name, text in texts.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text, encoding="utf-8")


def cif_of_all(samples: Sequence[Sample], verdicts: Sequence[CrystalVerdict]) -> str:
    """The conventional CIFs of all samples with finite numbers as the blocks of one file."""
    pairs = ((s, v, s.to_crystal()) for s, v in zip(samples, verdicts, strict=True))
    return "\n".join(cif_texts(c, s.id, v.structure_valid)[0] for s, v, c in pairs if c is not None and len(c))


def read_crystals(path: str | Path) -> list[Sample]:
    """Samples from files of crystals; see ``SampleSet.load``."""
    import numpy as np
    from numpy.typing import NDArray

    from moldiff.data.crystal_entry import CrystalRow
    from moldiff.data.sources import open_source
    from moldiff.sample_files import index_in
    from moldiff.samples import Sample

    source = open_source(path)
    rows: Iterable[CrystalRow] = (row for split in source.splits.values() for row in split())  # type: ignore[assignment]
    samples = []
    for k, row in enumerate(rows):
        entry = row.entry()
        info: dict[str, Any] = {name: int(v) if v == int(v) else v for name, v in entry.properties.items() if np.isfinite(v)}
        crystal = entry.crystal
        if crystal is None:
            empty: dict[str, NDArray[Any]] = {
                "atom_types": np.zeros(0, np.int64),
                "frac_coords": np.zeros((0, 3), np.float32),
                "lattice": np.zeros((3, 3), np.float32),
            }
            samples.append(Sample(index_in(entry.name, k), empty, entry.problem or "no atoms", info))
            continue
        data: dict[str, NDArray[Any]] = {
            "atom_types": crystal.numbers,
            "frac_coords": crystal.frac_coords.astype(np.float32),
            "lattice": crystal.lattice.astype(np.float32),
        }
        samples.append(Sample(index_in(entry.name, k), data, "", info))
    if not samples or all(s.problem for s in samples):
        raise BadRequest(f"{path} holds no crystal that can be read")
    return samples


def frames_text(samples: Sequence[Sample]) -> str:
    """Samples as frames of extended XYZ, cell and all; ``request`` and other facts stand in the comment."""
    return extxyz_text(samples)


def ranked_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of clusters as CSV."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: cell_text(v) for k, v in row.items()} for row in rows)
    return text.getvalue()
