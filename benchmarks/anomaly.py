"""Does the likelihood tell real molecules from spoilt copies? ROC AUC of validation molecules against their copies.

    python benchmarks/anomaly.py --n 100 --out benchmarks/results/anomaly.json

Copies: 0.15 Å of normal noise (a coordinate) on one atom; elements swapped with valence kept (a C-H becomes N, an N-H becomes O,
the geometry stays and one hydrogen goes); for comparison two atoms' elements exchanged without regard to valence. The scores
compared are ``anomaly`` (of the worst atom, see ``moldiff.score.Score``) and the bound per atom.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from moldiff import Generator
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.score import Score, score
from moldiff.structures import Structure

#: A heavy atom with a hydrogen becomes this without it.
NEXT = {6: 7, 7: 8}


def structure(store: Store, i: int) -> Structure:
    """One stored molecule."""
    s = store.system(i)
    numbers, x, bonds, charges = (s[k].numpy() for k in ("atom_types", "positions", "bond_types", "charges"))
    return Structure(str(int(s["id"])), numbers, x, bonds, charges)


def shaken(one: Structure, rng: np.random.Generator, size: float = 0.15) -> Structure:
    """One atom moved by normal noise."""
    x = one.positions.copy()
    x[rng.integers(len(one))] += rng.normal(0, size, 3).astype(np.float32)
    return Structure(one.name, one.numbers, x, one.bonds, one.charges)


def swapped(one: Structure, rng: np.random.Generator) -> Structure | None:
    """A heavy atom that has a hydrogen becomes the next element, without it."""
    assert one.bonds is not None
    pairs = [
        (i, h) for i, h in np.argwhere(one.bonds == 1).tolist()
        if one.numbers[i] in NEXT and one.numbers[h] == 1 and one.charges[i] == 0
    ]  # fmt: skip
    if not pairs:
        return None
    i, h = pairs[rng.integers(len(pairs))]
    numbers = one.numbers.copy()
    numbers[i] = NEXT[int(numbers[i])]
    left = np.delete(np.arange(len(one)), h)
    return Structure(one.name, numbers[left], one.positions[left], one.bonds[np.ix_(left, left)], one.charges[left])


def exchanged(one: Structure, rng: np.random.Generator) -> Structure | None:
    """Two heavy atoms of different elements exchange them; bonds and positions stay."""
    heavy = np.flatnonzero(one.numbers > 1)
    pairs = [(i, j) for i in heavy for j in heavy if i < j and one.numbers[i] != one.numbers[j]]
    if not pairs:
        return None
    i, j = pairs[rng.integers(len(pairs))]
    numbers = one.numbers.copy()
    numbers[[i, j]] = numbers[[j, i]]
    return Structure(one.name, numbers, one.positions, one.bonds, one.charges)


def auc(real: list[float], other: list[float]) -> float:
    """The probability that a real one has the smaller number, ties halved."""
    a, b = np.array(real), np.array(other)
    return float((a[:, None] < b[None]).mean() + 0.5 * (a[:, None] == b[None]).mean())


def measures(scores: list[Score]) -> dict[str, list[float]]:
    """The numbers that are compared, greater for stranger molecules."""
    known = [s for s in scores if not s.problem]
    return {"anomaly": [s.anomaly for s in known], "per_atom": [-s.per_atom for s in known]}


def main() -> None:
    """Score, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--times", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    generator = Generator.from_pretrained(args.model)
    store = Store(find_data(generator.config.data.name), "val")
    rng = np.random.default_rng(args.seed)
    real = [structure(store, i) for i in rng.permutation(len(store))[: args.n].tolist()]
    kinds = {
        "noise_one_atom": [shaken(s, rng) for s in real],
        "valence_kept_swap": [c for s in real if (c := swapped(s, rng)) is not None],
        "exchanged_elements": [c for s in real if (c := exchanged(s, rng)) is not None],
    }
    base = measures(score(generator, real, times=args.times, seed=args.seed))
    values = {}
    for name, copies in kinds.items():
        found = measures(score(generator, copies, times=args.times, seed=args.seed + 1))
        values[name] = {"n": len(copies), **{k: round(auc(base[k], found[k]), 4) for k in base}}
        print(name, values[name], flush=True)
    text = json.dumps({"model": args.model, "n": args.n, "times": args.times, "seed": args.seed, "auc": values}, indent=1)
    args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
