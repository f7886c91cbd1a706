"""Steering against best-of-n and plain sampling at equal network calls: mean reward, uniqueness, validity.

    python benchmarks/steering.py --n 32 --particles 8 --steps 50

n samples of K particles make the network calls of n K plain samples of as many steps. Best-of-n takes the best of every K plain
samples: with one size for all K, as steering has it, and with sizes drawn freely. Each run's numbers go to the results file when
it is done; runs that are there already are not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import Chem

from moldiff.control import Place, Spec
from moldiff.generator import Generator
from moldiff.samples import Sample
from moldiff.sampling.control import Control
from moldiff.steer.reward import reward_from
from moldiff.steer.scoring import Scorer

#: What is asked for: a name, and the arguments of ``reward_from``.
REWARDS: dict[str, dict[str, Any]] = {
    "qed": {"reward": "qed"},
    "dipole=5": {"reward": None, "target": {"dipole": 5.0}},
    "dipole=7": {"reward": None, "target": {"dipole": 7.0}},
    "ring_count=4": {"reward": None, "target": {"ring_count": 4.0}},
}


@dataclass(frozen=True)
class SizesOf(Spec):
    """Sample i has the size that sample i // ``every`` of the same seed would have."""

    generator: Generator
    seed: int
    every: int
    name = "sizes_of"

    def settings(self) -> Any:
        return self.every

    def size_of(self, index: int) -> int:
        return self.generator.request(1, seed=self.seed).size_of(index // self.every)

    def control(self, place: Place) -> Control:
        return Control()


def smiles(sample: Sample) -> str | None:
    """The canonical SMILES of a valid, connected sample."""
    mol = sample.to_rdkit()
    if mol is None or len(Chem.GetMolFrags(mol)) != 1:
        return None
    return str(Chem.MolToSmiles(Chem.RemoveHs(mol)))


def rewards_of(samples: Sequence[Sample], name: str) -> list[float]:
    """The reward of each sample, NaN where it has none."""
    spec = reward_from(**REWARDS[name])
    assert spec is not None
    return [x if math.isfinite(x) else math.nan for x in Scorer(spec.terms, 1)(samples)]


def summary(values: Sequence[float], texts: Sequence[str | None], asked: int) -> dict[str, Any]:
    """Mean reward with its standard error, and what is valid and unique; ``asked`` is the number of samples asked for."""
    good = np.array([v for v in values if math.isfinite(v)])
    known = [t for t in texts if t is not None]
    return {
        "mean": round(float(good.mean()), 4),
        "stderr": round(float(good.std(ddof=1) / math.sqrt(len(good))), 4),
        "valid": round(len(good) / asked, 4),
        "unique": round(len(set(known)) / max(1, len(known)), 4),
        "n": asked,
    }


def best(values: Sequence[float], texts: Sequence[str | None], k: int) -> tuple[list[float], list[str | None]]:
    """The best of every k."""
    table = np.where(np.isfinite(values), values, -np.inf).reshape(-1, k)
    chosen = table.argmax(1) + np.arange(len(table)) * k
    return [float(values[i]) for i in chosen], [texts[i] for i in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qm9")
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--particles", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rewards", nargs="*", default=list(REWARDS), choices=list(REWARDS))
    parser.add_argument("--options", type=json.loads, default={}, help="reward_options as JSON, instead of the defaults")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "steering.json")
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    generator = Generator.from_pretrained(args.model)
    common = f"{args.model}, {args.n} x {args.particles}, {args.steps} calls, seed {args.seed}"
    table = results.setdefault(common, {})

    def keep(key: str, value: dict[str, Any]) -> None:
        table[key] = value
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(key, value, flush=True)

    for label, controls in (("one size", [SizesOf(generator, args.seed, args.particles)]), ("free sizes", [])):
        if all(f"{name}, best-of-{args.particles}, {label}" in table for name in args.rewards):
            continue
        began = time.monotonic()
        drawn = generator.sample(args.n * args.particles, seed=args.seed, steps=args.steps, controls=controls)
        seconds = round(time.monotonic() - began)
        texts = [smiles(s) for s in drawn]
        for name in args.rewards:
            values = rewards_of(list(drawn), name)
            top, which = best(values, texts, args.particles)
            keep(f"{name}, plain, {label}", {**summary(values, texts, len(values)), "seconds": seconds})
            keep(f"{name}, best-of-{args.particles}, {label}", {**summary(top, which, args.n), "seconds": seconds})
    for name in args.rewards:
        spec = reward_from(**REWARDS[name], particles=args.particles, options=args.options)
        assert spec is not None
        key = f"{name}, steered, {json.dumps({k: v for k, v in spec.settings().items() if k not in ('terms', 'particles')})}"
        if key in table:
            continue
        began = time.monotonic()
        drawn = generator.sample(args.n, seed=args.seed, steps=args.steps, controls=[spec])
        values = rewards_of(list(drawn), name)
        keep(key, {**summary(values, [smiles(s) for s in drawn], args.n), "seconds": round(time.monotonic() - began)})


if __name__ == "__main__":
    main()
