"""Conditional crystals: the density and the space group that were asked for against those that came.

    python benchmarks/conditional_crystals.py --model mp20-cond --n 200 --out benchmarks/results/conditional_crystals.json

For each property n targets are drawn from the validation crystals, each with the number of atoms of the crystal that has it.
Beside the error of the samples (valid ones) stand that of a random real crystal of the same number of atoms (``size``) and of any
random real crystal (``random``). A space group is right where spglib finds it within the tolerance of ``chem.symmetry``; its
crystal system may be right where it is not.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.symmetry.groups import SpaceGroup

from moldiff import Generator, SampleSet
from moldiff.data.location import find_data
from moldiff.data.store import Store


def targets(store: Store, name: str, n: int, seed: int) -> list[dict[str, float]]:
    """n random validation crystals' values, with their numbers of atoms."""
    values, sizes = store.column(name).numpy(), np.diff(store.atom_offsets.numpy())
    order = [i for i in np.random.default_rng(seed).permutation(len(store)).tolist() if np.isfinite(values[i])]
    return [{name: float(values[i]), "n_atoms": int(sizes[i])} for i in order[:n]]


def system(number: int) -> str:
    """The crystal system of a space group."""
    return str(SpaceGroup.from_int_number(int(number)).crystal_system)


def distances(name: str, asked: Any, got: Any) -> dict[str, Any]:
    """Errors [n] of pairs: absolute differences, or for space groups whether group and crystal system are others."""
    if name != "space_group":
        return {"mae": np.abs(np.asarray(asked, dtype=float) - np.asarray(got, dtype=float))}
    wrong = [(int(a) != int(g), system(a) != system(g)) for a, g in zip(asked, got, strict=True)]
    return {"group_right": 1.0 - np.array([w[0] for w in wrong]), "system_right": 1.0 - np.array([w[1] for w in wrong])}


def summary(found: dict[str, Any]) -> dict[str, float]:
    """Means with their standard errors."""
    rows = {}
    for key, values in found.items():
        rows[key] = round(float(values.mean()), 4)
        rows[f"{key}_error"] = round(float(values.std() / max(1, len(values)) ** 0.5), 4)
    return rows


def beside(store: Store, name: str, rows: list[dict[str, float]], seed: int) -> dict[str, Any]:
    """The same errors of random real crystals, of the asked number of atoms and of any."""
    values, sizes = store.column(name).numpy(), np.diff(store.atom_offsets.numpy())
    rng = np.random.default_rng(seed + 1)
    asked = [row[name] for row in rows]
    alike = [float(values[rng.choice(np.flatnonzero((sizes == row["n_atoms"]) & np.isfinite(values)))]) for row in rows]
    any_one = rng.choice(values[np.isfinite(values)], len(rows))
    return {"size": summary(distances(name, asked, alike)), "random": summary(distances(name, asked, any_one))}


def judged(samples: SampleSet, name: str, rows: list[dict[str, float]]) -> dict[str, Any]:
    """The errors of the valid samples."""
    verdicts = samples.verdicts
    good = [i for i, v in enumerate(verdicts) if v.structure_valid]
    got = [getattr(verdicts[i], name) for i in good]
    return {"valid": round(len(good) / len(verdicts), 4), **summary(distances(name, [rows[i][name] for i in good], got))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mp20-cond")
    parser.add_argument("--properties", default="density,space_group")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--guidance", default="1,2")
    parser.add_argument("--n-elements", default="any", help="as moldiff generate's; results so far leave it to the network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    generator = Generator.from_pretrained(args.model)
    store = Store(find_data(generator.config.data.name), "val")
    results: dict[str, Any] = {"model": args.model, "weights": generator.info.weights_sha256[:12], "n": args.n, "seed": args.seed}
    for name in args.properties.split(","):
        rows = targets(store, name, args.n, args.seed)
        results[name] = beside(store, name, rows, args.seed)
        for text in args.guidance.split(","):
            began = time.monotonic()
            numbers = {"n_elements": args.n_elements}
            samples = generator.sample(args.n, seed=args.seed, conditions=rows, guidance=float(text), steps=args.steps, **numbers)
            found = {"seconds": round(time.monotonic() - began), **judged(samples, name, rows)}
            results[name][f"guidance {text}"] = found
            print(name, text, found, flush=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
