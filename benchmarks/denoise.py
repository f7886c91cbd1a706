"""Repair of validation molecules with normal noise: RMSD to the truth and GFN2-xTB energy above it, before and after.

    python benchmarks/denoise.py --n 500 --noise 0.2 --out benchmarks/results/denoise.json

Bonds are the true ones, as an SDF gives them, except in "bonds perceived", which is what happens to an XYZ file: they are read
off the noisy positions, and where that fails the model makes them. MMFF94 (RDKit, true bonds, begun at the noisy positions)
stands beside. ``--ways`` chooses rows by words that they contain.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from anomaly import structure

from moldiff import Generator
from moldiff.chem.molecules import build_molecule
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.denoise import denoise
from moldiff.evaluation.molecules.energy import KCAL_PER_EV, rmsd, single_point
from moldiff.structures import Structure, structure_of


def perceived(s: Structure) -> Structure:
    """The structure as an XYZ file would give it: elements and positions alone."""
    return structure_of(s.numbers, s.positions, None, int(s.charges.sum()), s.name)


def relaxed(s: Structure) -> np.ndarray:
    """Positions after an MMFF94 minimisation with RDKit, bonds given; as they were where it lacks parameters."""
    from rdkit.Chem import rdForceFieldHelpers

    assert s.bonds is not None
    mol = build_molecule(s.numbers, s.positions, s.bonds, s.charges).mol
    if mol is None or not rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        return s.positions
    rdForceFieldHelpers.MMFFOptimizeMolecule(mol, maxIters=5000)
    return np.asarray(mol.GetConformer().GetPositions(), dtype=np.float32)


def main() -> None:
    """Shake, repair, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", default="", help="words of the rows to make, with commas; all where empty")
    parser.add_argument("--no-energy", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    generator = Generator.from_pretrained(args.model)
    store = Store(find_data(generator.config.data.name), "val")
    rng = np.random.default_rng(args.seed)
    real = [structure(store, i) for i in rng.permutation(len(store))[: args.n].tolist()]
    shaken = [s.positions + rng.normal(0, args.noise, s.positions.shape).astype(np.float32) for s in real]
    broken = [Structure(s.name, s.numbers, x, s.bonds, s.charges) for s, x in zip(real, shaken, strict=True)]
    ways: dict[str, dict[str, Any] | None] = {
        "before": None,
        "MMFF94": None,
        "noise estimated, 20 calls": {},
        "noise estimated, 20 calls, bonds perceived": {},
        "noise known, 20 calls": {"noise": args.noise},
        "noise known, 1 call": {"noise": args.noise, "steps": 1},
        "noise known, 20 calls, ancestral": {"noise": args.noise, "eta": 1.0},
    }
    words = args.ways.split(",")
    ways = {name: options for name, options in ways.items() if any(word in name for word in words)}
    read = [perceived(s) for s in broken]
    right = sum(r.bonds is not None and np.array_equal(r.bonds, s.bonds) for r, s in zip(read, real, strict=True))
    print(f"bonds perceived: {right} of {len(real)} as they are, {sum(r.bonds is None for r in read)} not told", flush=True)

    def energy(s: Structure, x: np.ndarray) -> float:
        return float("nan") if args.no_energy else single_point(s.numbers, x, int(s.charges.sum()))[0].get("energy", np.nan)

    truth = np.array([energy(s, s.positions) for s in real])
    rows: dict[str, dict[str, float]] = {}
    bonds = {"as_they_are": right, "not_told": sum(r.bonds is None for r in read)}
    kept = {"model": args.model, "noise": args.noise, "seed": args.seed, "bonds_perceived": bonds, "rows": rows}
    for name, options in ways.items():
        problems = 0
        if options is None:
            made = [relaxed(s) if name == "MMFF94" else s.positions for s in broken]
            levels = np.full(len(real), args.noise)
        else:
            found = denoise(generator, read if "perceived" in name else broken, **options)
            problems = sum(bool(r.sample.problem) for r in found)
            made, levels = [r.sample.positions for r in found], np.array([r.noise for r in found])
        off = [rmsd(s.positions, x) for s, x in zip(real, made, strict=True)]
        above = (np.array([energy(s, x) for s, x in zip(real, made, strict=True)]) - truth) * KCAL_PER_EV
        rows[name] = {
            "rmsd_mean": round(float(np.mean(off)), 4), "rmsd_median": round(float(np.median(off)), 4),
            "energy_above_truth_mean": round(float(np.nanmean(above)), 2), "energy_median": round(float(np.nanmedian(above)), 2),
            "noise_median": round(float(np.nanmedian(levels)), 4), "n": len(real), "failed": problems,
            "without_energy": int(np.isnan(above).sum()),
        }  # fmt: skip
        print(name, rows[name], flush=True)
        args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
