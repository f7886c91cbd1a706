"""Crystals of which the cell or a sublattice is given: are completions sound, and do they find the true structure?

    python benchmarks/keep_crystal.py --model mp20-csp --crystals 100 --n 4 --out benchmarks/results/keep_crystal.json

The first validation crystals of at least two elements; the sublattice is that of the element with the most atoms (of several,
the heaviest). Crystals come in their stored cells, or with ``--shear`` in other cells of the same lattices. A model that is told
the composition has the true one, one that is not the true number of atoms. ``match`` is the share of samples that
StructureMatcher (stol 0.5, ltol 0.3, angle_tol 10) finds the same as the truth, ``match_best`` that of crystals found by any
sample.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moldiff import Generator
from moldiff.chem.crystals import Crystal, formula_of
from moldiff.control import Place, Spec
from moldiff.core.batch import AtomBatch
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.evaluation.crystals.basic import entries_of, judge_crystals
from moldiff.evaluation.crystals.matching import CSP, Pair, compare_all
from moldiff.keep_crystal import KeepCrystal
from moldiff.sampling import kept_cell
from moldiff.sampling.inpaint import Known
from moldiff.sampling.kept_cell import KeptCell

SHEAR = np.array([[1, 0, 0], [1, 1, 0], [0, -2, 1]])


def truths(store: Store, n: int, shear: bool) -> list[Crystal]:
    """The first crystals of two elements or more."""
    found: list[Crystal] = []
    for i in range(len(store)):
        fields = [store.system(i)[k].numpy() for k in ("atom_types", "frac_coords", "lattice")]
        one = Crystal.of(*fields)
        if len(set(one.numbers.tolist())) > 1:
            found.append(Crystal.of(one.numbers, one.frac_coords @ np.linalg.inv(SHEAR), SHEAR @ one.lattice) if shear else one)
        if len(found) == n:
            break
    return found


def sublattice(crystal: Crystal) -> tuple[int, ...]:
    """The sites of the element with the most atoms, of several the heaviest."""
    z, counts = np.unique(crystal.numbers, return_counts=True)
    chosen = max(zip(counts.tolist(), z.tolist(), strict=True))[1]
    return tuple(np.flatnonzero(crystal.numbers == chosen).tolist())


@dataclass(frozen=True, eq=False)
class Each(Spec):
    """Sample i keeps what specification i modulo their number keeps; all have as many sites. Fills up the calls of a CPU."""

    specs: tuple[KeepCrystal, ...]
    name = "each"
    gives = ("lattice", "frac_coords")

    def settings(self) -> Any:
        return [spec.settings() for spec in self.specs]

    def control(self, place: Place) -> KeptCell:
        parts = [self.specs[i % len(self.specs)].control(replace(place, indices=[i])) for i in place.indices]
        truth = AtomBatch.from_list([part.known.truth for part in parts])
        known = {k: v if isinstance(v, int) else v.expand(len(parts)) for k, v in parts[0].known.parts.items()}
        fields = [torch.cat([getattr(part, k) for part in parts]) for k in ("basis", "lattice", "frac_coords", "classes")]
        return KeptCell(Known(truth, known), *fields, matched=parts[0].matched)


def exact(sample: Any, spec: KeepCrystal) -> bool:
    """Whether a sample holds the lattice and the sites bit by bit."""
    k = len(spec.sites)
    return bool(
        np.array_equal(sample.fields["lattice"], spec.crystal.lattice.astype(np.float32))
        and np.array_equal(sample.fields["frac_coords"][:k], spec.places)
        and sample.numbers[:k].tolist() == spec.numbers
    )


def main() -> None:
    """Sample, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mp20-csp")
    parser.add_argument("--crystals", type=int, default=100)
    parser.add_argument("--n", type=int, default=4, help="samples a crystal")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--given", default="nothing,cell,sublattice")
    parser.add_argument("--shear", action="store_true")
    parser.add_argument("--unmatched", action="store_true", help="leave the noise of kept sites as it was drawn")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    generator = Generator.from_pretrained(args.model, device="cpu")
    told = "atom_types" in generator.config.given
    true = truths(Store(find_data(generator.config.data.name), "val"), args.crystals, args.shear)
    if args.unmatched:
        kept_cell.nearest_points = lambda truth, noise, *rest: noise
    rows = []
    for given in args.given.split(","):
        began, kept = time.monotonic(), 0
        made: list[list[Crystal | None]] = [[] for _ in true]
        specs = [KeepCrystal(one, sublattice(one) if given == "sublattice" else ()) for one in true]
        groups = defaultdict(list)
        for i, spec in enumerate(specs):
            groups[len(true[i]), len(spec.sites)].append(i)
        for (size, _), members in groups.items():
            asked: dict[str, Any] = {"size": size}
            if told:
                asked = {"compositions": [(formula_of(true[i].numbers), 1) for i in members], "candidates": 1}
            controls = [] if given == "nothing" else [Each(tuple(specs[i] for i in members))]
            n = args.n if told else args.n * len(members)
            samples = generator.sample(n, seed=args.seed, steps=args.steps, controls=controls, **asked)
            for s in samples:
                i = members[s.index % len(members)]
                made[i].append(s.to_crystal())
                kept += given != "nothing" and exact(s, specs[i])
        sound = judge_crystals(entries_of(c for row in made for c in row), composition=False, n_processes=1)
        pairs = [Pair(t, c, CSP) for t, row in zip(true, made, strict=True) for c in row if c is not None]
        found = iter(compare_all(pairs, n_processes=1))
        rms = np.array([[next(found).rms if c is not None else None for c in row] for row in made], dtype=float)
        hit = np.isfinite(rms)
        rows.append({
            "given": given, "crystals": len(true), "samples": int(hit.size),
            "structurally_valid": round(float(np.mean([v.verdict.structure_valid for v in sound])), 4),
            "match": round(float(hit.mean()), 4), "match_best": round(float(hit.any(1).mean()), 4),
            "rmse": round(float(rms[hit].mean()), 4) if hit.any() else None,
            "kept_exactly": None if given == "nothing" else kept / hit.size, "seconds": round(time.monotonic() - began, 1),
        })  # fmt: skip
        print(rows[-1], flush=True)
        values = {k: v for k, v in vars(args).items() if k != "out"} | {"rows": rows}
        args.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
