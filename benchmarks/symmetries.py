"""How often the right symmetry of a composition is ranked first, how honest the chances are, what the network makes of true ones.

    python benchmarks/symmetries.py --data mp20 --n 2000 --first 4000 --draw 100 --out benchmarks/results/symmetries.json

The first ``--n`` crystals of the validation part: the place of their own symmetry, with the right element in each slot, among
those that ``mp20-csp`` ranks. Then ``--draw`` crystals from row ``--first`` on are drawn within their own symmetry, 50 calls, and
compared with the truth as ``moldiff evaluate --truth`` does. Nothing of this is a prediction: the symmetry is the true one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moldiff import Generator
from moldiff.chem.crystals import Crystal, formula_of
from moldiff.chem.orbits import kind_of
from moldiff.control import Place, Spec
from moldiff.core.symmetry import Group, Operations
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.data.symmetries import Symmetries, symmetries_of
from moldiff.evaluation.crystals.matching import Pair, compare
from moldiff.model_store import model_info
from moldiff.sampling.control import Control
from moldiff.sampling.symmetric import Symmetric


class Split:
    """A split with the symmetry of each crystal."""

    def __init__(self, data: str, split: str) -> None:
        store = Store(find_data(data), split)
        self.store = store
        self.found: Symmetries = symmetries_of({name: store.tensor(name) for name in store.names}, store.folder)

    def crystal(self, i: int) -> Crystal:
        one = self.store.system(i)
        return Crystal.of(*(one[name].numpy() for name in ("atom_types", "frac_coords", "lattice")))


class TrueSymmetry(Spec):
    """Sample i has the symmetry of crystal ``first`` + i."""

    name = "true_symmetry"

    def __init__(self, split: Split, rows: list[int], numbers: list[list[int]]) -> None:
        self.split, self.rows, self.numbers = split, rows, numbers

    def settings(self) -> Any:
        return self.rows

    def control(self, place: Place) -> Control:
        each, base = [], torch.zeros(len(place.indices), place.size, 3)
        for k, i in enumerate(place.indices):
            found, own = self.split.found.orbits(self.rows[i]), self.split.crystal(self.rows[i]).numbers.tolist()
            free = {z: [a for a, x in enumerate(own) if x == z] for z in set(own)}
            order = np.array([free[z].pop(0) for z in self.numbers[i]])
            each.append(Operations(torch.tensor(found.rotations), torch.tensor(np.argsort(order)[found.to[:, order]])))
            base[k] = torch.tensor(found.base[order]).float()
        return Symmetric(Group.of(each, place.size), base)


def ranks(templates: Any, train: Split, val: Split, n: int) -> dict[str, Any]:
    """Places of the right symmetry, and the chance of the first beside how often it is right."""
    number: dict[str, int] = {}
    for i in range(len(train.found)):
        number.setdefault(kind_of(train.found.orbits(i), train.crystal(i).numbers).code, len(number))
    places, first = [], []
    for i in range(n):
        numbers = val.crystal(i).numbers
        kind = kind_of(val.found.orbits(i), numbers)
        same = {tuple(kind.elements[j] for j in order) for order in kind.alike}
        ranked = templates.ranking(numbers.tolist())
        mine = number.get(kind.code, -1)
        place = next((j for j, (_, template, slots) in enumerate(ranked) if template == mine and slots in same), 10**9)
        places.append(place)
        if ranked:
            first.append((ranked[0][0], place == 0))
    at, chance = np.array(places), np.array(first, dtype=float)
    honest = []
    for low, high in ((0, 0.3), (0.3, 0.6), (0.6, 0.9), (0.9, 1.01)):
        part = chance[(chance[:, 0] >= low) & (chance[:, 0] < high)]
        honest.append({"n": len(part), "chance": round(float(part[:, 0].mean()), 3), "right": round(float(part[:, 1].mean()), 3)})
    return {"n": n, "right_within": {k: float((at < k).mean()) for k in (1, 2, 5, 20, 10**6)}, "chances": honest}


def drawn(val: Split, first: int, n: int) -> dict[str, Any]:
    """Match rate and RMSE of crystals drawn within their own symmetry."""
    rows = list(range(first, first + n))
    truths = [val.crystal(i) for i in rows]
    texts = [formula_of(truth.numbers) for truth in truths]
    generator = Generator.from_pretrained("mp20-csp")
    request = generator.request(1, compositions=[(text, 1) for text in texts], symmetry="none", candidates=1)
    numbers = [list(row.numbers) for row in request.controls[0].rows]
    asked = {"compositions": [(text, 1) for text in texts], "symmetry": "none", "candidates": 1}
    samples = generator.sample(1, seed=0, controls=[TrueSymmetry(val, rows, numbers)], **asked)
    found = [compare(Pair(s.to_crystal(), t)) for s, t in zip(samples, truths, strict=True)]
    rms = [m.rms for m in found if m.same]
    return {"first": first, "n": n, "match": len(rms) / n, "rmse": float(np.mean(rms))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mp20")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--first", type=int, default=4000)
    parser.add_argument("--draw", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    train, val = Split(options.data, "train"), Split(options.data, "val")
    result = {"ranks": ranks(model_info("mp20-csp").templates(), train, val, options.n)}
    if options.draw:
        result["true_symmetry"] = drawn(val, options.first, options.draw)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
