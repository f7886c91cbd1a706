"""Build a reference that ships with the package: hashes and histograms of the training systems, and the data row.

    python benchmarks/build_reference.py --data FOLDER/qm9 --out moldiff/evaluation/references/qm9.safetensors
    python benchmarks/build_reference.py --data FOLDER/mp20 --held-out 9047 --n-relax 200 --calculator chgnet \\
        --hull shared/data/mp20/hull_reference_entries.csv.gz --out moldiff/evaluation/references/mp20.safetensors

takes about half an hour on one core each; the relaxations of the data row are cached, so that it can be interrupted. With
``--only-properties`` a reference that exists gets known values of the properties that samples can be asked for, and the error of
the calculation on real systems, and is otherwise left as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moldiff.data.store import Store
from moldiff.evaluation.cache import ResultCache
from moldiff.evaluation.conditional import CALCULATED, known_values
from moldiff.evaluation.crystals.reference import make_crystal_data_row
from moldiff.evaluation.crystals.sets import CrystalSettings
from moldiff.evaluation.molecules.data_row import make_data_row
from moldiff.evaluation.molecules.sets import Settings, evaluate_set
from moldiff.evaluation.progress import StageProgress, stage, stage_bars
from moldiff.evaluation.reference import Reference, build_reference, entries_of, load_reference


def main() -> None:
    """Build and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a prepared data set with the splits train and val")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--held-out", type=int, default=10_000, help="systems of val in the data row")
    parser.add_argument("--n-relax", type=int, default=1000, help="of them relaxed (molecules: and put through PoseBusters)")
    parser.add_argument("--calculator", default="", help="crystals: relax with it")
    parser.add_argument("--hull", type=Path, help="crystals: a hull file")
    parser.add_argument("--reference", help="take hashes and histograms from this reference, and make the data row anew")
    parser.add_argument("--only-properties", action="store_true", help="add known values of properties to --out, which exists")
    parser.add_argument("--processes", type=int, default=None)
    args = parser.parse_args()
    held_out = Store(args.data, "val")
    with stage_bars(True) as bars, ResultCache() as cache:
        if args.only_properties:
            made = add_properties(load_reference(args.out), held_out, cache, bars)
        else:
            if args.reference:
                made = load_reference(args.reference)
            else:
                train = Store(args.data, "train")
                made = build_reference(train, n_processes=args.processes, progress=stage(bars, "training systems"))
            made = made.with_properties(known_values(held_out, held_out.kind))
            made = made.with_data_row(data_row(args, made, held_out, cache, bars))
    path = made.save(args.out)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {len(made.hashes):,} hashes")


def data_row(
    args: argparse.Namespace, reference: Reference, held_out: Store, cache: ResultCache, bars: StageProgress | None
) -> dict[str, Any]:
    """Evaluate the held-out systems."""
    if held_out.kind == "crystal":
        settings = CrystalSettings(calculator=args.calculator, hull=args.hull, n_relax=args.n_relax, n_processes=args.processes)
        settings.check()
        train = Store(args.data, "train")
        return make_crystal_data_row(reference, train, held_out, settings, n_held_out=args.held_out, cache=cache, progress=bars)
    rows = list(entries_of(held_out, range(min(args.held_out, len(held_out)))))
    asked = _known(held_out)
    molecules = Settings(xtb=True, posebusters=True, n_relax=args.n_relax, n_processes=args.processes, properties=asked)
    title = f"{held_out.meta['name']}, held-out molecules"
    return make_data_row(rows, title, reference, molecules, cache=cache, progress=bars)


def add_properties(
    reference: Reference, held_out: Store, cache: ResultCache, bars: StageProgress | None, n: int = 1000
) -> Reference:
    """Add known values of molecules, and the rows on properties to the data row that is there."""
    reference = reference.with_properties(known_values(held_out, "molecule"))
    rows = list(entries_of(held_out, np.sort(np.random.default_rng(0).permutation(len(held_out))[:n]).tolist()))
    found = evaluate_set("known", rows, reference, Settings(properties=_known(held_out), n_strain=0), cache=cache, progress=bars)
    row = dict(reference.data_row)
    row["metrics"] = {**row["metrics"], **{k: v.to_dict() for k, v in found.metrics.items() if k.startswith("property")}}
    row["notes"] = [*row["notes"], *(note for note in found.notes if note.startswith("asked"))]
    return reference.with_data_row(row)


def _known(store: Store) -> tuple[tuple[str, str], ...]:
    known: Sequence[str] = [name for name in CALCULATED["molecule"] if name in store.properties]
    return tuple((name, name) for name in known)


if __name__ == "__main__":
    main()
