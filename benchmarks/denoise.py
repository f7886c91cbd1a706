"""Repair of validation molecules with normal noise: RMSD to the truth and GFN2-xTB energy above it, before and after.

    python benchmarks/denoise.py --n 500 --noise 0.2 --out benchmarks/results/denoise.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from anomaly import structure

from moldiff import Generator
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.denoise import denoise
from moldiff.evaluation.molecules.energy import KCAL_PER_EV, rmsd, single_point
from moldiff.structures import Structure


def main() -> None:
    """Shake, repair, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-energy", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    generator = Generator.from_pretrained(args.model)
    store = Store(find_data(generator.config.data.name), "val")
    rng = np.random.default_rng(args.seed)
    real = [structure(store, i) for i in rng.permutation(len(store))[: args.n].tolist()]
    shaken = [s.positions + rng.normal(0, args.noise, s.positions.shape).astype(np.float32) for s in real]
    broken = [Structure(s.name, s.numbers, x, s.bonds, s.charges) for s, x in zip(real, shaken, strict=True)]
    ways = {
        "before": None,
        "noise estimated, 20 calls": {},
        "noise known, 20 calls": {"noise": args.noise},
        "noise known, 1 call": {"noise": args.noise, "steps": 1},
        "noise known, 20 calls, ancestral": {"noise": args.noise, "eta": 1.0},
    }

    def energy(s: Structure, x: np.ndarray) -> float:
        return float("nan") if args.no_energy else single_point(s.numbers, x, int(s.charges.sum()))[0].get("energy", np.nan)

    truth = np.array([energy(s, s.positions) for s in real])
    rows = {}
    for name, options in ways.items():
        if options is None:
            made, levels = [s.positions for s in broken], np.full(len(real), args.noise)
        else:
            found = denoise(generator, broken, **options)
            made, levels = [r.sample.positions for r in found], np.array([r.noise for r in found])
        off = [rmsd(s.positions, x) for s, x in zip(real, made, strict=True)]
        above = (np.array([energy(s, x) for s, x in zip(real, made, strict=True)]) - truth) * KCAL_PER_EV
        rows[name] = {
            "rmsd_mean": round(float(np.mean(off)), 4), "rmsd_median": round(float(np.median(off)), 4),
            "energy_above_truth_mean": round(float(np.nanmean(above)), 2), "energy_median": round(float(np.nanmedian(above)), 2),
            "noise_median": round(float(np.median(levels)), 4), "n": len(real),
        }  # fmt: skip
        print(name, rows[name], flush=True)
    args.out.write_text(json.dumps({"model": args.model, "noise": args.noise, "seed": args.seed, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
