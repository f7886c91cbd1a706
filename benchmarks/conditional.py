"""Conditional generation: what was asked against what GFN2-xTB finds, beside the size-shuffle and random rows.

    python benchmarks/conditional.py --model qm9-cond --n 2000 --guidance 1.5 --out benchmarks/results/conditional

For each property n targets are drawn from the validation molecules, each with the number of atoms of the molecule that has it;
the samples are judged by a single point on the geometry as it was generated. ``--percentiles 1,99`` asks for those of the
property instead, with sizes drawn from the model's own distribution: extrapolation. Each run's samples and figures are written
when it is done; runs that are there already are not made again. The picture shows asked against got.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from moldiff import Generator, evaluate
from moldiff.data.location import find_data
from moldiff.data.store import Store


def targets(store: Store, name: str, n: int, seed: int) -> list[dict[str, float]]:
    """n random validation molecules' values, with their sizes."""
    values, sizes = store.column(name).numpy(), np.diff(store.atom_offsets.numpy())
    order = [i for i in np.random.default_rng(seed).permutation(len(store)).tolist() if np.isfinite(values[i])]
    return [{name: float(values[i]), "n_atoms": int(sizes[i])} for i in order[:n]]


def judged(samples: Any, name: str) -> dict[str, Any]:
    """The error and the rows beside it, and validity, with 95 % intervals; ``got`` holds each sample's calculated value."""
    result = evaluate(samples, reference="qm9", n_processes=1, progress=False)
    metrics = next(iter(json.loads(result.to_json())["sets"].values()))["metrics"]
    wanted = [f"property_{k}/{name}" for k in ("mae", "mae_size", "mae_random", "failed")] + ["valid_connected", "uniqueness"]
    found = {key: metrics[key] for key in wanted if key in metrics}
    got = result.per_sample[f"calculated_{name}"].astype(float)
    return {"metrics": found, "got": [round(float(v), 4) if np.isfinite(v) else None for v in got]}


def draw(runs: list[tuple[str, list[float], list[float | None]]], path: Path) -> None:
    """Asked against got, one panel a run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(runs), figsize=(3.2 * len(runs), 3.3), squeeze=False)
    for axis, (label, asked, got) in zip(axes[0], runs, strict=True):
        pairs = np.array([(a, g) for a, g in zip(asked, got, strict=True) if g is not None])
        low, high = np.percentile(pairs, [0.5, 99.5])
        axis.plot([low, high], [low, high], color="0.6", lw=1)
        axis.scatter(pairs[:, 0], pairs[:, 1], s=6, alpha=0.5, lw=0)
        axis.set(title=label, xlabel="asked", ylabel="got (GFN2-xTB)", xlim=(low, high), ylim=(low, high), aspect="equal")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qm9-cond")
    parser.add_argument("--properties", default="gap,homo,lumo,dipole")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--guidance", default="1.0,1.5")
    parser.add_argument("--percentiles", default="", help="ask for these instead of the validation distribution: 1,99")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    generator = Generator.from_pretrained(args.model)
    store = Store(find_data(generator.config.data.name), "val")
    path = args.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    pictures = []
    for name in args.properties.split(","):
        values = store.column(name).numpy()
        asked: dict[str, Any] = {"": targets(store, name, args.n, args.seed)}
        if args.percentiles:
            asked = {f", {q} %": [{name: float(np.nanpercentile(values, float(q)))}] for q in args.percentiles.split(",")}
        for guidance in (float(word) for word in args.guidance.split(",")):
            for label, rows in asked.items():
                key = f"{name}{label}, guidance {guidance:g}, {args.steps} calls, n {args.n}, seed {args.seed}"
                if key not in results:
                    began = time.monotonic()
                    samples = generator.sample(args.n, seed=args.seed, steps=args.steps, conditions=rows, guidance=guidance)
                    seconds = round(time.monotonic() - began)
                    found = judged(samples, name)
                    got = found.pop("got")
                    wanted = [rows[i % len(rows)][name] for i in range(args.n)]
                    with (args.out / f"{name}{label.replace(', ', '_').replace(' %', '')}_{guidance:g}.csv").open("w") as file:
                        lines = csv.writer(file)
                        lines.writerow(["id", "smiles", "asked", "got"])
                        for i, sample in enumerate(samples):
                            lines.writerow([sample.id, samples.verdicts[i].smiles, round(wanted[i], 4), got[i]])
                    known = [g for g in got if g is not None]
                    found |= {"median_got": float(np.median(known)), "median_asked": float(np.median(wanted)), "seconds": seconds}
                    results[key] = found | {"asked": [round(w, 4) for w in wanted], "got": got}
                    path.write_text(json.dumps(results) + "\n")
                r = results[key]
                figures = {k: round(v["value"], 4) for k, v in r["metrics"].items()}
                print(key, figures, r["median_asked"], r["median_got"], flush=True)
                pictures.append((f"{name}{label}, guidance {guidance:g}", r["asked"], r["got"]))
    draw(pictures, args.out / "asked_against_got.png")


if __name__ == "__main__":
    main()
