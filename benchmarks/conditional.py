"""Conditional generation: what was asked against what GFN2-xTB finds, beside the size-shuffle and random rows.

    python benchmarks/conditional.py --properties gap,dipole --n 200 --out benchmarks/results/conditional \\
        --ways guidance=2,steps=50 guidance=1,steps=25,candidates=4 guidance=0,steps=100,gradient=1

A way is a list of settings: ``guidance`` of the conditions (0: the model is not told), ``steps``, ``settle``, ``candidates`` that
``--judge`` chooses from, the scale of a ``gradient`` towards what is asked by the same regressor (with ``deviation``), and
``particles`` steered by it (``sampling.steering``). ``evaluations`` are the systems that went through the denoiser for each
sample; of a gradient as many go through the regressor, there and back.

For each property n targets are drawn from the validation molecules, each with the number of atoms of the molecule that has it;
the samples are judged by a single point on the geometry as it was generated. ``--percentiles 1,99`` asks for those of the
property instead, with sizes drawn from the model's own distribution: extrapolation. Each run's samples and figures are written
when it is done; runs that are there already are not made again. ``--picture`` names the ways to draw, asked against got.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moldiff import Generator, SampleSet, evaluate
from moldiff.control import Place
from moldiff.core.batch import AtomBatch
from moldiff.data.location import find_data
from moldiff.data.store import Store
from moldiff.regressor import PropertyRegressor
from moldiff.samples import from_batch
from moldiff.sampling.control import Control
from moldiff.sampling.steering import Steered
from moldiff.steer.conditions import conditions_from
from moldiff.steer.judged import sound
from moldiff.steer.reward import Reward


@dataclass(frozen=True)
class Nearness(Reward):
    """Steering by minus the squared distance, in standard deviations, of a regressor's prediction from what each sample is
    asked for; what is not sound as yet has no reward."""

    judge: PropertyRegressor | None = None
    conditions: Any = None
    property: str = ""
    settles = True

    def control(self, place: Place) -> Control:
        steered, judge, name = super().control(place), self.judge, self.property
        assert isinstance(steered, Steered) and judge is not None
        std = judge.info.config.condition_stats[name].std
        wanted = np.array([self.conditions.asked(place.info, place.seed, i)[name] for i in place.indices])

        def score(clean: AtomBatch) -> torch.Tensor:
            samples = from_batch(place.vocabulary.decode(clean.to("cpu")), range(clean.n_systems), place.info.config.bonds)
            rewards = -(((judge.predict(samples)[name] - wanted[: len(samples)]) / std) ** 2)
            return torch.tensor(np.where([sound(s) for s in samples], rewards, np.nan))

        steered.score = score
        return steered


def read_way(text: str) -> dict[str, float]:
    """``guidance=2,steps=50`` as numbers; those that count are whole."""
    found: dict[str, float] = {"guidance": 1.0, "steps": 100}
    for item in text.split(","):
        name, _, value = item.partition("=")
        if name not in ("guidance", "steps", "candidates", "gradient", "deviation", "particles", "settle"):
            raise SystemExit(f"a way has no {name!r}")
        found[name] = float(value) if name in ("guidance", "gradient", "deviation") else int(value)
    return found


def evaluations(way: dict[str, float]) -> int:
    """Systems that go through the denoiser for each sample."""
    branches = 1 if way["guidance"] in (0, 1) else 2
    return int(way["steps"] * branches * way.get("candidates", 1) * way.get("particles", 1))


def options_of(way: dict[str, float], name: str, rows: list[dict[str, float]], judge: PropertyRegressor | None) -> dict[str, Any]:
    """The arguments of ``Generator.sample``."""
    found: dict[str, Any] = {"conditions": rows, "guidance": way["guidance"], "steps": way["steps"], "settle": way.get("settle")}
    if judge is None:
        return found
    folder = str(judge.info.folder)
    if way.get("candidates", 1) > 1:
        found |= {"candidates": way["candidates"], "judge": folder}
    if "gradient" in way:
        goal = "asked" + (f":{way['deviation']:g}" if "deviation" in way else "")
        found |= {"guidance_function": f"{folder}@{name}={goal}", "guidance_scale": way["gradient"]}
    if way.get("particles", 1) > 1:
        spec = Nearness((), int(way["particles"]), judge=judge, conditions=conditions_from(rows), property=name)
        found["controls"] = [spec]
    return found


def targets(store: Store, name: str, n: int, seed: int) -> list[dict[str, float]]:
    """n random validation molecules' values, with their sizes."""
    values, sizes = store.column(name).numpy(), np.diff(store.atom_offsets.numpy())
    order = [i for i in np.random.default_rng(seed).permutation(len(store)).tolist() if np.isfinite(values[i])]
    return [{name: float(values[i]), "n_atoms": int(sizes[i])} for i in order[:n]]


def judged(samples: SampleSet, name: str) -> dict[str, Any]:
    """The error and the rows beside it, and validity, with 95 % intervals; ``got`` holds each sample's calculated value."""
    result = evaluate(samples, reference="qm9", n_processes=1, progress=False)
    metrics = next(iter(json.loads(result.to_json())["sets"].values()))["metrics"]
    wanted = [f"property_{k}/{name}" for k in ("mae", "mae_size", "mae_random", "failed")] + ["valid_connected", "uniqueness"]
    got = result.per_sample[f"calculated_{name}"].to_numpy(dtype=float)
    return {"metrics": {key: metrics[key] for key in wanted if key in metrics}, "got": rounded(got)}


def foretold(samples: SampleSet, name: str, got: list[float | None], judge: PropertyRegressor) -> dict[str, Any]:
    """What the regressor says of the samples, and its own mean absolute error on them."""
    predicted = judge.predict(samples)[name]
    far = np.abs(predicted - np.array(got, dtype=float))
    return {"predicted": rounded(predicted), "regressor_mae": round(float(np.nanmean(far)), 4)}


def rounded(values: Any) -> list[float | None]:
    """Numbers for JSON, None for what is not finite."""
    return [round(float(v), 4) if np.isfinite(v) else None for v in values]


def on_validation(judge: PropertyRegressor, store: Store, n: int, seed: int) -> dict[str, Any]:
    """The regressor's mean absolute error on n real validation molecules, with the spread of each property."""
    chosen = np.random.default_rng(seed).permutation(len(store))[:n].tolist()
    systems = [store.system(i) for i in chosen]
    predicted = judge.predict([(s["atom_types"].numpy(), s["positions"].numpy()) for s in systems])
    found = {}
    for name, values in predicted.items():
        true = store.column(name).numpy()[chosen]
        found[name] = {"mae": round(float(np.nanmean(np.abs(values - true))), 4), "std": round(float(np.nanstd(true)), 4)}
    return {"n": len(chosen), "weights": judge.info.weights_sha256[:12], **found}


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
    parser.add_argument("--judge", default="", help="regressor of candidates, gradients, particles; empty: the model's, if any")
    parser.add_argument("--properties", default="gap,homo,lumo,dipole")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--ways", nargs="+", default=["guidance=2,steps=50"])
    parser.add_argument("--percentiles", default="", help="ask for these instead of the validation distribution: 1,99")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", nargs="*", default=[], help="ways to draw")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    generator = Generator.from_pretrained(args.model)
    name_of_judge = args.judge or generator.config.sampling.judge
    judge = PropertyRegressor.from_pretrained(name_of_judge, generator.device) if name_of_judge else None
    store = Store(find_data(generator.config.data.name), "val")
    path = args.out / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if judge is not None and "regressor on validation" not in results:
        results["regressor on validation"] = on_validation(judge, store, 2000, args.seed)
        print(results["regressor on validation"], flush=True)
    pictures = []
    for name in args.properties.split(","):
        values = store.column(name).numpy()
        asked: dict[str, Any] = {"": targets(store, name, args.n, args.seed)}
        if args.percentiles:
            asked = {f" {q} %": [{name: float(np.nanpercentile(values, float(q)))}] for q in args.percentiles.split(",")}
        for text in args.ways:
            way = read_way(text)
            for label, rows in asked.items():
                key = f"{name}{label}, {text}, n {args.n}, seed {args.seed}"
                stem = args.out / key.replace(", ", "_").replace(",", "_").replace(" ", "")
                if key not in results:
                    began = time.monotonic()
                    samples = generator.sample(args.n, seed=args.seed, **options_of(way, name, rows, judge))
                    seconds = round(time.monotonic() - began)
                    found = judged(samples, name)
                    wanted = [round(rows[i % len(rows)][name], 4) for i in range(args.n)]
                    sdf = samples.save(Path(f"{stem}.sdf"))
                    Path(f"{stem}.sdf.gz").write_bytes(gzip.compress(sdf.read_bytes(), mtime=0))
                    smiles = [v.smiles for v in samples.verdicts]
                    known = [g for g in found["got"] if g is not None]
                    found |= {"median_got": round(float(np.median(known)), 4), "median_asked": float(np.median(wanted))}
                    found |= {"asked": wanted, "smiles": smiles}
                    results[key] = found | {"evaluations": evaluations(way), "seconds": seconds}
                    sdf.unlink()
                if judge is not None and "predicted" not in results[key]:
                    with tempfile.TemporaryDirectory() as folder:
                        sdf = Path(folder) / "samples.sdf"
                        sdf.write_bytes(gzip.decompress(Path(f"{stem}.sdf.gz").read_bytes()))
                        results[key] |= foretold(SampleSet.load(sdf), name, results[key]["got"], judge)
                write(Path(f"{stem}.csv"), results[key])
                path.write_text(json.dumps(results) + "\n")
                show(key, name, results[key])
                if text in args.picture:
                    pictures.append((f"{name}{label}", results[key]["asked"], results[key]["got"]))
    if pictures:
        draw(pictures, args.out / "asked_against_got.png")


def write(path: Path, found: dict[str, Any]) -> None:
    """Each sample's row."""
    columns = {k: found[k] for k in ("smiles", "asked", "predicted", "got") if k in found}
    with path.open("w") as file:
        lines = csv.writer(file)
        lines.writerow(["id", *columns])
        lines.writerows([f"sample_{i}", *row] for i, row in enumerate(zip(*columns.values(), strict=True)))


def show(key: str, name: str, found: dict[str, Any]) -> None:
    """One line of the log."""
    figures = {k.replace(f"/{name}", ""): round(v["value"], 4) for k, v in found["metrics"].items()}
    mae = found["metrics"][f"property_mae/{name}"]
    ratio = mae["value"] / found["metrics"].get(f"property_mae_size/{name}", {"value": np.nan})["value"]
    more = {k: found.get(k) for k in ("regressor_mae", "median_asked", "median_got", "evaluations", "seconds")}
    print(f"{key}: ratio {ratio:.3f}", figures, more, mae, flush=True)


if __name__ == "__main__":
    main()
