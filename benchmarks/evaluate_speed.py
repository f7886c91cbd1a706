"""Time the evaluation of crystals: validation crystals with noise, one process, processor seconds of every stage together.

    python benchmarks/evaluate_speed.py --data mp20 --n 1000 --out benchmarks/results/evaluate_speed.json

Times for more samples are extrapolated from two sizes, since comparing samples grows faster than their number; the file says so.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path

import numpy as np

from moldiff.chem.crystals import Crystal
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.evaluation.api import evaluate
from moldiff.evaluation.crystals.novelty import Training

GOAL = 10_000


def noisy(data: Training, n: int, spread: float) -> list[Crystal]:
    """Take n crystals at random, some of them twice, with noise of 0.02 to ``spread`` Å."""
    rng = np.random.default_rng(0)
    found = []
    for i in rng.integers(len(data), size=n).tolist():
        crystal = data.crystal(i)
        shift = rng.normal(size=crystal.frac_coords.shape) * rng.uniform(0.02, spread)
        found.append(Crystal(crystal.numbers, crystal.frac_coords + shift @ np.linalg.inv(crystal.lattice), crystal.lattice))
    return found


def seconds() -> float:
    """Processor seconds of this process and the children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mp20")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder = find_data(args.data)
    data = Training(Store(folder, "val"))
    evaluate(noisy(data, 20, 0.1), "mp20", n_processes=1, cache=False)
    times: dict[str, list[list[float]]] = {}
    for reference in ("mp20", folder):
        name = "shipped reference" if reference == "mp20" else "data set as reference (exact novelty)"
        for n in (args.n // 4, args.n):
            samples = noisy(data, n, 0.3)
            began = seconds()
            evaluate(samples, reference, n_processes=1, cache=False)
            times.setdefault(name, []).append([n, round(seconds() - began, 1)])
    result = {
        "command": f"python benchmarks/evaluate_speed.py --data {args.data} --n {args.n}",
        "unit": "processor seconds, one process, no cache",
        "measured": times,
        f"extrapolated_to_{GOAL}": {name: round(extrapolated(rows)) for name, rows in times.items()},
        "how": "a n + b n^2 through both measured sizes; 10,000 were not run, nor were two processes timed",
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if args.out is not None:
        args.out.write_text(text)


def extrapolated(rows: list[list[float]]) -> float:
    """Put a n + b n^2 (b not negative) through two measured sizes."""
    (n, t), (m, u) = rows
    b = max(0.0, (u / m - t / n) / (m - n))
    return float((u / m - b * m) * GOAL + b * GOAL**2)


if __name__ == "__main__":
    main()
