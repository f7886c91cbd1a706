"""Conformers of SMILES beside RDKit's: does one of them meet the DFT geometry of the validation molecule?

    python benchmarks/conformers.py --n 500 --out benchmarks/results/conformers.json

Each validation molecule is one reference conformer (K = 1), of which a SMILES with the stereo marks of its geometry is all that
the methods are given; 2K samples each. A molecule is covered where the least RMSD of heavy atoms (symmetry considered) is below
0.5 Å; AMR is the mean of that least RMSD. Samples whose stereo is wrong after all redraws count as failed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from moldiff import Generator
from moldiff.chem.graphs import read_graph
from moldiff.chem.molecules import build_molecule
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.given import GraphGiven


def least(samples: list[Any], reference: Any) -> float:
    """The least RMSD of heavy atoms of any sample to the reference, infinite without samples."""
    from rdkit import Chem
    from rdkit.Chem import rdMolAlign

    target = Chem.RemoveHs(reference)
    return min((rdMolAlign.GetBestRMS(Chem.RemoveHs(m), target) for m in samples if m is not None), default=float("inf"))


def etkdg(graph: Any, n: int, seed: int, relax: bool) -> list[Any]:
    """RDKit's conformers of a graph, with MMFF94 if ``relax``."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    mol = Chem.Mol(graph.mol)
    settings = rdDistGeom.ETKDGv3()
    settings.randomSeed = seed
    made = list(rdDistGeom.EmbedMultipleConfs(mol, n, settings))
    if relax and made:
        rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, maxIters=2000)
    return [Chem.Mol(mol, confId=k) for k in made]


def main() -> None:
    """Sample, embed, compare."""
    from rdkit import Chem

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--shown", default="noisy,clean")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    generator = Generator.from_pretrained(args.model)
    store = Store(find_data(generator.config.data.name), "val")
    names = [*(f"moldiff, classes {k}" for k in args.shown.split(",")), "ETKDGv3", "ETKDGv3 + MMFF94"]
    found: dict[str, list[float]] = {name: [] for name in names}
    failed = dict.fromkeys(names, 0)
    for i in np.random.default_rng(args.seed).permutation(len(store))[: args.n].tolist():
        fields = [store.system(i)[k].numpy() for k in ("atom_types", "positions", "bond_types", "charges")]
        reference = build_molecule(*fields).mol
        if reference is None:
            continue
        Chem.AssignStereochemistryFrom3D(reference)
        graph = read_graph(Chem.MolToSmiles(Chem.RemoveHs(reference)))
        for name in names:
            if name.startswith("moldiff"):
                spec = GraphGiven(graph, name.rsplit(" ", 1)[1])
                drawn = generator.sample(args.samples, seed=args.seed, steps=args.steps, controls=[spec])
                made = [None if s.problem else s.to_rdkit() for s in drawn]
                failed[name] += sum(m is None for m in made)
            else:
                made = etkdg(graph, args.samples, args.seed + 1, "MMFF" in name)
                failed[name] += args.samples - len(made)
            found[name].append(least(made, reference))
    rows = {}
    for name, values in found.items():
        x = np.array(values)
        rows[name] = {
            "n": len(x), "coverage": round(float((x < 0.5).mean()), 4), "amr": round(float(x[np.isfinite(x)].mean()), 4),
            "median": round(float(np.median(x)), 4), "failed_samples": failed[name],
        }  # fmt: skip
        print(name, rows[name], flush=True)
    values_ = {"model": args.model, "samples": args.samples, "steps": args.steps, "seed": args.seed, "rows": rows}
    args.out.write_text(json.dumps(values_, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
