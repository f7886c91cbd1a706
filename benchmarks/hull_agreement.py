"""Check the convex hull: known formation energies must reproduce the published energies above it.

    python benchmarks/hull_agreement.py --data mp20 --hull shared/data/mp20/hull_reference_entries.csv.gz \\
        --out benchmarks/results/hull_agreement.json

``--data`` is a prepared data set with the properties ``formation_energy`` and ``e_above_hull`` in its validation split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.evaluation.crystals.hull import load_hull
from moldiff.evaluation.crystals.novelty import Training


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mp20")
    parser.add_argument("--hull", type=Path, required=True)
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    store, hull = Store(find_data(args.data), "val"), load_hull(args.hull)
    formed = store.column("formation_energy").numpy().astype(np.float64)
    published = store.column("e_above_hull").numpy().astype(np.float64)
    known = np.flatnonzero(np.isfinite(formed) & np.isfinite(published))
    chosen = np.sort(np.random.default_rng(args.seed).permutation(known)[: args.n])
    data = Training(store)
    found = np.array([hull.above(data.crystal(int(i)).numbers, formed[i]) for i in chosen])
    # The published value of a phase that is on the hull is 0; here its own entry is part of the hull, up to rounding.
    error = np.maximum(found, 0.0) - published[chosen]
    result = {
        "command": f"python benchmarks/hull_agreement.py --data {args.data} --hull {args.hull.name} --n {args.n}",
        "structures": f"{store.meta['name']}, {store.split}: {len(chosen)} of {len(known)} with both energies, drawn at random",
        "hull_compositions": len(hull),
        "mae_meV_per_atom": round(1000 * float(np.abs(error).mean()), 3),
        "median_absolute_error_meV_per_atom": round(1000 * float(np.median(np.abs(error))), 3),
        "within_1_meV_per_atom": round(float((np.abs(error) <= 1e-3).mean()), 4),
        "largest_error_meV_per_atom": round(1000 * float(np.abs(error).max()), 1),
        "agree_on_stability_within_1_meV": round(float(((found <= 1e-3) == (published[chosen] <= 1e-3)).mean()), 4),
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if args.out is not None:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
