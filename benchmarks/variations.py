"""Similarity of variations against their strength: Tanimoto of Morgan fingerprints, and the share that is the molecule itself.

    python benchmarks/variations.py --n 100 --out benchmarks/results/variations.json --picture docs/pictures/variations.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from anomaly import structure

from moldiff import Generator
from moldiff.chem.molecules import build_molecule, canonical_smiles
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.evaluation.svg import COLOURS


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Three curves over the strength, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "moldiff"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.2, 3.2))
    lines = (("tanimoto", "Tanimoto similarity"), ("same_molecule", "same molecule"), ("valid_connected", "valid, connected"))
    for (key, label), colour in zip(lines, COLOURS, strict=False):
        axes.plot([r["strength"] for r in rows], [r[key] for r in rows], marker="o", color=colour, label=label)
    axes.set(xlabel="strength (time noised to)", ylabel="mean over molecules", ylim=(-0.03, 1.05))
    axes.legend(frameon=False, loc="center left")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Vary, compare, draw."""
    from rdkit import Chem, DataStructs
    from rdkit.Chem import rdFingerprintGenerator

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--n", type=int, default=100, help="molecules, one variation each")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--strengths", default="0.2,0.4,0.5,0.6,0.7,0.8,0.9,1.0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    generator = Generator.from_pretrained(args.model)
    store = Store(find_data(generator.config.data.name), "val")
    given = [structure(store, i) for i in np.random.default_rng(args.seed).permutation(len(store))[: args.n].tolist()]
    prints = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    parents = [build_molecule(s.numbers, None, s.bonds, s.charges).mol for s in given]
    rows = []
    for strength in (float(word) for word in args.strengths.split(",")):
        made = generator.sample(args.n, seed=args.seed, steps=args.steps, like=given, strength=strength)
        alike, same, good = [], 0, 0
        for sample, verdict, parent in zip(made, made.verdicts, parents, strict=True):
            if not (verdict.valid and verdict.connected) or parent is None:
                continue
            good += 1
            same += verdict.smiles == canonical_smiles(parent)
            pair = [prints.GetFingerprint(Chem.RemoveHs(m)) for m in (sample.to_rdkit(), parent)]
            alike.append(DataStructs.TanimotoSimilarity(*pair))
        rows.append({
            "strength": strength, "n": len(made), "valid_connected": round(good / len(made), 4),
            "tanimoto": round(float(np.mean(alike)), 4), "same_molecule": round(same / max(good, 1), 4),
        })  # fmt: skip
        print(rows[-1], flush=True)
    args.out.write_text(json.dumps({"model": args.model, "steps": args.steps, "seed": args.seed, "rows": rows}, indent=1) + "\n")
    if args.picture:
        draw(rows, args.picture)


if __name__ == "__main__":
    main()
