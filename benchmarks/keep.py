"""Complete kept scaffolds: what share of the samples is valid and connected, and is what was kept still there?

    python benchmarks/keep.py --scaffolds 3 --n 34 --resamplings 1,4,10 --steps 100 --out benchmarks/results/keep.json

Scaffolds are the ring systems with their linkers (Murcko) of validation molecules that have at least two heavy atoms more; the
samples have the size of the molecule. ``--grid-steps`` spends ``--steps`` calls for each resampling rather than altogether.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from moldiff import Generator
from moldiff.chem.fragments import Fragment, cut_fragment
from moldiff.chem.molecules import build_molecule, canonical_smiles
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.keep import Keep


def scaffolds(store: Store, n: int, seed: int) -> list[tuple[str, Fragment, int]]:
    """SMILES of the molecule, its scaffold, its number of atoms."""
    from rdkit.Chem.Scaffolds import MurckoScaffold

    found: list[tuple[str, Fragment, int]] = []
    for i in np.random.default_rng(seed).permutation(len(store)).tolist():
        fields = [store.system(i)[k].numpy() for k in ("atom_types", "positions", "bond_types", "charges")]
        mol = build_molecule(*fields).mol
        core = None if mol is None else MurckoScaffold.GetScaffoldForMol(mol)
        if mol is None or core is None or core.GetNumAtoms() == 0:
            continue
        atoms = [a for a in mol.GetSubstructMatch(core) if mol.GetAtomWithIdx(a).GetAtomicNum() > 1]
        if 3 <= len(atoms) <= mol.GetNumHeavyAtoms() - 2:
            found.append((canonical_smiles(mol), cut_fragment(*fields, atoms=atoms), len(fields[0])))
        if len(found) == n:
            break
    return found


def exact(samples: Any, fragment: Fragment) -> int:
    """How many samples hold the fragment bit by bit."""
    k = len(fragment)
    return sum(
        np.array_equal(s.numbers[:k], fragment.numbers)
        and np.array_equal(s.positions[:k], fragment.positions)
        and np.array_equal(s.bond_types[:k, :k], fragment.bonds)
        and np.array_equal(s.charges[:k], fragment.charges)
        for s in samples
    )


def main() -> None:
    """Sample, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--scaffolds", type=int, default=200)
    parser.add_argument("--n", type=int, default=10, help="samples a scaffold")
    parser.add_argument("--resamplings", default="1,4,10")
    parser.add_argument("--jump", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--grid-steps", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    generator = Generator.from_pretrained(args.model)
    cases = scaffolds(Store(find_data(generator.config.data.name), "val"), args.scaffolds, args.seed)
    rows = []
    for times in (int(word) for word in args.resamplings.split(",")):
        began, good, kept, total, unique = time.monotonic(), 0, 0, 0, 0
        calls = args.steps * (times if args.grid_steps else 1)
        for _, fragment, size in cases:
            spec = Keep(fragment, None, times, args.jump)
            samples = generator.sample(args.n, seed=args.seed, size=size, steps=calls, controls=[spec])
            fine = {v.smiles for v in samples.verdicts if v.valid and v.connected}
            good += sum(v.valid and v.connected for v in samples.verdicts)
            kept += exact(samples, fragment)
            total, unique = total + len(samples), unique + len(fine)
        rows.append({
            "resamplings": times, "jump": args.jump, "calls": calls, "n": total, "valid_connected": good / total,
            "kept_exactly": kept / total, "different": unique / max(good, 1), "seconds": round(time.monotonic() - began, 1),
        })  # fmt: skip
        print(rows[-1], flush=True)
        values = {"model": args.model, "seed": args.seed, "scaffolds": [smiles for smiles, _, _ in cases], "rows": rows}
        args.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
