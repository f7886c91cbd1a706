"""Build the reference that ships with the package: hashes and histograms of the training molecules, and the data row.

    python benchmarks/build_reference.py --data FOLDER/qm9 --out moldiff/evaluation/references/qm9.safetensors

takes about half an hour on one core for QM9 (the relaxations of the data row are cached, so that it can be interrupted).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from moldiff.data.store import Store
from moldiff.evaluation.api import stage_bars
from moldiff.evaluation.cache import ResultCache
from moldiff.evaluation.molecules.data_row import make_data_row
from moldiff.evaluation.molecules.sets import Settings
from moldiff.evaluation.reference import build_reference, entries_of, load_reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a prepared data set with the splits train and val")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--held-out", type=int, default=10_000, help="molecules of val in the data row")
    parser.add_argument("--n-relax", type=int, default=1000, help="of them relaxed and put through PoseBusters")
    parser.add_argument("--reference", help="take hashes and histograms from this reference, and make the data row anew")
    parser.add_argument("--processes", type=int, default=None)
    args = parser.parse_args()
    held_out = Store(args.data, "val")
    rows = list(entries_of(held_out, range(min(args.held_out, len(held_out)))))
    settings = Settings(xtb=True, posebusters=True, n_relax=args.n_relax, n_processes=args.processes)
    with stage_bars(True) as bars, ResultCache() as cache:

        def training(done: int, total: int) -> None:
            if bars is not None:
                bars("training molecules", done, total)

        if args.reference:
            reference = load_reference(args.reference)
        else:
            reference = build_reference(Store(args.data, "train"), n_processes=args.processes, progress=training)
        title = f"{held_out.meta['name']}, held-out molecules"
        row = make_data_row(rows, title, reference, settings, cache=cache, progress=bars)
    path = reference.with_data_row(row).save(args.out)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {len(reference.hashes):,} hashes")


if __name__ == "__main__":
    main()
